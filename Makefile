# `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= true

.PHONY: install demo test test-slow check docs bench-peers clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Luthier needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/luthier quickstart

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.hosts
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

.venv/.hosts: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[harness,ray,trl]'
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/architecture

docs: install
	$(BIN)/python -m luthier.recipe.reference > docs/reference/recipe.md
	$(BIN)/python -m luthier.plan.check.reference docs/findings
	$(BIN)/python -m luthier.watch.rules.reference docs/findings/run
	$(BIN)/python -m luthier.watch.reference > docs/guide/trouble.md
	$(BIN)/typer luthier.cli.main utils docs --name luthier --title "luthier: commands" --output docs/reference/commands.md

bench-peers:
	PYTHON=$(PYTHON) bench/peers/install.sh

clean:
	rm -rf .venv build dist
