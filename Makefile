# All targets set up their own environment; they need only python3 (3.10 or newer) with pip.
# The README mentions `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KERNEL := src/qmamba/ops/native
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-slow lower-bounds gpu-check lint wheel wheels docs docs-figures clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed $(VENV)/.kernel  ## Score the photographs in examples/ with the embedded model
	$(BIN)/qmamba score examples --format table

# Two processes with one thread each, since every process takes about two gigabytes of memory.
test: $(VENV)/.installed-test $(VENV)/.kernel  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

# A file or two of each part, without what trains in several processes.
QUICK := metrics protocol images images_formats models heads route_gate selective_scan checkpoint scorer \
         golden_scores quality_map adapters adapter_files data splitting engine features cli \
         pyiqa_shape loda

test-quick: $(VENV)/.installed-test $(VENV)/.kernel  ## Run a few tests of each part, in under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -k "not _processes" -n 2 --dist worksteal $(QUICK:%=tests/test_%.py)

test-slow: $(VENV)/.installed-test $(VENV)/.kernel  ## Run the tests that take more than a minute each
	$(BIN)/python -m pytest -m slow

# Needs Python 3.10 or 3.11. TORCH=2.13.0 holds torch at another version than its lower bound, a CUDA build of gigabytes.
LOWER        := .venv-lower-bounds
LOWER_EXTRAS := train,plot,parquet,lora,heif,data,integrations,service
LOWER_TESTS  := cli scorer scorer_loading images_formats cli_data cli_seeing tables torchmetrics engine adapter_scorer service
lower-bounds:  ## Run tests with the oldest dependencies that pyproject.toml allows, in a fresh environment
	$(PYTHON) -m venv --clear $(LOWER)
	$(PYTHON) tools/lower_bounds.py --extras $(LOWER_EXTRAS) $(if $(TORCH),--torch $(TORCH)) > $(LOWER)/bounds.txt
	$(LOWER)/bin/python -m pip install --quiet --constraint $(LOWER)/bounds.txt torch
	$(LOWER)/bin/python -m pip install --quiet --constraint $(LOWER)/bounds.txt -e .
	$(LOWER)/bin/qmamba score examples --format csv
	$(LOWER)/bin/python -m pip install --quiet --constraint $(LOWER)/bounds.txt -e ".[$(LOWER_EXTRAS)]" \
	  pytest==8.0 httpx==0.26 hypothesis==6.100
	OMP_NUM_THREADS=1 $(LOWER)/bin/python -m pytest -q -m "not slow" $(LOWER_TESTS:%=tests/test_%.py)

gpu-check:  ## Check and time the kernels on a GPU, with the torch, triton and transformers of $(PYTHON)
	@$(PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu-check needs a GPU, and this torch (" + torch.__version__ + ") sees none")'
	@$(PYTHON) -c 'import pytest, scipy, transformers, triton' || { echo "make gpu-check needs pytest, scipy, transformers and triton in the environment of PYTHON=$(PYTHON)"; exit 1; }
	PYTHONPATH=src $(PYTHON) -m pytest $$($(PYTHON) -c 'import xdist; print("-n 8 --dist worksteal")' 2>/dev/null) tests/test_gpu.py
	PYTHONPATH=src:benchmarks $(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

lint: $(VENV)/.installed-dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

wheel: $(VENV)/.installed-test  ## Build the wheel for this machine into dist/
	$(BIN)/python -m build --wheel

wheels: $(VENV)/.installed-wheels  ## Build the wheels for all platforms into dist/, and check them
	$(BIN)/python tools/make_wheels.py dist
	$(BIN)/python tools/check_wheels.py dist

docs: $(VENV)/.installed-docs  ## Build the documentation into site/; broken links are errors
	$(BIN)/python docs/make_site.py

docs-figures: $(VENV)/.installed-dev  ## Regenerate the documentation's figures and accuracy tables from real scores
	$(BIN)/python docs/make_figures.py
	$(BIN)/python docs/make_tables.py

clean:  ## Remove the environment and all build outputs
	rm -rf $(VENV) build dist site $(KERNEL)/*.so $(KERNEL)/*.dylib $(KERNEL)/*.dll

# Stamp files: a step is repeated only when its inputs have changed.

# Some systems ship venv without pip; then the system pip installs it.
$(VENV)/.created:
	@echo "Creating $(VENV) and installing PyTorch; this takes a few minutes the first time"
	@$(PYTHON) -c 'import sys; sys.exit("qmamba needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV) \
	  && $(PYTHON) -m venv --without-pip $(VENV) \
	  && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

# torch first and alone, so that no other package chooses its version.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) torch
	@touch $@

# Build the kernel in place. Without a compiler it is omitted, and every run prints one line about it.
$(VENV)/.kernel: $(VENV)/.torch $(wildcard $(KERNEL)/*.[ch]) $(KERNEL)/build.py
	@$(BIN)/python $(KERNEL)/build.py --optional && touch $@ || true

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-wheels: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[wheels]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[docs]"
	@touch $@ $(VENV)/.installed
