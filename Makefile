# `make demo` and `make test` need nothing but Python 3.10 or newer: each creates .venv and installs into it what
# constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BARE := $(VENV)/.bare
INSTALLED := $(VENV)/.installed
WORKERS ?= 4
TYPING := .typing/bstune

.DEFAULT_GOAL := help
.PHONY: help dev demo format lint type test check test-gpu gpu docs bench soak clean

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | \
	while IFS="$$(printf '\t')" read -r name text; do printf '%-10s %s\n' "$$name" "$$text"; done

# What a user installs; the tools of development come on top where they are needed.
$(BARE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[examples]'
	touch $@

$(INSTALLED): $(BARE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

# Type checkers look for `bstune` in a folder of that name, and the checkout may be called anything.
$(TYPING):
	mkdir -p $(@D)
	ln -sfn .. $@

dev: $(INSTALLED) $(TYPING) ## Create .venv with bstune, editable, and the tools.

demo: $(BARE) ## Search examples/digits.py down to a recommendation.
	$(BIN)/bstune search examples/digits.py

format: $(INSTALLED) ## Rewrite the code as ruff formats it.
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format .

lint: $(INSTALLED) ## Check format and lint rules; change nothing.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(INSTALLED) $(TYPING) ## Check types, strictly, tests and examples included.
	$(BIN)/mypy -p bstune

# A file stays on one worker: its tests share what they start, such as servers and templates. The slowest files come
# first (tests/conftest.py).
test: $(INSTALLED) ## Run the tests, four files at a time; WORKERS=2 for two.
	@# The many processes that tests start need not compile the package, also where Python is told to keep no bytecode.
	$(BIN)/python -m compileall -q *.py tuner objectives tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint type test ## All that CI runs.

test-gpu: $(INSTALLED) ## Run the tests that repeat a claim on a CUDA device.
	$(BIN)/python -m pytest -m gpu

gpu: ## Compare what bstune assumes of CUDA with this machine's card, within 8 minutes; needs torch and numpy only.
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py

docs: $(INSTALLED) ## Write docs/cli.md from the --help texts.
	$(BIN)/python docs/make_cli.py

bench: $(INSTALLED) ## Measure start-up time, and compare the demo's recommendation with its truth grid.
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/demo_truth.py --check

soak: $(INSTALLED) ## Run 300 short searches under random faults, kill the service under load, and check that nothing is lost; 20 minutes.
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/service.py load --seconds 60 --kills 10

clean: ## Remove .venv, caches and builds; studies (*.db) are kept.
	rm -rf $(VENV) .typing build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
