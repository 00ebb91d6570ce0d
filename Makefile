# Every target sets up what it needs; the second time that costs nothing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.core
DEV    := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check bench app clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(DEV): pyproject.toml $(STAMP)
	@$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## plan a real model on a real card
	$(BIN)/kvplan estimate Qwen/QwQ-32B --gpu h100 -tp 2 --input-len 512 --output-len 32K

test: $(DEV)  ## the whole suite
	$(BIN)/python -m pytest -n auto

lint: $(DEV)  ## ruff, formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## all that CI runs

bench: $(DEV)  ## speed figures, printed as ratios of one run
	@for f in benchmarks/bench_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

app: $(DEV)  ## the planner in a browser
	$(BIN)/streamlit run app.py

clean:
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
