.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test chaos unit lint bench sdk docs lock clean house

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## Create the environment in .venv

$(STAMP): requirements.txt pyproject.toml
	@echo "installing into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet "uv>=0.13,<1"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(STAMP)  ## Deploy a digits classifier on Ray Serve and pre-annotate 899 images with it
	@$(BIN)/synapse-worker demo

lint: $(STAMP)  ## Style, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }

house: $(STAMP)  ## Layout, public docstrings, words, and modules that pages name
	@failed=0; for check in layout docstrings words pages; do \
		$(BIN)/python -m tools.check_$$check || failed=1; done; exit $$failed

unit: $(STAMP)  ## Unit tests alone: no network, no processes
	@$(BIN)/pytest tests/unit -n auto

# Unit tests first: quick, before any Ray takes its share of the machine, and in a process of their own, for the
# Ray library reads once whether clusters ask for a token.
test: lint  ## Lint, unit tests and integration tests (real Redis, Celery and Ray); SEED=… as for chaos
	@$(BIN)/pytest tests/unit -n auto
	@CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos tests/integration

chaos: $(STAMP)  ## Kill workers at every point, Redis, backend and agent; SEED=… repeats a run
	@CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos tests/integration/broker tests/integration/logs -m "chaos or not chaos" -rA

bench: $(STAMP)  ## Measure, as ratios against bare loops and libraries
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

sdk: $(STAMP)  ## Compare the Ray client with the published platform client (needs Python 3.12)
	@$(BIN)/pytest tests/integration/ray_client -m sdk -rs

docs: $(STAMP)  ## Reference pages of what others import, in site/
	@$(BIN)/pdoc --docformat markdown --output-directory site shared worker.actions worker.platform
	@echo "site/index.html"

lock: $(STAMP)  ## Compile requirements.txt anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.txt

clean:  ## Remove the environment and what tools leave behind
	@rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info .lint-imports.log
