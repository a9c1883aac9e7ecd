"""A saved folder loads where this package is not, from disk or a Hub cache; where it is, its code is not run.

Three fresh interpreters: the two of examples/check_portability.py, and one for all that it does not try.
"""

import json
import shutil
import sys
from pathlib import Path

import check_portability
import pytest
import torch
from families import FAMILIES
from support.portability_checks import (
    TEXTS,
    code_files,
    expected_from,
    make_other_version,
    measure,
    results_of,
    run_group,
    run_groups,
    same_results,
)
from tiny import build
from tiny_tokens import build_tokens, piece_tokenizer
from transformers import AutoTokenizer

from modeling_romebert.hub import CLOSURE

POLICY = {"name": "entropy", "threshold": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model, whose texts leave at several depths, with its tokenizer."""
    return check_portability.save_tiny_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def expected(folder) -> dict:
    return expected_from(str(folder))


def assert_all_pass(results, *names):
    assert set(names) <= results.keys()
    assert results == dict.fromkeys(results, "pass")


# ---- where the package is not


@pytest.fixture(scope="module")
def report(folder, expected, tmp_path_factory) -> dict[str, str]:
    """Every check of examples/check_portability.py, by this interpreter with the package hidden."""
    assert set(expected["exit_layer"]) == {1, 3, 4}
    return check_portability.check(sys.executable, folder, tmp_path_factory.mktemp("report"))


@pytest.mark.slow
def test_folder_loads_without_the_package(report):
    assert_all_pass(
        report,
        "the package is not installed",
        "AutoConfig loads the folder",
        "AutoModelForSequenceClassification: logits bit-equal, same exits",
        "AutoModel: hidden states bit-equal",
        "pipeline: same labels, scores and exits",
        "pipeline: lists are packed, and nothing is warned of",
        "a user's own pipeline stays, with its file",
        "save, load, save, load: bit-equal, all code files",
        "Pipeline.save_pretrained: same results, all code files",
        'dtype="bfloat16"',
        'device_map="auto"',
        "attn_implementation eager and sdpa",
        "sharded checkpoint: bit-equal",
        "another num_labels with ignore_mismatched_sizes",
    )


@pytest.mark.slow
def test_hub_cache_and_other_versions_load_without_the_package(report):
    assert_all_pass(
        report,
        "two versions of the code do not mix",
        "Hub cache, pinned revision: logits bit-equal, same exits",
        "Hub cache, pinned revision: pipeline",
        "Hub cache: main has its own code beside the pinned one",
        "Hub cache: saved as a folder, bit-equal, all code files",
    )


@pytest.fixture(scope="module")
def of_families(tmp_path_factory) -> dict[str, dict]:
    """A saved model of every type, with a tokenizer of its own: folder -> what it makes of some texts. What
    families of one type differ in is in their configs, which test_families_saved.py saves and loads.
    """
    saved, values = tmp_path_factory.mktemp("families"), {}
    for family in {family.stem: family for family in reversed(FAMILIES)}.values():
        folder = saved / family.name
        model = build(backbone=family.backbone(), exit_policy=POLICY)
        model.save_pretrained(folder)
        family.tokenizer().save_pretrained(folder)
        values[str(folder)] = measure(model, AutoTokenizer.from_pretrained(folder))
        assert len(values[str(folder)]["logits"]) == len(TEXTS)
    return values


UNTOUCHED = (
    "the package is not installed",
    "AutoConfig loads the folder",
    "AutoModel: hidden states bit-equal",
)
SAME_WEIGHTS = "AutoModelForSequenceClassification: logits bit-equal, same exits"
SAME_CODE = "Pipeline.save_pretrained: same results, all code files"
OTHER_LOGITS = (
    'dtype="bfloat16"',
    'device_map="auto"',
    "attn_implementation eager and sdpa",
    "sharded checkpoint: bit-equal",
)


@pytest.fixture(scope="module")
def other_groups(folder, expected, of_families, tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """A folder of another version, reference values and the families, in one process: where it worked, and
    what it found.
    """
    work = tmp_path_factory.mktemp("others")
    of_other = {"folder": make_other_version(folder, work / "other"), "expected": expected}
    of_other |= {"closure": code_files(folder), "only": [*UNTOUCHED, SAME_WEIGHTS, SAME_CODE, *OTHER_LOGITS]}
    return work, run_groups(
        sys.executable,
        work,
        ("without_package", of_other),
        ("reference", {"folder": folder}),
        ("measured", {"folders": list(of_families)}),
    )


@pytest.mark.slow
def test_checks_fail_on_other_code(other_groups):
    """The checks themselves are checked: in a folder of another version, those that exits or code files enter
    fail.
    """
    results = other_groups[1][0]
    assert all(results[name] == "pass" for name in UNTOUCHED)
    assert results[SAME_WEIGHTS].startswith("AssertionError: exit_logits differ")
    assert results[SAME_CODE].startswith("AssertionError: code files differ")
    for name in OTHER_LOGITS:
        assert "AssertionError" in results[name]


@pytest.mark.slow
def test_reference_values_can_come_from_the_folder_itself(other_groups, expected):
    work, (_, results, _) = other_groups
    assert_all_pass(results, "the folder loads at all")
    found = json.loads((work / "1" / "expected.json").read_text())
    many = ("results", "results_by_policy")
    assert {name: value for name, value in found.items() if name not in many} == {
        name: value for name, value in expected.items() if name not in many
    }
    for name in many:
        same_results(found[name], expected[name])


@pytest.mark.slow
def test_every_family_loads_without_the_package(other_groups, of_families):
    """Layers of the rows that leave, their logits and those of every exit; a convolution may round otherwise
    in another process.
    """
    work, (_, _, results) = other_groups
    assert_all_pass(results, "the package is not installed", *of_families)
    found = json.loads((work / "2" / "measured.json").read_text())
    for folder, values in of_families.items():
        assert found[folder]["exit_layer"] == values["exit_layer"]
        for name in ("exit_logits", "logits"):
            pair = torch.tensor(found[folder][name]), torch.tensor(values[name])
            torch.testing.assert_close(*pair, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure(tmp_path):
    assert run_group(sys.executable, "nothing", tmp_path) == {
        "the process of group 'nothing' ends well": "KeyError: 'nothing'"
    }


# ---- where the package is


def test_installed_package_runs_no_code_of_the_folder(folder, expected, tmp_path):
    trapped = tmp_path / "model"
    shutil.copytree(folder, trapped)
    for name in CLOSURE:
        (trapped / name).write_text("raise SystemExit('code of the folder was run')\n")
    results = results_of("with_package", {"folder": str(trapped), "expected": expected})
    assert_all_pass(results, "without trust_remote_code", "trust_remote_code=False", "trust_remote_code=True")


def test_a_token_classifier_is_told_that_it_is_not_checked(tmp_path, capsys):
    build_tokens().save_pretrained(tmp_path)
    piece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        check_portability.main(["--model_dir", str(tmp_path)])
    assert "classifies tokens; the checks are of classifiers of texts" in capsys.readouterr().err
