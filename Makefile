# Two commands: `make demo` shows what the package does, `make test` proves it. `make help` lists the rest.
# Everything goes into .venv; nothing needs root. Another Python: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(wildcard CMakeLists.txt csrc/*/*)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Threads that wait must sleep: spinning ones slow each other down 10 times where anything else runs on the same cores.
export OMP_WAIT_POLICY ?= PASSIVE

# Processes that run tests at once: a number, or one for each core.
WORKERS ?= logical

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-torch witnesses versions lint format types docs native bench sanitize clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/native.stamp ## Train on digits, evaluate, predict; writes demo/ (a few minutes)
	$(BIN)/vmamba demo

test: $(VENV)/native.stamp ## Lint, format check, types, documentation, layering, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BUILD_DOCS)
	$(BIN)/python -m pytest -rs -n $(WORKERS) --maxprocesses 4 --dist worksteal tests

test-long: $(VENV)/native.stamp ## What takes many minutes: random kills, large trees, whole trainings
	$(BIN)/python -m pytest -s -m endless tests

# The oldest torch that is declared runs what must work with every one, the others everything. The named models' numbers
# are left out: the small networks' tell as much of torch.
OLDEST := 2.6.0
EVERY_TORCH := tests/test_every_torch.py tests/test_torch_names.py tests/test_surroundings.py tests/scan/test_parity.py \
  tests/models/test_parity.py --deselect tests/models/test_parity.py::test_named_model
test-torch: ## Test with another torch: make test-torch VERSION=2.11.0 [TESTS=tests/scan] (VERSION=2.6.0: what must work)
	tools/test_torch.sh $(or $(VERSION),$(OLDEST)) -n $(WORKERS) --maxprocesses 4 --dist worksteal \
	  $(or $(TESTS),$(if $(filter $(OLDEST),$(or $(VERSION),$(OLDEST))),$(EVERY_TORCH),tests))

witnesses: $(VENV)/venv.stamp ## Install mamba-ssm, a client of it and OpenMMLab's libraries into build/witnesses; without, their tests skip
	@PYTHON=$(BIN)/python tools/witnesses.sh

versions: $(VENV)/native.stamp ## Test with every torch of docs/versions.md and write its table (an hour on two cores)
	LOWEST=1 MADE_BY="make versions" tools/test_torch.sh $(OLDEST) $(EVERY_TORCH)
	MADE_BY="make versions" tools/test_torch.sh 2.11.0 tests
	$(BIN)/python tools/versions.py "make versions" tests

lint: $(VENV)/native.stamp ## Lint and format check only
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/native.stamp ## Rewrite the sources in the house's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/native.stamp ## Check types only
	$(BIN)/mypy

docs: $(VENV)/native.stamp ## Build the documentation into build/site, strictly
	$(BUILD_DOCS)

# The variable leaves out a notice about versions to come.
BUILD_DOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

native: ## Build the C++ core again, whether or not it changed
	@rm -f $(VENV)/native.stamp
	@$(MAKE) --no-print-directory $(VENV)/native.stamp

bench: $(VENV)/native.stamp ## Correctness checks, error and speed of every scan backend here
	$(BIN)/vmamba backends --check

# The sanitizer's runtime must be the first library of the process, and libstdc++ with it, else it cannot see exceptions.
# Its allocator is slower and keeps freed memory for a while, and Python never frees all: hence no leak check.
SANITIZED := $(CURDIR)/build/sanitize/libvmamba_native.so
SANITIZE_TESTS ?= \
  tests/scan/test_oflex_selective_scan.py tests/scan/test_oflex_ss2d_scan.py tests/scan/test_oflex_ssd_scan.py \
  tests/functional/test_cpu_kernels.py \
  tests/inference/test_packed.py tests/kernels/test_library.py

sanitize: $(VENV)/native.stamp ## Run the kernels' tests under address and undefined behaviour sanitizers (Linux, GCC)
	cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=g++ \
	  -DVMAMBA_NATIVE_REQUIRED=ON -DVMAMBA_SANITIZE=ON
	cmake --build build/sanitize --parallel $$(nproc)
	$(SANITIZE_RUN) $(SANITIZE_TESTS)
	$(SANITIZE_RUN) tests/scan/test_selective_scan.py tests/scan/test_states.py -k oflex

SANITIZE_RUN = env LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 VMAMBA_NATIVE_LIBRARY=$(SANITIZED) \
  $(BIN)/python -m pytest -p no:faulthandler --timeout 3000

clean: ## Remove .venv and everything that is built; keeps runs/ and demo/
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The copy of pyproject.toml is what tells a changed file from one that git merely touched. It is written last, so that an
# install that was cut off starts afresh.
$(VENV)/venv.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(1)' || { \
	  echo "vmamba needs Python 3.10 or newer, and '$(PYTHON)' is not: name another, as in 'make PYTHON=python3.12'" >&2; \
	  exit 1; }
	@if cmp -s pyproject.toml $(VENV)/pyproject.toml; then touch $@; else set -e; \
	  echo "Making $(VENV) with $$($(PYTHON) --version); this takes a few minutes ..."; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV); \
	  $(PIP) --no-compile -e ".[dev]"; \
	  cp pyproject.toml $(VENV)/pyproject.toml; \
	  touch $@ $(VENV)/native.stamp; fi

# The editable install compiles the C++ core; a machine without a compiler gets the pure package, which says so when asked.
# Making the venv has done it already, which make cannot know: hence the look at what is newer.
$(VENV)/native.stamp: $(VENV)/venv.stamp $(CORE)
	@if [ -e $@ ] && [ -z "$$(find $(CORE) -newer $@)" ]; then touch $@; else set -e; \
	  echo "Building the C++ core ..."; \
	  $(PIP) --no-deps -e .; \
	  touch $@; fi
