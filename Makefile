# Four verbs. PYTHON=python3.12 make setup takes another interpreter.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup style test demo

setup: ## a virtual environment with all that developing needs
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[dev]'

style: ## format, lint, type-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: ## FAST=1 leaves out the slow tests
	$(BIN)/pytest $(if $(FAST),-m "not slow",)

demo: ## the embedded model, dense and pruned
	$(BIN)/foveate demo
