"""Tests of what needs heavy extras; `make test-scale` installs them. Plain `pytest` leaves this folder alone."""
