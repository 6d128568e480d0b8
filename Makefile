# `make demo` and `make test` set themselves up: they need python3 (with venv), make and git, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most tests wait for processes of their own, so two at a time are nearly twice as fast, also on 2 cores. A module's tests
# stay together (they share one start of Ray), the slow modules of faults come first.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: help install demo test test-full check format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# constraints.txt pins torch exactly: an unpinned torch would fetch gigabytes of CUDA on a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP)  ## create .venv with everything, once

demo: $(STAMP)  ## the main job on a small generated world, about 5 minutes on 2 cores
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/shapes/demo.py --output_dir demo

test: $(STAMP)  ## the quick tier: everything but the tests marked `full`
	$(PYTEST) -m 'not full'

test-full: $(STAMP)  ## all tests, with every fault and every model family; what CI runs
	$(PYTEST)

check: $(STAMP)  ## format, lint, types, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the targets above made
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
