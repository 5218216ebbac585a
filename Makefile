# Needs GNU make, bash and Python 3.11-3.14 with venv; everything else goes into .venv.
#   make quickstart                 the bundled shard on the CPU, from nothing to sampled text
#   make quickstart EXTRA=cuda12    the same on a GPU (cuda13 for CUDA 13); later targets keep the choice
#   make test ARGS="-k packing"     ARGS goes to the program that the target runs
#   make setup PYTHON=python3.12    the Python that .venv is made from

PYTHON ?= python3
EXTRA ?= $(or $(shell cat .venv/extra 2>/dev/null),cpu)
ARGS ?=

SHELL := bash
.SHELLFLAGS := -o pipefail -c
PY := .venv/bin/python
# A file's tests stay together, since they share what they compile. ARGS="-n 0" runs all in one process.
PARALLEL := -n auto --maxprocesses=4 --dist=loadscope --no-loadscope-reorder
UV ?= .venv/bin/uv
EXTRAS := $(basename $(notdir $(wildcard requirements/*.txt)))
STAMP := .venv/installed-$(EXTRA)
COMMAND := .venv/bin/gptjax
INSTALLED := $(STAMP) $(COMMAND)
SIZE_cpu := 1.3 GB on the disk
SIZE_cuda12 := 3 GB to download, 6.0 GB on the disk
SIZE := $(or $(SIZE_$(EXTRA)),some GB on the disk)
PIP := $(PY) -m pip install --disable-pip-version-check
PROJECT := PYTHONWARNINGS=ignore $(PIP) --quiet --no-deps --no-build-isolation --editable .

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow mutants lint audit format lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20
	@sed -n 's/^#   /  /p' Makefile

setup: $(INSTALLED)  ## create .venv from the lock: once, and again when the lock changes

quickstart: $(INSTALLED)  ## train on the bundled shard: minutes on two CPU cores
	$(COMMAND) train quickstart $(ARGS)

test: $(INSTALLED)  ## run the tests, in up to 4 processes
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-slow: $(INSTALLED)  ## run the tests marked slow
	$(PY) -m pytest -m slow $(ARGS)

mutants: $(INSTALLED)  ## break the core line by line: which change does no test notice? about an hour
	$(PY) -m tests.mutants $(ARGS)

lint: $(INSTALLED)  ## check style, formatting, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(dir $(PY))lint-imports

audit: $(INSTALLED)  ## is a locked package known to be vulnerable? asks PyPI; seconds, also without a network
	$(PY) -m tests.audit $(ARGS)

format: $(INSTALLED)  ## reformat, and apply the fixes that are safe
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# Versions stay where pyproject.toml still allows them; UPGRADE=--upgrade takes the newest. One set of
# versions for every Python and machine, and the CUDA locks take theirs from the CPU lock. What listens
# on a port (serve) and what reads files from elsewhere (export) are locked, and audited, too.
COMPILE = $(UV) pip compile pyproject.toml --group dev --extra serve --extra export --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
	--quiet $(UPGRADE)
lock: $(if $(filter .venv/%,$(UV)),$(INSTALLED))  ## resolve pyproject.toml again into requirements/
	$(COMPILE) --output-file requirements/cpu.txt
	$(COMPILE) --extra cuda12 --constraint requirements/cpu.txt --output-file requirements/cuda12.txt
	$(COMPILE) --extra cuda13 --constraint requirements/cpu.txt --output-file requirements/cuda13.txt

clean:  ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Removed first and touched last, so that a set-up that fails is done again. pip --require-hashes takes
# only the very files that were locked; wheels only, so nothing has to be compiled.
$(STAMP): requirements/$(EXTRA).txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null || { \
	  echo 'gptjax needs Python 3.11 to 3.14 and "$(PYTHON)" is not one. Install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'The Python "$(PYTHON)" lacks venv or ensurepip. Install them (Debian, Ubuntu: apt install python3-venv) or name another Python: make PYTHON=python3.12 ...' >&2; exit 1; }
	@rm -f .venv/installed-*
	@# CUDA 12 and 13 do not live together: another choice starts from an empty .venv.
	@if [ -e .venv/extra ] && [ "$$(cat .venv/extra)" != $(EXTRA) ]; then rm -rf .venv; fi
	@echo 'Setting up .venv from requirements/$(EXTRA).txt: $(SIZE); minutes, and only this once.'
	$(PYTHON) -m venv .venv
	@echo $(EXTRA) > .venv/extra
	$(PIP) --progress-bar off --only-binary :all: --require-hashes -r $< | $(PY) requirements/show_progress.py $<
	$(PROJECT)
	@touch $@
	@echo 'Done: .venv/bin/gptjax --help'

$(COMMAND): | $(STAMP)  # missing where .venv is older than the command
	$(PROJECT)

requirements/%.txt:
	@echo 'EXTRA=$*: choose one of $(EXTRAS)' >&2; exit 1
