# Everything a developer or a first-time user needs. Each target sets up what it uses.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow test-engines lint docs claims clean

# torch first: a plain install of the rest would bring a CUDA build of several gigabytes.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

setup: $(VENV)/.ready

# The main job on the bundled model: plan, compress, recover, evaluate. Interrupt it and run it again: it continues.
demo: setup
	$(BIN)/jettison fit scribe --memory 8MB --context 512 --out runs/demo $(DEMO)

test: setup
	$(BIN)/pytest -m "not slow and not engines"

test-slow: setup
	$(BIN)/pytest -m slow

test-engines: setup
	$(BIN)/pytest -m engines || test $$? -eq 5 # 5: there are none yet

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

claims: setup
	$(BIN)/python benchmarks/claims.py

clean:
	rm -rf site runs .pytest_cache .ruff_cache
