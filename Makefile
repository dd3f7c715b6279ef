# A fresh machine needs Python 3.11 or newer, make, and the package registry. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# More than cores: a test waits for half of its time, for processes and for what nobody may hurry.
JOBS ?= 3
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
DOCS_STAMP := $(VENV)/docs.stamp

# Workers of several processes share the cores: without this each would start one thread per core.
export OMP_NUM_THREADS ?= 1
# Tests start hundreds of processes; without their bytecode each would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo farm-demo test test-torchx test-matrix test-chaos lint pip-audit format bench compatibility docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 on PATH; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo]'
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

demo: $(STAMP)  ## train while workers join, leave and die (under three minutes)
	$(BIN)/dtf demo $(ARGS)

farm-demo: $(STAMP)  ## a plan on a farm whose parts are killed and frozen, and its books (under two minutes)
	$(BIN)/dtf farm demo $(ARGS)

# One by one, the longest first (tests/support/units.py), so that the workers end together.
test: $(STAMP)  ## all tests but the long random ones, JOBS (3) at a time; ARGS='-k sampler -x' goes to pytest
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-chaos: $(STAMP)  ## the long random fault runs
	$(BIN)/python -m pytest -m chaos $(ARGS)

test-matrix: $(STAMP)  ## the cells that `make test` leaves out: every option, callback and strategy through every event at every place
	$(BIN)/python -m pytest --numprocesses $(JOBS) -m matrix $(ARGS)

test-torchx:  ## the torchx tests, in an environment of their own
	test -x .venv-torchx/bin/python || "$(PYTHON)" -m venv .venv-torchx
	.venv-torchx/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,torchx]' kubernetes
	.venv-torchx/bin/python -m pytest tests/elastic/torchx $(ARGS)

lint: $(STAMP)  ## ruff (lint and format check) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own: it looks at ours, and brings nothing into it.
pip-audit: $(STAMP)  ## known vulnerabilities of what is installed; fails where it could check nothing
	test -x .venv-pip-audit/bin/pip-audit || { "$(PYTHON)" -m venv .venv-pip-audit && .venv-pip-audit/bin/python -m pip install --quiet pip-audit; }
	.venv-pip-audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		--skip-editable --format json --progress-spinner off | $(BIN)/python .ci/pip_audit.py

format: $(STAMP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the speed and quality tables of benchmarks/; ARGS=--quick to see that they work
	$(BIN)/python benchmarks/run.py $(ARGS)

compatibility: $(STAMP)  ## docs/compatibility.md, from tests in fresh environments (half an hour)
	$(BIN)/python docs/compatibility_table.py $(ARGS)

docs: $(DOCS_STAMP)  ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:  ## remove what make has made
	rm -rf $(VENV) .venv-torchx .venv-pip-audit build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis lightning_logs
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
