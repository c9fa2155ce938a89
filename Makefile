# Daily work. Everything runs in .venv, which the first target that needs it makes;
# nothing has to be installed or activated before, beyond python3 (3.11 or newer) and make.

## make chat      talk with the default model; the first time installs and downloads it
## make test      all tests; those of the real model too, where it can be fetched
##                (WITH: packages to install beside, torch and triton for the tests of GPU kernels;
##                PYTEST_XDIST_AUTO_NUM_WORKERS: processes to run them, else one per core, up to 4)
## make check     format, lint, types, generated documentation: what a change must pass
## make fmt       format the code and mend what the linter can
## make docs      write the generated documentation (docs/cli.md, docs/config.md)
## make goldens   compare the golden logits with transformers (MODE=--write: write them anew)
## make bench     speed against llama.cpp (LLAMA_PYTHON: an interpreter with llama-cpp-python)
## make clean     remove .venv and everything else that can be made again

PYTHON ?= python3
MODEL ?= smollm2-135m
PYTEST_ARGS ?=
# tests of one file share what is slow to make, so a process keeps to neighbours
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
WITH ?=
BENCH_ARGS ?=
LLAMA_PYTHON ?= python3
MODE ?= --check

VENV := .venv
GOLDENS_VENV ?= .venv-goldens
BIN := bin
ifeq ($(OS),Windows_NT)
BIN := Scripts
endif
PY := $(VENV)/$(BIN)/python
STEM := $(VENV)/$(BIN)/stem-local
CHAT := $(VENV)/$(BIN)/stem-chat
MADE := $(VENV)/.made
CORE := $(VENV)/.core
TEST := $(VENV)/.test
DEV := $(VENV)/.dev
GOLDENS := $(GOLDENS_VENV)/.made

# A PYTHONPATH or PYTHONHOME of the caller's would reach into the environment.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help chat model test check fmt docs goldens bench clean

help:
	@sed -n 's/^## //p' Makefile

chat: model
	@$(CHAT) --model $(MODEL)

model: $(CORE)
	@$(STEM) show $(MODEL) >/dev/null 2>&1 || $(STEM) pull $(MODEL)

test: $(TEST)
	@if $(PY) -m tests.real_model >/dev/null; then \
	  $(PY) -m pytest $(PARALLEL) $(PYTEST_ARGS); \
	else \
	  echo "The real model could not be fetched: the tests that need it are left out."; \
	  $(PY) -m pytest -m "not real_model" $(PARALLEL) $(PYTEST_ARGS); \
	fi

check: $(DEV)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) docs/generate_cli.py --check
	$(PY) docs/generate_config.py --check
	$(PY) docs/generate_gpu.py --check

fmt: $(DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(CORE)
	$(PY) docs/generate_cli.py
	$(PY) docs/generate_config.py

goldens: $(GOLDENS)
	$(GOLDENS_VENV)/$(BIN)/python tests/goldens/make_goldens.py $(MODE)

bench: $(TEST)
	gguf=$$($(PY) -m tests.real_model) && \
	$(PY) benchmarks/vs_llamacpp.py --gguf "$$gguf" --llama-python $(LLAMA_PYTHON) $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .venv-goldens build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp stands for one pip call; it is repeated only when pyproject.toml changes.

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "STEM Local needs Python 3.11 or newer; name one with make PYTHON=...")'
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(CORE): $(MADE) pyproject.toml
	@echo "Installing STEM Local into $(VENV)"
	@$(PY) -m pip install -qq --editable .
	@touch $@

$(TEST): $(CORE)
	@echo "Installing what the tests need"
	@$(PY) -m pip install -qq $(WITH) --editable '.[test]'
	@touch $@

$(DEV): $(CORE)
	@echo "Installing the formatter, linter and type checker"
	@$(PY) -m pip install -qq --editable '.[dev]'
	@touch $@

$(GOLDENS): tests/goldens/requirements.txt
	@echo "Making $(GOLDENS_VENV), with torch and transformers"
	@$(PYTHON) -m venv $(GOLDENS_VENV)
	@$(GOLDENS_VENV)/$(BIN)/python -m pip install -qq -r tests/goldens/requirements.txt
	@touch $@
