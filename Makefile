# Every target sets itself up on a fresh machine that has make and Python 3.11 or newer with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test faults fuzz chaos bench check clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(INSTALLED)  ## voxmill and its tools, at the tested versions, into .venv

demo: $(INSTALLED)  ## the whole way on this machine: speech in, tokens out
	$(BIN)/voxmill demo --force

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest -q

faults: $(INSTALLED)  ## the fault matrix with its heavy rows, and its table
	$(BIN)/python -m pytest -q tests/faults --heavy

FUZZ_S ?= 300
fuzz: $(INSTALLED)  ## all that reads what others wrote, with fresh inputs for FUZZ_S seconds
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

CHAOS_S ?= 900
chaos: $(INSTALLED)  ## many faults at once for CHAOS_S seconds, judged by the store's history; CHAOS_SEED=N draws the same again
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_S) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

bench: $(INSTALLED)  ## all benchmarks, about an hour on a quiet machine; their table goes to build/bench
	$(BIN)/python -m infra.bench $(BENCH)

check: $(INSTALLED)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## what the targets left behind; .venv stays
	rm -rf build dist demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# A venv that is already there is kept and brought up to date. pip is asked for, not python, since a venv whose
# making broke off has python alone. The stamp comes last, so an install that failed is done again. -qq: errors only.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing voxmill into $(VENV): 1 to 3 minutes and 2 GB the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
