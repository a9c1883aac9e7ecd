"""Tests of what needs heavy extras, which `make test-scale` installs. Plain `pytest` does not look here."""

import pytest
from scored import save_classifier


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """The folder of a saved model whose texts exit everywhere."""
    return save_classifier(tmp_path_factory.mktemp("model"))
