# Two commands on a machine with Python and the package index: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# apart: Daft holds back versions of libraries that the other tests are not for
SCALE := $(VENV)-scale

.PHONY: quickstart test test-slow test-scale test-browser test-versions lint clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart     set up, fine-tune on real reviews, evaluate, calibrate, classify (runs/quickstart)"
	@echo "make test           set up, run the tests that every edit needs"
	@echo "make test-slow      the others: compilers, launchers, fresh interpreters, whole runs"
	@echo "make test-scale     those of workers and the server (extra scale: Ray, Daft, LitServe, Gradio)"
	@echo "make test-browser   those of the page, in Chromium (Debian: apt-get install chromium chromium-driver)"
	@echo "make test-versions  the tests on the oldest and newest versions that setup.cfg allows (docs/versions.md)"
	@echo "make lint           set up, ruff and mypy"
	@echo "make clean          remove $(VENV) and $(SCALE)"

# torch first and by its pinned version, so that an index with a CPU build of it is not passed over for a larger one.
$(BIN)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(SCALE)/bin/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(SCALE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[test,scale,browser]"
	@touch $@

quickstart: $(BIN)/.installed
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

test-scale: $(SCALE)/bin/.installed
	$(SCALE)/bin/python -m pytest tests/scale $(ARGS)

test-browser: $(SCALE)/bin/.installed
	$(SCALE)/bin/python -m pytest tests/page $(ARGS)

test-versions: $(BIN)/.installed
	$(BIN)/python tests/versions/run.py $(ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(SCALE)
