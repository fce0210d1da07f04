# Commands for a newcomer, each in a virtual environment of its own made from a bare python3.
# An environment is brought up to date when pyproject.toml or constraints.txt has changed; `rm -rf .venv` starts afresh.
# Another interpreter or more processes for the tests: make test PYTHON=python3.12 WORKERS=8

PYTHON ?= python3
WORKERS ?= 2
BACKENDS := jax tensorflow torch
BIN := .venv/test/bin

# The settings in a user's ~/.keras (float type, backend) are not ours.
export KERAS_HOME := $(CURDIR)/.venv/keras
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo docs test lint wheel $(BACKENDS:%=test-%)
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo   train a Mamba-2 classifier on handwritten digits, save it, and load it in a new process"
	@echo "make test   run the style checks, every test on JAX, TensorFlow and PyTorch, the site and the tests of the wheel"
	@echo "make docs   build the site of the documentation in build/site"

demo: .venv/demo/ready
	KERAS_BACKEND=jax .venv/demo/bin/dl-mamba demo

test: lint docs $(BACKENDS:%=test-%) wheel

lint: .venv/test/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Tests are small: one thread for each of the workers is faster than workers that compete for the cores.
$(BACKENDS:%=test-%): test-%: .venv/test/ready
	KERAS_BACKEND=$* OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 \
	    $(BIN)/pytest -q -n $(WORKERS) --dist worksteal

# Without a network; the notice of mkdocs-material is about the plans of its authors.
docs: .venv/docs/ready
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml

wheel: .venv/test/ready
	KERAS_BACKEND=jax $(BIN)/pytest -q tests/wheel_check.py

.venv/demo/ready: EXTRAS := demo
.venv/docs/ready: EXTRAS := docs
.venv/test/ready: EXTRAS := demo,tensorflow-cpu,torch,export,bench,dev

# Asked once more: a registry that fails for a moment leaves pip without any version of a package.
install = $(1)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"

.venv/%/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dl-mamba needs Python 3.11 or newer; $(PYTHON) is " \
	    + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D)
	$(call install,$(@D)) || $(call install,$(@D))
	@touch $@
