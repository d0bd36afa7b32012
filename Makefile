# make run    the quickstart on real data          make studies  every study, one table of claims
# make test   the tests (make test-all: slow too)  make bench    timings against peers and limits
# make lint   ruff and mypy                        make peers    environments of the peers, for bench
# make newest a few tests on the newest JAX, where a Python >= 3.12 runs
# make oldest the tests on the lowest versions that pyproject.toml allows
# make docs   the documentation as a site, build/site, strictly
# make clean  forget the environment and results
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-all newest oldest lint docs studies bench peers clean
.DEFAULT_GOAL := run

# One environment per purpose's extra; a stamp is as old as the last change of pyproject.toml.
define install
	@test -x $(BIN)/python || $(shell command -v $(PYTHON) || echo python3) -m venv $(VENV)
	@echo "Installing dflax[$(1)] into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(1)]"
	@touch $@
endef

$(VENV)/.experiments: pyproject.toml
	$(call install,experiments)

$(VENV)/.dev: pyproject.toml
	$(call install,dev)

$(VENV)/.bench: pyproject.toml
	$(call install,bench)

$(VENV)/.docs: pyproject.toml
	$(call install,docs)

run: $(VENV)/.experiments
	@$(BIN)/python -m experiments.quickstart

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile

newest:
	@.ci/newest

oldest:
	@.ci/oldest

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.docs
	@$(BIN)/python -m mkdocs build --quiet --strict
	@echo "The site is in build/site."

studies: $(VENV)/.experiments
	@$(BIN)/python -m experiments --all

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks

peers: $(VENV)/.bench
	@$(BIN)/python -m benchmarks.peers install

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-peers build results .pytest_cache .mypy_cache .ruff_cache .hypothesis
