"""Tests of what needs heavy extras, which `make test-scale` installs. Plain `pytest` does not look here."""
