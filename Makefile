# make try | demo | test | test-slow | lint | bench | docs: each target creates the virtual environment if needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
# make try MODEL=runs/demo/stage2/model serves another model; OPEN=false opens no browser; PORT=0 picks a free port.
MODEL ?= models/phantom/model
PORT ?= 7860
OPEN ?= true

# Newer than pyproject.toml if the environment is up to date.
STAMP := $(VENV)/.installed

# Packages are installed without bytecode, most of which is never loaded; imported modules are compiled on first use.
# Many containers set PYTHONDONTWRITEBYTECODE; then each start of Python would recompile torch: 16 s instead of 5.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: try demo test test-slow lint bench docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable .
	touch $@

$(VENV)/.installed-app: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[app]'
	touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

# The first prerequisite of `try`, so that a missing model is reported before the slow installation.
$(MODEL)/config.json:
	@echo "error: there is no model in $(MODEL): train one by 'make demo', then 'make try MODEL=$(RUN)/stage2/model'" >&2
	@exit 1

try: $(MODEL)/config.json $(VENV)/.installed-app  ## serve the page with the trained phantom model of this repository
	$(BIN)/medunifier serve --model $(MODEL) --phantoms 200 --port $(PORT) --browser $(OPEN)

demo: $(STAMP)  ## train a phantom model from scratch and write its page, in a quarter of an hour on two cores
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/demo.py --run_dir $(RUN)

# worksteal keeps neighbouring tests on one worker: they share a server or a trained model.
test: $(VENV)/.installed-dev  ## the fast tests
	$(BIN)/python -m pytest -n logical --dist worksteal

test-slow: $(VENV)/.installed-dev  ## all tests: takes minutes longer
	$(BIN)/python -m pytest -n logical --dist worksteal -m ''

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## this package and a peer, compared in the same run
	$(BIN)/medunifier bench loader
	$(BIN)/medunifier bench ingest
	$(BIN)/medunifier bench stage2
	$(BIN)/medunifier bench generate

docs: $(VENV)/.installed-dev  ## the documentation site, in build/site
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build *.egg-info
