# Every target installs what it needs into .venv by itself; all that is needed before is Python 3.11 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What was installed, and when: one stamp for each set of extras.
STAMPS := $(VENV)/stamps
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment at the same time would get in each other's way.
.NOTPARALLEL:
.PHONY: help demo test bench growth fuzz endure lint format docs tox build clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/demo  ## Run the demonstration, a virtual power plant; options go into ARGS="..."
	$(BIN)/python -m examples.virtual_power_plant $(ARGS)

test: $(STAMPS)/blosc,cbor,demo,numpy,test,uvloop  ## Run all tests; fail below 95 % coverage
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

bench: $(STAMPS)/bench  ## Compare the speed with that of other libraries; options go into ARGS="..."
	$(BIN)/python -m benchmarks $(ARGS)

growth: $(STAMPS)/bench  ## Measure how costs grow with agents, connections and calls; options go into ARGS="..."
	$(BIN)/python -m benchmarks.growth $(ARGS)

fuzz: $(STAMPS)/fuzz  ## Attack every entry with ten million bytes; options go into ARGS="--bytes ..."
	@for entry in channel rpc messages session; do \
		$(BIN)/python -m tests.fuzzing $$entry --quiet $(ARGS) || exit 1; done

# Some 25 minutes, half of them for the soak. What it compares is exact only where little else runs.
endure: $(STAMPS)/blosc,cbor,demo,numpy,test,uvloop  ## Endure cuts, blackholes, kills, nesting, overload and a soak
	$(BIN)/python -m tests.core.test_session
	$(BIN)/python -m tests.endurance.cuts
	$(BIN)/python -m tests.endurance.cuts --blackholes --messages 200
	$(BIN)/python -m tests.endurance.killed
	$(BIN)/python -m tests.endurance.nested
	$(BIN)/python -m tests.endurance.overload --connections 10000
	$(BIN)/python -m tests.endurance.soak

# To renew what the documentation shows (some 6 minutes, and 2 for growth, on a machine that does nothing else):
#   make bench growth ARGS="--output docs/_speed"

lint: $(STAMPS)/lint  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/lint  ## Format the sources and mend what can be mended
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(STAMPS)/docs  ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -n -W --keep-going -b html docs docs/_build/html

tox: $(STAMPS)/dev  ## Run the tests in every environment of tox.ini
	$(BIN)/tox run $(ARGS)

build: $(STAMPS)/dev  ## Build the source distribution and the wheel into dist/
	$(BIN)/python -m build

clean:  ## Remove everything that was made, the environment too
	rm -rf $(VENV) .tox build dist *.egg-info docs/_build
	rm -rf .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Python 3.11 or later is needed; name it like this: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@mkdir -p $(STAMPS)
	@touch '$@'
