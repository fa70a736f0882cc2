PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests wait more than they compute. A broker that is given has one virtual host, which they could not share.
SIDE_BY_SIDE := $(if $(RABBITMQ_URL),,-n 3 --dist worksteal)

.DEFAULT_GOAL := help
.PHONY: help setup setup-servers demo test faults check bench coverage clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  With another interpreter: make setup PYTHON=python3.12"

setup: $(READY) ## Make .venv with the project and its development tools

# Without build isolation nothing is downloaded once everything is there, so this also works offline.
$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make setup PYTHON=python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'setuptools>=77'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

setup-servers: setup ## Install the RabbitMQ that the tests start, where that needs no question
	@if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; then \
		exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing rabbitmq-server for the tests"; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update && RUNLEVEL=1 apt-get install --yes --no-install-recommends rabbitmq-server; } >/dev/null \
			|| echo "rabbitmq-server could not be installed; tests that need it will say so" >&2; \
	fi

demo: setup ## From nothing to a first result, in one command
	@$(BIN)/customer-actors demo

test: check setup-servers ## Everything that must hold: check, then all tests
	$(BIN)/pytest $(SIDE_BY_SIDE) --ignore=tests/faults
	$(BIN)/pytest tests/faults

faults: setup setup-servers ## Inject every fault of docs/guarantees.md; SEED=n replays a run, OUTAGE_S=600 makes outages ten minutes long
	FAULTS=all FAULTS_TABLE=build/faults.txt RECONNECTS=$(or $(RECONNECTS),200) $(if $(SEED),SEED=$(SEED)) \
		$(BIN)/pytest -q tests/faults tests/e2e/test_nights.py tests/scheduler tests/actors/test_reconnects.py

check: setup ## Style, types and the direction of the arrows
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup setup-servers ## Measure the pipeline beside its peers in one run; about forty minutes (BENCH=--quick: four)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks $(BENCH)

coverage: setup setup-servers ## All tests, and the lines and branches they leave out
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

clean: ## Remove everything made here, .venv included; databases stay
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
