# Two commands on a fresh machine: `make tour` and `make test`. Both may be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help tour test check report lint clean
help:
	@echo "make tour    install, run one quick claim of every wing, write report/index.html"
	@echo "make test    install, run linters, type checker and tests"
	@echo "make report  write report/index.html from the evidence"
	@echo "make clean   remove the environment and everything generated"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[all]"
	@touch $@

$(VENV)/.developer: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.user

tour: $(VENV)/.user
	$(BIN)/neuropil tour --report report

report: $(VENV)/.user
	$(BIN)/neuropil report report

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
