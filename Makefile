# `make` alone lists the commands. Every command sets up what it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
STARTED := $(shell date +%s)
SOURCES := foundation curation training pretrain eval experiments benchmarks text_lm satellite scripts tests

# else every process that a test starts compiles the sources of torch and its kin again: 12 s each
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-all gpu lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

# the stamp is written last: an interrupted installation runs again, and a .venv that does not work is made anew
$(STAMP): pyproject.toml constraints.txt requirements.lock scripts/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
		{ rm -rf $(VENV); echo "error: no .venv could be made; on Debian, apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python scripts/install.py
	@touch $@

install: $(STAMP)  ## make the environment in .venv, at the versions of requirements.lock (a minute on a near mirror)

demo: $(STAMP)  ## curate 6,900 real pictures on this machine and write a report (a few minutes)
	$(BIN)/python scripts/demo.py

# one thread for each of the two processes: OpenMP threads that share a core spin for each other, 30 times slower;
# kernels are compiled once, while mypy works, and the slowest files come first (tests/conftest.py)
test: $(STAMP)  ## lint, types, and all quick tests
	@sh scripts/install_test_tools.sh chromium
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/compile_kernels.py & compiling=$$!; \
		$(MAKE) --no-print-directory lint; found=$$?; wait $$compiling && exit $$found
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)  ## the slow tests too
	@sh scripts/install_test_tools.sh chromium slurm
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m ''

# the minutes count from here, the installation included
gpu: $(STAMP)  ## prove all claims on an NVIDIA GPU within 40 minutes; STEPS=kmeans,pretrain and MINUTES=20 choose
	$(BIN)/python scripts/gpu_check.py --since=$(STARTED) $(if $(STEPS),--steps=$(STEPS)) $(if $(MINUTES),--minutes=$(MINUTES))

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## remove the environment and all caches; results in runs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
