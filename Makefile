# Every target works from a fresh clone with nothing but make and Python 3.11 or newer:
# a target that needs packages first installs them into $(VENV), once.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
SEEDS ?= 0:500

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest fuzz lint format docs bench notebooks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo  ## train a discrete VAE on handwritten digits under three estimators
	$(BIN)/python notebooks/digits_vae.py $(ARGS)

test: $(VENV)/.installed-test  ## run the quick tests: every law, on a row of everything (ARGS="-k name" selects)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not thorough" $(ARGS)

test-all: $(VENV)/.installed-test  ## run all tests: every row of every table
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-oldest:  ## run the tests on the oldest dependencies that pyproject.toml admits
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python .ci/oldest.py > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint $(VENV)-oldest/oldest.txt --editable '.[test]'
	$(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

fuzz: $(VENV)/.installed-test  ## compare random programs with brute force (SEEDS=0:5000)
	$(BIN)/python tests/fuzz/fuzz.py $(SEEDS)

lint: $(VENV)/.installed-lint $(VENV)/.installed-test  ## ruff, pyright and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint  ## sort imports and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-docs  ## build the documentation into site/, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b doctest docs site/.doctest
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

bench: $(VENV)/.installed-demo  ## run the benchmarks one after the other
	set -e; for script in benchmarks/[!_]*.py; do $(BIN)/python $$script; done

notebooks: $(VENV)/.installed-notebooks  ## execute the notebooks in place
	$(BIN)/python -m nbconvert --to notebook --execute --inplace notebooks/*.ipynb

clean:  ## remove what the targets made, environments included
	rm -rf $(VENV) $(VENV)-oldest .cache .ci-venv .ci-venv-newest .ci-out build dist site outputs

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	$(PIP) install --quiet --editable '.[$*]'
	@touch $@
