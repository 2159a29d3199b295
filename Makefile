# make ask    install vidllm and ask the sample video     make test   install, test, lint
# Both work on a fresh clone, alone and in either order; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
SAMPLE ?= weights/samples/red-star.mp4
QUESTION ?= when does the red star spin?

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TYPED := build/typed

.DEFAULT_GOAL := help
.PHONY: help ask test pytest lint format clean distclean

help:
	@echo "make ask     install and ask the sample video (SAMPLE=..., QUESTION=...)"
	@echo "make test    install what tests need, run them, then lint"
	@echo "make lint    ruff and mypy        make format   ruff, in place"
	@echo "make clean   remove build files and caches; make distclean also removes $(VENV)"
	@echo "PYTHON=...   the Python (3.10 or newer) that makes the environment"

ask: $(VENV)/.core
	@$(BIN)/vidllm ask "$(SAMPLE)" "$(QUESTION)"

test: pytest lint

pytest: $(VENV)/.test
	@$(BIN)/python -m pytest -q

# The folders are mapped into one package at install: mypy reads the installed tree.
lint: $(VENV)/.test
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "make format puts that right"; exit 1; }
	@rm -rf build/lib $(TYPED)
	@$(PIP) install -qq --no-deps --no-build-isolation --target $(TYPED) .
	@cd $(TYPED) && $(BIN)/python -m mypy --no-error-summary --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p vidllm
	@rm -rf build/lib
	@echo "lint: clean"

format: $(VENV)/.test
	@$(BIN)/ruff check -q --fix-only .
	@$(BIN)/ruff format -q .

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

distclean: clean
	@rm -rf $(VENV)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is too old: use PYTHON=... with Python 3.10 or newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing vidllm into $(VENV) (a few minutes the first time)" >&2
	@$(PIP) install -qq -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing vidllm and its test tools into $(VENV) (a few minutes the first time)" >&2
	@$(PIP) install -qq -c constraints.txt -e '.[test]'
	@touch $(VENV)/.core $@
