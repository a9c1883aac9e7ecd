"""Examples in docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import modeling_romebert


def examples():
    """One test per docstring whose examples run."""
    packages = modeling_romebert.__path__, "modeling_romebert."
    names = [module.name for module in pkgutil.walk_packages(*packages)]
    names.append("modeling_romebert.configuration.configuration_romebert")
    found = {}
    for name in names:
        for test in doctest.DocTestFinder().find(importlib.import_module(name)):
            if any(doctest.SKIP not in example.options for example in test.examples):
                found[test.name] = test
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    test = EXAMPLES[name]
    test.globs.setdefault("torch", torch)
    report = []
    flags = doctest.NORMALIZE_WHITESPACE  # lines are broken where they get too long
    result = doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 0


def test_examples_are_found():
    for name in (
        "losses.ExitLoss",
        "exit_policies.make_policy",
        "training.gradient_projection.project",
        "evaluation.report.area_under_curve",
    ):
        assert f"modeling_romebert.{name}" in EXAMPLES
    assert "modeling_romebert.modeling_romebert.RomeBertForSequenceClassification" in EXAMPLES
    assert "modeling_romebert.configuration.configuration_romebert.RomeBertConfig" in EXAMPLES
