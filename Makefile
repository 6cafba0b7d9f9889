# Works with the system's python3 and nothing else installed; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# exact versions where they have been tested; floors of pyproject.toml elsewhere
CONSTRAINTS := $(wildcard constraints/py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt)
STAMP := .venv/.installed

.PHONY: install demo test lint bench figures clean

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $(addprefix -c ,$(CONSTRAINTS)) -e '.[test,data,dev]'
	touch $@

demo: install
	$(BIN)/python -m figures.demo --out results/demo

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only -m ''

figures: install
	$(BIN)/python -m figures all --out results/figures

clean:
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
