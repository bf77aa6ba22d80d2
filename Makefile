# The commands of developers and first-time users. Each target installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Number of test processes, with one thread each.
WORKERS ?= 2

.PHONY: setup demo test test-slow test-engines lint docs claims clean

# torch is installed first: otherwise the other packages would bring a CUDA build of several gigabytes.
$(VENV)/.ready: pyproject.toml $(wildcard src/jettison/kernels/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

setup: $(VENV)/.ready

# Plan, compress, recover and evaluate the bundled model. If it is interrupted, the next call continues.
# These learning rates suit a model as small as this. Leave them out for a real model.
DEMO_RECOVERY := --set recover.samples=1024 --set recover.length=256 --set recover.batch=8 \
	--set recover.lr=0.003 --set recover.scale_lr=0.003

demo: setup
	$(BIN)/jettison plan scribe --memory 7.6MB --context 512
	$(BIN)/jettison fit scribe --recipe gateup-w4w2 --context 512 $(DEMO_RECOVERY) --out runs/demo

test: setup
	$(BIN)/pytest -m "not slow and not engines" -n $(WORKERS) --dist worksteal --timeout 900

test-slow: setup
	$(BIN)/pytest -m slow

test-engines: setup
	$(BIN)/pip install --quiet --editable ".[onnx]"
	$(BIN)/pytest -m engines

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

claims: setup
	$(BIN)/python -m benchmarks.claims

clean:
	rm -rf site runs .pytest_cache .ruff_cache
