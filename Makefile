# make demo: everything from nothing to results/report.html.  make test: the whole test suite.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= config.yaml
# Where torch comes from besides PyPI. Without an NVIDIA GPU this is the index of CPU builds, which saves gigabytes of
# CUDA; with one it is empty, and PyPI's CUDA build is taken. Override it for another build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH_INDEX ?= $(shell nvidia-smi -L >/dev/null 2>&1 || echo https://download.pytorch.org/whl/cpu)
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
RESULTS = $(shell $(BIN)/python -c "import yaml; print(yaml.safe_load(open('$(CONFIG)'))['results'])")
INSTALLED := $(VENV)/.installed

.PHONY: demo test install lint format

demo: $(INSTALLED)
	$(BIN)/snakemake all --configfile $(CONFIG)
	@echo "$(CURDIR)/$(RESULTS)/report.html"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

install: $(INSTALLED)

# torch first and by itself: a range that a newer release satisfies would fetch that one, with CUDA
$(INSTALLED): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'symscale needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --retries 1 "$(TORCH)" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-test: $(INSTALLED)
	$(BIN)/python -m pip install -e ".[test]"
	touch $@

lint: $(VENV)/.installed-test
	$(BIN)/python -m pip install -e ".[dev]"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile workflow

format:
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/snakefmt Snakefile workflow

