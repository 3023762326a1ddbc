# Every target does its own set-up: a fresh machine needs Python 3.11 or later, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test check long lint demo clean

test: .venv/installed .venv/lm-eval lint
	$(BIN)/python -m pytest -q -n auto -m "not long"

check: .venv/installed lint
	$(BIN)/python -m pytest -q -n auto -m "not slow and not long"

long: .venv/installed
	$(BIN)/python -m pytest -q -n auto -m long

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make demo DEMO_OPTIONS=--once ends after the conversation.
demo: .venv/installed
	$(BIN)/rankforge demo $(DEMO_OPTIONS)

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rankforge needs Python 3.11 or later')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.venv/lm-eval: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[lm-eval]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
