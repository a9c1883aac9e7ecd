"""What the tests of saving and loading compare, and what is said meanwhile."""

import logging
import warnings
from contextlib import contextmanager

import torch


@contextmanager
def told():
    """Collects what transformers, this package and the warnings module say from WARNING up."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    loggers = [logging.getLogger("transformers"), logging.getLogger("modeling_romebert")]
    for one in loggers:
        one.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        for one in loggers:
            one.removeHandler(handler)


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def content(config):
    """Settings, without what the library notes on saving and the backbone's, which are compared by
    themselves.
    """
    notes = ("_name_or_path", "transformers_version", "auto_map", "backbone_config")
    return {name: value for name, value in config.to_dict().items() if name not in notes}
