# Each target makes the environment it needs in .venv; a second run starts at once.
# A stamp in .venv/.done stands for each set of packages, and is remade when its pins change.

PYTHON ?=# the interpreter to build on (default: the first of python3, python3.13, ... that is 3.11 or newer)
JOBS   ?= 2# test processes

VENV := .venv
BIN  := $(VENV)/bin
DONE := $(VENV)/.done
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint docs bench dashboard bench-check gpu targets peers dist-check paper clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DONE)/demo ## triangles of a graph counted, a network's kernel before and after training; plots
	@MPLBACKEND=Agg $(BIN)/python -m examples.triangles
	@echo
	@MPLBACKEND=Agg $(BIN)/python -m examples.training

test: $(DONE)/test ## the test suite, and every example in the docstrings and the README
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

lint: $(DONE)/lint ## style, types, public docstrings, spelling, repository review
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/validate_docstrings.py
	$(BIN)/codespell
	$(BIN)/sp-repo-review . --show err

docs: $(DONE)/docs ## the documentation site, in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(DONE)/bench ## times, memory and errors on every array library here, some 10 minutes; MACHINE=name names the machine
	@$(BIN)/python -m benchmarks.asv._backends
	$(BIN)/python -m asv run --environment existing:$(BIN)/python --set-commit-hash "$$(git rev-parse HEAD)"
	@$(MAKE) --no-print-directory dashboard

dashboard: $(DONE)/bench ## the pages of all results so far, which need no network, in .asv/html
	$(BIN)/python -m asv publish --no-pull
	@echo ".asv/html: $(BIN)/python -m http.server --directory .asv/html"

bench-check: $(DONE)/bench ## the gate on regressions: errors, coverage and products spent, not times
	$(BIN)/python -m benchmarks.check

gpu: ## tests and times on this machine's GPU, by the python3 that is there (or PYTHON), in 8 minutes
	@$(or $(PYTHON),python3) -m benchmarks.gpu $(if $(COMPAT),--compat '$(COMPAT)')

targets: $(DONE)/bench ## errors, intervals, times and memory beside what they have to reach; ONLY=norms for one subject
	@$(BIN)/python -m benchmarks.targets $(ONLY)

peers: $(DONE)/bench ## accuracy, times and faults beside those of other libraries, each in an environment of its own
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers

dist-check: $(DONE)/dist ## wheel and sdist, installed in clean environments, used and type-checked
	$(BIN)/python tools/dist_check.py

paper: $(DONE)/paper ## the experiments of Hazelden (2025) and their figures; FULL=1 for 50 seeds
	@MPLBACKEND=Agg OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m examples.hazelden2025

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) .venv-peers output docs/_build docs/generated build dist .asv .hypothesis .mypy_cache .pytest_cache .ruff_cache .rumdl_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments -----------------------------------------------------------------------------

$(DONE)/venv:
	@set -e; python='$(PYTHON)'; \
	for candidate in python3 python3.13 python3.12 python3.11; do \
	  if [ -n "$$python" ]; then break; fi; \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "Making $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV) 2>/dev/null || { \
	  $$python -m venv --clear --without-pip $(VENV); \
	  $$python -m pip --python $(BIN)/python install --quiet pip; }
	@mkdir -p $(DONE) && touch $@

$(DONE)/torch: constraints.txt | $(DONE)/venv
	@echo "Installing torch into $(VENV)"
	@$(PIP) torch
	@touch $@

$(DONE)/test $(DONE)/bench $(DONE)/paper: $(DONE)/torch

$(DONE)/%: pyproject.toml constraints.txt | $(DONE)/venv
	@echo "Installing what 'make $*' needs into $(VENV) (a minute or two, once)"
	@$(PIP) --editable '.[$*]'
	@touch $@
