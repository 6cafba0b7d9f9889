# Works with the system's python3 and nothing else installed; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# exact versions where they have been tested; floors of pyproject.toml elsewhere
CONSTRAINTS := $(wildcard constraints/py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt)
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs

.PHONY: install demo test lint bench figures docs clean

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

# examples are run; pages in build/docs
docs: $(DOCS_STAMP)
	$(BIN)/sphinx-build --jobs 2 --fail-on-warning --keep-going --quiet -b html -d build/docs-work/doctrees docs build/docs

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $(addprefix -c ,$(CONSTRAINTS)) -e '.[docs]'
	touch $@

clean:
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
