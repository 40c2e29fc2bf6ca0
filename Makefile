# Everything a newcomer types. `make demo` and `make test` install what they need by themselves.
.PHONY: help setup demo test test-fast lint format parity chaos-trainer bench-trainer bench-operator aot lock clean
.DEFAULT_GOAL := help

SHELL := /bin/bash
BIN := .venv/operator/bin

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## virtual environments in .venv/ (operator, trainer, export)
	@scripts/venv operator requirements/dev-operator.txt
	@scripts/venv trainer requirements/dev-trainer.txt
	@scripts/venv export requirements/export.txt

demo: setup ## a real cluster, a real language model, one LoraDpoJob from apply to adapter
	@$(BIN)/ldj demo $(DEMO_ARGS)

test: ## every test, real cluster included; CLUSTER=kind or CLUSTER=source chooses what it is made of
	@$(if $(filter command,$(origin CLUSTER)),LDJ_PROVIDER=$(CLUSTER)) "$$(scripts/find-python)" scripts/suites.py all

test-fast: ## the tests that need no cluster (a few minutes)
	@"$$(scripts/find-python)" scripts/suites.py fast

lint: setup ## ruff, strict types, import rules
	@"$$(scripts/find-python)" scripts/suites.py lint

format: setup ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format --quiet .

parity: setup ## CASE=FOLDER: compare a training run with one recorded with TRL
	@test -n "$(CASE)" || { echo "usage: make parity CASE=FOLDER   (for example CASE=tests/data/parity/llama-r8)"; exit 2; }
	@JAX_PLATFORMS=cpu .venv/trainer/bin/python -m lora_dpo_trainer.parity "$(CASE)"

chaos-trainer: setup ## kill a training run at 40 random moments: it must make what an undisturbed one makes
	@JAX_PLATFORMS=cpu .venv/trainer/bin/python scripts/chaos_trainer.py $(CHAOS_ARGS)

bench-trainer: setup ## this trainer beside TRL and upstream Levanter, on this machine (up to 40 minutes)
	@scripts/venv bench-trl requirements/bench-trl.txt
	@$(BIN)/python -m benchmarks.trainer.bench $(BENCH_ARGS)

bench-operator: setup ## JOBS=1000 PEER=1: a burst of jobs beside Kubeflow Trainer, and 5,000 at rest (up to 40 minutes)
	@$(BIN)/python -m benchmarks.operator.bench --jobs $(or $(JOBS),1000) $(if $(PEER),--peer) $(BENCH_ARGS)

aot: setup ## compile the train step for three TPU slices, beside upstream Levanter's (no TPU needed; up to 30 minutes)
	@.venv/trainer/bin/python -m benchmarks.aot.report $(AOT_ARGS)

lock: ## write requirements/*.txt anew
	@scripts/lock

clean: ## remove what this folder's builds left (the cache outside stays)
	@rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
