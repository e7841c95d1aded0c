# One name for each thing that a contributor does. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
UV ?= uv
PYTEST_ARGS ?=
# Tests wait for servers and processes more than they compute, so there are more of them than processors.
PYTEST_WORKERS ?= 4
LOCK_ARGS ?=
# Tests of what stands on the libraries of others: the link on psycopg, the callers' connections, frameworks, instruments.
LOWEST := tests/postgres/test_conformance.py tests/postgres/test_link.py tests/postgres/test_callers*.py \
    tests/postgres/test_django*.py tests/contrib tests/unit/test_instrument*.py tests/cli/test_status.py

BIN := $(VENV)/bin

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: ## create .venv with everything pinned; at once when nothing changed
	@$(PYTHON) tools/venv.py $(VENV) requirements/dev.txt

.PHONY: bench-install
bench-install: install ## add the libraries that the benchmarks compare with
	@$(PYTHON) tools/venv.py $(VENV) requirements/bench.txt

.PHONY: demo
demo: install ## several processes, one lock, one SIGKILL; under a minute
	@$(BIN)/pgconcert demo

.PHONY: test
test: install ## all tests but the long ones, on the embedded server (PYTEST_ARGS=... goes to pytest)
	@$(BIN)/python -m pytest -m "not long" -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: test-all
test-all: install ## all tests, the long faults and the soak too
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: test-pythons
test-pythons: install ## the unit tests on every Python from 3.11 to 3.14 found here
	@$(BIN)/python tools/test_pythons.py $(PYTEST_ARGS)

.PHONY: test-lowest
test-lowest: install ## what others have made, in the oldest versions that pyproject.toml allows: does it still work?
	@$(PYTHON) tools/venv.py .venvs/lowest requirements/lowest.txt
	@.venvs/lowest/bin/python -m pytest -m "not long" -n $(PYTEST_WORKERS) --dist worksteal -q $(LOWEST) $(PYTEST_ARGS)

.PHONY: lint
lint: install ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: install ## ruff: repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: install ## mypy --strict, and pyright
	@status=0; $(BIN)/mypy || status=1; PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python || status=1; exit $$status

.PHONY: contracts
contracts: install ## import-linter: who may import whom
	@$(BIN)/lint-imports --no-cache

.PHONY: docs
docs: install ## build the documentation; warnings are errors
	@$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: bench-smoke
bench-smoke: install ## the benchmarks, short and without peers: do they still run?
	@$(BIN)/python benchmarks/locks.py --smoke
	@$(BIN)/python benchmarks/blocking.py --smoke
	@$(BIN)/python benchmarks/pubsub.py --smoke
	@$(BIN)/python benchmarks/sessions.py --smoke
	@$(BIN)/python benchmarks/tasks.py --smoke

.PHONY: check
check: test lint types contracts docs bench-smoke test-lowest test-pythons ## every gate

.PHONY: lock
lock: ## pin anew what pyproject.toml asks for (needs uv; LOCK_ARGS=--upgrade takes newer versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	@compile() { $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
	    --custom-compile-command "make lock" $(LOCK_ARGS) "$$@"; }; set -e; \
	compile --group dev -o requirements/dev.txt; \
	compile --group build --group test -c requirements/dev.txt -o requirements/test.txt; \
	compile --group build --group bench -c requirements/dev.txt -o requirements/bench.txt; \
	floor=$$(mktemp); trap 'rm -f "$$floor"' EXIT; \
	$(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --resolution lowest-direct \
	    -o "$$floor"; \
	compile --group build --group test -c "$$floor" --no-annotate -o requirements/lowest.txt
	@! grep -n -i -E 'https?:|--(extra-)?index-url|--find-links' requirements/*.txt || { echo "a lock file names a host" >&2; exit 1; }

.PHONY: clean
clean: ## remove environments, caches and builds
	rm -rf $(VENV) .venvs docs/_build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests tools benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
