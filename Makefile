# Every target does its own set-up; PYTHON chooses the interpreter of a new environment.
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist loadscope
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The newest jax and numpy need Python 3.12: an older interpreter gets older packages.
CONSTRAINTS = constraints$(shell $(or $(wildcard $(BIN)/python),$(PYTHON)) \
  -c 'import sys; print("-newest" * (sys.version_info >= (3, 12)))').txt
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
DOCS_PORT ?= 8000
# By default apart: where these compilers are installed, jax looks for their devices.
ACCELERATORS = $(if $(filter file,$(origin VENV)),.venv-accelerators,$(VENV))

.PHONY: demo test test-slow test-all test-newest lint format types notebooks store-notebooks \
  pages docs wheel check peers accelerators clean

demo: $(VENV)/.benchmarks  ## the main job on embedded data: tables and a picture, in ./runs
	$(BIN)/python -m benchmarks optimabs

test: $(VENV)/.development  ## the quick tests, and all docstring examples
	$(PYTEST) $(TESTS)

test-slow: $(VENV)/.development  ## those that `make test` leaves out
	$(PYTEST) -m slow $(TESTS)

test-all: $(VENV)/.development  ## both
	$(PYTEST) -m "slow or not slow" $(TESTS)

test-newest:  ## the same with the newest packages, in a fresh environment of its own
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
	  echo "$(PYTHON) is no Python 3.12 or newer; pass one, as in PYTHON=python3.12." >&2; exit 1; }
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.development
	$(BIN)/mypy

notebooks: $(VENV)/.development
	mkdir -p build
	IPYTHONDIR=$(CURDIR)/build/ipython $(BIN)/python -m pytest -n 2 --nbmake $(NOTEBOOKS)

store-notebooks: $(VENV)/.development  ## runs them and stores their outputs, for the pages
	$(BIN)/python notebooks/store.py $(NOTEBOOKS)

# A fresh build every time: one that goes on from the last does not repeat its warnings.
pages: $(VENV)/.development  ## the reference pages, in build/docs; a warning is an error
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going \
	  --doctree-dir build/doctrees docs build/docs

docs: pages  ## builds the pages and serves them on localhost:$(DOCS_PORT)
	@echo "The pages are at http://localhost:$(DOCS_PORT); Ctrl-C ends this."
	@$(BIN)/python -m http.server $(DOCS_PORT) --bind localhost --directory build/docs

wheel: $(VENV)/.development
	$(BIN)/python -m build --wheel --outdir dist .

check: lint types test-all notebooks pages wheel  ## what continuous integration runs

peers: $(VENV)/.benchmarks $(VENV)/.peers  ## evosax, for gadam; PyTorch, for timing
	$(INSTALL) "torch==2.13.0"

accelerators:  ## compiles steps on one large array for a GPU and a TPU that are not there
	$(MAKE) $(ACCELERATORS)/.accelerators VENV=$(ACCELERATORS)
	$(ACCELERATORS)/bin/python -m benchmarks accelerators --trees 4096x4096

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	rm -f docs/notebooks/*.ipynb

$(VENV)/.%: pyproject.toml constraints.txt constraints-newest.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -c $(CONSTRAINTS) -e ".[$*]"
	touch $@
