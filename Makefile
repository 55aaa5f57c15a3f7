# Each target does its own set-up: `make run` and `make test` work on a fresh Debian or Ubuntu machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# What the installation is made of. Python files need no new installation: it is an editable one.
COMPILED := $(shell find ring frontend -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' 2>/dev/null)

# Arguments for the command, e.g. make run ARGS="topology.toml --timeout 60"
ARGS ?=

.DEFAULT_GOAL := run
.PHONY: run test lint bench soak packages test-packages clean

run: $(STAMP)
	@$(BIN)/miniguest run $(ARGS)

test: test-packages lint
	@$(BIN)/python -m pytest -q $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/miniguest bench $(ARGS)

soak: test-packages $(STAMP)
	@$(BIN)/python -m miniguest.deploy.soak $(ARGS)

packages:
	@PYTHON=$(PYTHON) deploy/install-packages

# What the tests hold the network path against; `make run` does without.
test-packages:
	@PYTHON=$(PYTHON) deploy/install-packages deploy/test-packages.txt

# The old extension goes first, so that no header or flag can change without it being compiled again.
$(STAMP): pyproject.toml $(COMPILED) | packages
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"miniguest needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -rf build $(patsubst %.pyx,%.c,$(filter %.pyx,$(COMPILED))) $(patsubst %.pyx,%.*.so,$(filter %.pyx,$(COMPILED)))
	@echo "Installing miniguest into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ring frontend \( -name '*.so' -o -name '*.c' \) -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
