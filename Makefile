# Everything a contributor runs. `make demo` and `make test` need nothing but Python 3.11+ (with venv) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

# Stamps: newer than pyproject.toml means installed, so that a second call has nothing to do.
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-slow lint docs wheel-test bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO) ## compare dark-energy models on real survey data
	@mkdir -p runs
	@$(BIN)/qbs cosmology --example > runs/.demo.yaml && mv runs/.demo.yaml runs/demo.yaml
	$(BIN)/qbs cosmology runs/demo.yaml

# Compiled functions are kept between test runs. Tests of one module stay in one process, so that a fit shared by
# a module's tests runs once; those marked `serial` come after, alone.
test test-slow: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/.cache/jax
test test-slow: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0.3
# NumPyro orders the parameters of a distribution by hash: with another seed, some of it is not found in the cache.
test test-slow: export PYTHONHASHSEED = 0

# The fast tests mostly compile; `make test-slow` and users have the compiler's optimizations.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
test: $(DEV) ## run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow and not serial"
	$(BIN)/python -m pytest -m "serial and not slow"

test-slow: $(DEV) ## run the tests that take more than a minute
	$(BIN)/python -m pytest -n 2 --dist load -m slow

lint: $(DEV) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p qbs

docs: $(DEV) ## build the documentation and run its notebooks
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# The wheel is made from the sdist, installed in an environment of its own and tried far from the source tree.
wheel-test: $(DEV) ## build sdist and wheel into dist/, and try the wheel in a clean environment
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m venv build/wheel
	build/wheel/bin/python -I -m pip install --quiet --quiet --disable-pip-version-check "$$(echo dist/*.whl)[cosmology]"
	@empty=$$(mktemp -d) && trap 'rm -rf "$$empty"' EXIT && cp tests/smoke.py "$$empty" && cd "$$empty" \
	  && "$(CURDIR)/build/wheel/bin/python" -I smoke.py

bench: $(DEV) ## run every script in benchmarks/
	@for script in benchmarks/*.py; do \
	  if [ -e "$$script" ]; then echo "== $$script"; $(BIN)/python "$$script" || exit 1; fi; \
	done

clean: ## remove the environment and all that was built; keep runs/
	rm -rf $(VENV) .cache build dist docs/_build docs/notebooks docs/api qbs_jax.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find $(wildcard qbs inference models tests docs benchmarks notebooks) -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && $(PIP_INSTALL) --upgrade pip; exit $$?; \
	  fi; \
	done; \
	echo "qbs needs Python 3.11 or newer with its venv module: install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

$(DEMO): pyproject.toml | $(BIN)/python
	@echo "installing qbs and what the demo needs into $(VENV) (some minutes the first time)"
	$(PIP_INSTALL) --editable '.[cosmology]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "installing qbs and the development tools into $(VENV) (some minutes the first time)"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(DEMO) $@
