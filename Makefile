# Two commands matter: `make demo` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
NATIVE := CMakeLists.txt native/CMakeLists.txt $(wildcard native/*/*.* native/src/kernels/*)

.PHONY: demo env test test-full check bench docs clean

demo: $(VENV)/.runtime
	DITHER="$(BIN)/dither" sh examples/demo.sh

env: $(VENV)/.ready

test: env check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

test-full: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "full or not full" --timeout 3600

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests
	$(BIN)/lint-imports --no-logo

bench: env
	$(BIN)/dither bench train --json -

docs: env
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site runs .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.ready: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.runtime
