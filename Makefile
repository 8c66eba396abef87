.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEPLOYMENT := $(VENV)/.deployment
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python

# Two processes, for these tests mostly wait; which tests stay together says tests/conftest.py.
IN_GROUPS = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test ray integration pythons test-all chaos test-rabbitmq slow deployment browser examples unit lint house bench bench-quick bench-ratio scale foreign foreign-quick sdk docs lock clean
# Tests share the machine's cores and its Ray: one target at a time, also with -j.
.NOTPARALLEL:

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(STAMP)  ## Create the environment in .venv

$(STAMP): $(wildcard requirements/*.txt) pyproject.toml
	@echo "installing into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt
	@$(INSTALL) --require-hashes --no-build-isolation -r requirements/development.txt
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# Apart, since they are large and nothing else needs them.
$(DEPLOYMENT): $(STAMP) requirements/deployment.txt
	@echo "installing the checks of Dockerfile and chart"
	@$(INSTALL) --require-hashes -r requirements/deployment.txt
	@touch $@

demo: $(STAMP)  ## Deploy a digits classifier on Ray Serve and pre-annotate 899 images; KEEP=1 leaves the live page open
	@$(BIN)/synapse-worker demo $(if $(KEEP),--keep)

lint: $(STAMP) house  ## Style, types, import rules and the rules of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }

house: $(STAMP)  ## Layout, public docstrings, words, modules that pages name, and commands in pages
	@failed=0; for check in layout docstrings words pages commands; do \
		$(BIN)/python -m tools.check_$$check || failed=1; done; exit $$failed

unit: $(STAMP)  ## Unit tests alone: no network, no processes
	@$(BIN)/pytest tests/unit -n auto

# Unit tests first: quick, before any Ray takes its share of the machine, and in a process of their own, for the
# Ray library reads once whether clusters ask for a token. `coverage report` shows what they leave out.
test: lint docs  ## Lint, pages, unit tests with coverage and integration tests (real Redis, Celery and Ray); SEED=… as for chaos
	@$(BIN)/pytest tests/unit -n auto --cov --cov-report=
	@$(MAKE) --no-print-directory integration

integration: $(STAMP)  ## Integration tests alone: real Redis, Celery and Ray
	@CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos tests/integration $(IN_GROUPS) --durations 10

chaos: $(STAMP)  ## Kill workers at every point, Redis, backend and agent; SEED=… repeats a run
	@CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos tests/integration/broker tests/integration/logs \
		tests/integration/workflows/test_updates.py \
		tests/integration/plugins/test_bad_plugins.py tests/integration/safety/test_deadly_plugin.py \
		tests/integration/cli/test_demo.py::test_ctrl_c_ends_every_process_of_the_demo $(IN_GROUPS) \
		-m "chaos or not chaos" -v -rA --durations 20

# What has no broker at all is the same with either, and so is left out.
test-rabbitmq: $(STAMP)  ## Integration and chaos tests with RabbitMQ as the broker, where it is installed; SEED=… as for chaos
	@CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos tests/integration/workflows tests/integration/safety \
		tests/integration/monitoring tests/integration/console tests/integration/broker/test_rabbitmq.py \
		tests/integration/plugins/test_bad_plugins.py $(IN_GROUPS) --broker rabbitmq \
		-m "(chaos or not chaos) and not examples and not browser" -rA --durations 20

slow: $(STAMP)  ## Integration tests that take long and are in none of the others: secrets everywhere, idle connections, kept traces
	@$(BIN)/pytest tests/integration $(IN_GROUPS) -m slow -v -rs

deployment: $(DEPLOYMENT)  ## Check Dockerfile, compose file and chart, and run their commands and health checks
	@$(BIN)/pytest tests/integration/deployment -m "deployment or not deployment" -rs

browser: $(STAMP)  ## The live page and Flower in a real Chromium: every view, size and colour scheme
	@$(BIN)/pytest tests/integration/console tests/integration/monitoring/test_flower.py \
		-m "browser or not browser" -rs

ray: $(STAMP)  ## What runs on a real Ray: by Ray Client, updates without a lost request, a trace to the model, logs of jobs
	@$(BIN)/pytest tests/integration $(IN_GROUPS) -m ray -v -rs

examples: $(STAMP)  ## Deploy every release under examples/plugins on a real Ray, and call it
	@$(BIN)/pytest tests/integration/workflows/test_examples.py -m examples

pythons: $(STAMP)  ## Unit tests on each newer Python that is found, integration tests on the newest
	@$(BIN)/python -m tools.pythons

test-all: test chaos test-rabbitmq slow ray examples sdk deployment browser pythons  ## Everything: these, each part where what it needs is found

bench: $(STAMP)  ## Measure, as ratios against bare loops and libraries; a table, JSON and a picture
bench-quick: $(STAMP)  ## What has a goal, with small counts: under three minutes
bench-quick: OPTIONS = --quick
bench bench-quick:
	@$(BIN)/python benchmarks/bench.py $(OPTIONS)

bench-ratio: $(STAMP)  ## One of them, for the log of CI: annotating by file against a bare loop; seconds
	@$(BIN)/python benchmarks/annotate.py --only file-20

scale: $(STAMP)  ## Measure the costs that docs/scale.md derives from, and write its tables
	@$(BIN)/python benchmarks/scale_costs.py --write
	@$(BIN)/python benchmarks/simulate.py --write

sdk: $(STAMP)  ## The published SDK: its templates on a sandbox, its Ray client beside ours (needs Python 3.12)
	@$(BIN)/pytest tests/integration/ray_client tests/integration/sdk -m sdk -rs

foreign: $(STAMP)  ## The tests of celery and kombu on this transport and on the stock one, compared
foreign-quick: $(STAMP)  ## The same without celery's canvas, and on threads alone
foreign-quick: OPTIONS = --quick
foreign foreign-quick:
	@$(BIN)/python -m tests.foreign $(OPTIONS)

# By `python -m`, so that its hook finds `tools`. A broken link fails.
docs: $(STAMP)  ## The pages of docs/ and the reference, which is made from the code, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean
	@echo "site/index.html"

# Versions stay as they are compiled already, unless FLAGS has --upgrade or --upgrade-package NAME.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(FLAGS)

lock: $(STAMP)  ## Compile requirements/ anew from pyproject.toml; FLAGS=--upgrade takes newer versions
	@$(LOCK) --all-extras --group build pyproject.toml --output-file requirements/development.txt
	@$(LOCK) --extra worker --extra traces --group build pyproject.toml --constraint requirements/development.txt \
		--output-file requirements/worker.txt
	@$(LOCK) --extra worker --extra traces --extra sandbox pyproject.toml --constraint requirements/development.txt \
		--output-file requirements/sandbox.txt
	@$(LOCK) --group deployment --constraint requirements/development.txt \
		--output-file requirements/deployment.txt
	@$(LOCK) --group bootstrap --constraint requirements/development.txt --output-file requirements/bootstrap.txt

clean:  ## Remove the environment and what tools leave behind
	@rm -rf $(VENV) .venv-* site .foreign .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info \
		.lint-imports.log .coverage .coverage.*
