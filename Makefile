# SPDX-License-Identifier: MIT
#
# The ways in. Each target prepares what it needs and this machine lacks, and is quick when nothing is missing.
#
#   PYTHON=python3.12   another interpreter for .venv (at least 3.11)
#   PYTEST_ARGS='-k x'  more arguments for pytest

PYTHON ?= python3
PYTEST_ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

clang := clang-19
python := .venv/bin/python
machine := $(shell uname -m)
bpf_arch := $(patsubst x86_64,x86,$(patsubst aarch64,arm64,$(machine)))
# Unused parameters are no mistake here: a program's only one, its context, is the kernel's choice.
bpf_flags := -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -target bpf -mcpu=v3 -D__TARGET_ARCH_$(bpf_arch) \
	-I/usr/include/$(machine)-linux-gnu -Ibpf
tools := $(patsubst lab/tools/%.c,lab/objects/%,$(wildcard lab/tools/*.c))
objects := $(patsubst bpf/%.bpf.c,rauta/objects/%.bpf.o,$(wildcard bpf/*.bpf.c)) \
	$(patsubst lab/bpf/%.bpf.c,lab/objects/%.bpf.o,$(wildcard lab/bpf/*.bpf.c))

.PHONY: help
help: ## List the targets.
	@echo "RAUTA: HTTP routing in XDP. On Debian 12 (root, kernel 6.9 or newer): make demo"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: | root setup ## Route real requests between namespaces, prove it, measure it, print the verdict.
	@$(python) -m lab run scenarios/quickstart.yaml

.PHONY: test
test: | root setup ## Run all tests: units, packets, real traffic, the smoke profile of each scenario.
	@$(python) -m pytest -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: test-long
test-long: | root setup ## Run the long form of those tests that have one.
	@command -v chromium >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium
	@RAUTA_LONG=1 RAUTA_MANY=10000000 $(python) -m pytest tests/e2e/test_sensitivity.py tests/e2e/test_moves.py tests/e2e/test_moves_lossy.py tests/e2e/test_moves_many.py \
		tests/e2e/test_moving_clients.py tests/moves tests/packets/test_guesses.py tests/packets/test_memory.py $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: | root setup ## Read a million request heads, and as many frames, as servers do; the seed is printed.
	@RAUTA_LONG=1 $(python) -m pytest tests/fuzz $(PYTEST_ARGS)

.PHONY: mutants
mutants: | root setup ## See that the packet tests notice each of the mistakes in tests/mutants; takes half an hour.
	@PYTHONPATH=tests $(python) -m mutants --write

# A target that is missed is a result, too: the table shows it.
.PHONY: comparison
comparison: | root setup ## Measure RAUTA against the others, and write the README's table.
	@$(python) -m lab run scenarios/comparison.yaml || [ $$? -eq 1 ] || [ $$? -eq 3 ]
	@$(python) -m lab keep last
	@$(python) -m lab claims

.PHONY: setup
setup: | packages environment bpf ## Install what is missing: Debian packages, .venv, compiled BPF programs.

.PHONY: bpf
bpf: $(objects) $(tools) ## Compile the BPF programs, and the lab's tools in C.

.PHONY: lint
lint: | environment ## Check style (ruff) and types (mypy --strict).
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

.PHONY: clean
clean: ## Remove build products, caches, and what killed runs of the lab left behind.
	@rm -rf rauta/objects lab/objects build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find rauta lab tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -f .venv/.complete ]; then $(python) -B -m lab clean; fi

# ---- steps of the above --------------------------------------------------------------------------------

# Said first, before anything is installed or built.
.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS): this loads BPF programs and builds network namespaces, which takes root: run 'sudo make $(MAKECMDGOALS)'." >&2; exit 2; }

.PHONY: packages
packages:
	@scripts/install-packages

.PHONY: environment
environment: | packages
	@scripts/create-environment

rauta/objects/%.bpf.o: bpf/%.bpf.c Makefile | packages
	@mkdir -p $(@D)
	$(clang) $(bpf_flags) -MMD -MP -c $< -o $@

lab/objects/%.bpf.o: lab/bpf/%.bpf.c Makefile | packages
	@mkdir -p $(@D)
	$(clang) $(bpf_flags) -MMD -MP -c $< -o $@

lab/objects/%: lab/tools/%.c Makefile | packages
	@mkdir -p $(@D)
	$(clang) -O2 -g -Wall -Wextra -Werror -std=gnu17 $< -o $@ -lm

-include $(objects:.o=.d)
