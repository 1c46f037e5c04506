# Two commands do everything: `make train` and `make test`. Each sets up its own environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Where a working NVIDIA driver is found, CuPy for its CUDA release is installed too.
CUDA_MAJOR := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA [A-Z ]*Version: *\([0-9]*\).*/\1/p')
CUDA_EXTRA := $(if $(CUDA_MAJOR),$(shell [ $(CUDA_MAJOR) -ge 13 ] && echo ,cuda13 || echo ,cuda12))

.PHONY: help train test test-all test-orders lint format bench fuzz docs gpu-check clean

help:
	@echo "make train      train LeNet on MNIST (ARGS='--epochs 1' passes options on)"
	@echo "make test       run the tests"
	@echo "make test-all   run the tests, the long sweeps too"
	@echo "make test-orders  run the kernels' tests with every check, in three orders of blocks and threads"
	@echo "make lint       check style, types and what imports what"
	@echo "make format     format the code"
	@echo "make bench      run the benchmarks"
	@echo "make fuzz       try 6,700 damaged and hostile inputs, at most 20 minutes"
	@echo "make docs       build the documentation into site/"
	@echo "make gpu-check  on a machine with a GPU: test, train and time on it, write a report"
	@echo "make clean      remove the environment and caches"

$(VENV)/python-is-new-enough:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gpuconv needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python-is-new-enough pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[viz$(CUDA_EXTRA)]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/python-is-new-enough pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev$(CUDA_EXTRA)]'
	@touch $@ $(VENV)/installed

train: $(VENV)/installed
	$(BIN)/gpuconv train $(ARGS)

# As many processes as there are cores, at most four; a file's tests stay in one process and share what they set up.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)

test-all: $(VENV)/installed-dev
	$(PYTEST) -m '' $(ARGS)

# Those that build kernels without running them, and those of broken kernels, have nothing to check.
UNCHECKED := build lock mma_code registers

test-orders: $(VENV)/installed-dev
	for order in forward reverse shuffled; do \
		GPUCONV_TEST_CHECKED=$$order $(PYTEST) -m '' \
			$(UNCHECKED:%=--ignore=tests/kernels/test_kernels_%.py) \
			--ignore-glob="*/test_mutations*.py" tests/kernels $(ARGS) || exit 1; \
	done

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	$(BIN)/python -m pytest benchmarks $(ARGS)

fuzz: $(VENV)/installed-dev
	$(BIN)/python tests/fuzz/fuzz.py $(ARGS)

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

# Another stamp than the tests': the driver may have come after the environment was made.
$(VENV)/installed-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev$(CUDA_EXTRA)]'
	@touch $@

gpu-check: $(if $(CUDA_EXTRA),$(VENV)/installed-gpu,$(VENV)/installed-dev)
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
	find gpuconv benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
