# make demo    set up and profile two models          make test      lint, types, all tests, memory
# make test-cpu  a smaller run on an older, CPU torch make bench     speed, as ratios
# Choose the places: make VENV=/tmp/venv PYTHON=python3.12 test

PYTHON   ?= python3
WORKERS  ?= 2
VENV     ?= .venv
VENV_CPU ?= .venv-cpu
BIN       = $(VENV)/bin
EXTRAS_CPU = hf,plan,test
SHELL     = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DEFAULT_GOAL = help
MAKEFLAGS += --no-print-directory

# No question on a terminal, no network but the package index, and no more threads than a small machine has.
export PIP_NO_INPUT = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup setup-cpu demo test test-cpu lint types format bench pictures clean

help:
	@sed -n '1,3s/^# //p' Makefile

# $(call install,venv,constraints,extras): setuptools first, so that the build needs no second download of it.
define install
@echo "setting up $(1): several minutes the first time, once"
@$(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip install -qq -c $(2) setuptools
@$(1)/bin/python -m pip install -qq -c $(2) --no-build-isolation -e '.[$(3)]'
@touch $(1)/.set-up
endef

$(VENV)/.set-up: pyproject.toml constraints/common.txt constraints/cuda.txt
	$(call install,$(VENV),constraints/cuda.txt,dev)

$(VENV_CPU)/.set-up: pyproject.toml constraints/common.txt constraints/cpu.txt
	$(call install,$(VENV_CPU),constraints/cpu.txt,$(EXTRAS_CPU))

setup: $(VENV)/.set-up ; @:
setup-cpu: $(VENV_CPU)/.set-up ; @:

demo: setup
	@echo; echo '$$ dnnmem profile sample_models/gpt.py --batch 8 --device fake --gpu rtx-4090-24gb'
	@$(BIN)/dnnmem profile sample_models/gpt.py --batch 8 --device fake --gpu rtx-4090-24gb
	@echo; echo '$$ dnnmem profile torchvision:resnet50 --batch 32 --device fake --gpu h100-sxm-80gb'
	@$(BIN)/dnnmem profile torchvision:resnet50 --batch 32 --device fake --gpu h100-sxm-80gb

lint: setup
	@echo "ruff"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "not formatted: run make format"; exit 1; }

# mypy cannot follow the import hook of an editable install, so it reads a copy; its messages name the copied files.
types: setup
	@echo "mypy --strict"
	@rm -rf build/check build/lib
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --target build/check .
	@rm -rf build/lib
	@MYPYPATH=build/check $(BIN)/mypy --strict -p dnnmem

# A worker that died is not replaced: with a file's tests kept together, pytest-xdist waits for ever then.
test: lint types
	@echo "pytest"
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart=0
	@echo "dnnmem check"
	@$(BIN)/dnnmem check --quiet --require-baseline

test-cpu: setup-cpu
	@echo "pytest, on the torch of constraints/cpu.txt"
	@$(VENV_CPU)/bin/pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart=0 tests/cli tests/estimator tests/profilers tests/sample_models tests/test_doctests.py
	@echo "dnnmem check, on the torch of constraints/cpu.txt"
	@$(VENV_CPU)/bin/dnnmem check --quiet --require-baseline

format: setup
	@$(BIN)/ruff check -q --fix . || true
	@$(BIN)/ruff format -q .

bench: setup
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/profile_speed.py
	@$(BIN)/python benchmarks/virtual_speed.py
	@$(BIN)/python benchmarks/simulate_speed.py

# The pictures of README.md and docs, from real runs; needs Playwright and a Chromium.
pictures: setup
	@$(BIN)/python benchmarks/pictures.py

clean:
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
