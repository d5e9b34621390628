# Two commands on a fresh machine: `make tour` and `make test`. Both may be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help tour test report docs bench accidents lint clean
help:
	@echo "make tour    install, run one quick claim of every wing, write report/index.html"
	@echo "make test    install, run linters, type checker and tests"
	@echo "make report  write report/index.html from the evidence"
	@echo "make docs    build the documentation site, build/docs/index.html"
	@echo "make bench   compare with the peers that are installed, write benchmarks/RESULTS.md"
	@echo "make accidents  kill, fill, corrupt and race everything for long; write docs/reliability.md"
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

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/docs/index.html  (with search: $(BIN)/python -m http.server -d build/docs --bind 127.0.0.1)"

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[bench]"
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py

accidents: $(VENV)/.developer
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m accidents --write

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
