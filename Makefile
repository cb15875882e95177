# onceflow: `make` alone explains the targets.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(or $(shell for p in python3.12 python3.11 python3; do \
  $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit check format soak bench bench-peers lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: .venv/.ready ## create .venv with locked packages (CPython 3.11 or 3.12; PYTHON=... to choose)

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c '$(FITS)' || { \
	  echo "onceflow needs CPython 3.11 or 3.12 (Bytewax has no wheels for others); $(PYTHON) is" \
	       "$$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 setup" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the main job on a real Kafka, one cell killed half-way; shows what happened (under 3 minutes)
	@$(BIN)/onceflow demo

test: setup ## all tests, on a real Kafka that they start themselves (some 25 minutes)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not soak"

unit: setup ## the tests that need no Kafka and search no random schedules (under a minute)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not kafka and not crash and not schedules"

check: setup ## lint, format and types: what CI runs before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: setup ## random faults on two and three cells for two hours, then the tests too long for `make test`
	$(BIN)/python -m tests.crash.soak
	$(BIN)/python -m tests.crash.soak --flow effects --minutes 30
	$(BIN)/python -m tests.crash.soak --flow mixed --minutes 30
	$(BIN)/python -m pytest -n 2 --dist worksteal -m soak

bench: setup ## every benchmark, and its table (over an hour; `python -m benchmarks --help` for one alone)
	$(BIN)/python -m benchmarks all --json reports
	$(BIN)/python -m benchmarks table reports

bench-peers: setup ## durable runs beside DBOS and Restate, which are installed into a cache (20 minutes)
	$(BIN)/python -m benchmarks peers

lock: ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header -o requirements.lock

clean: ## remove .venv, state and demo files
	rm -rf .venv state recovery demo reports
