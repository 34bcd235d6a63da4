# make try | demo | test | test-slow | lint | bench | docs: each makes its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
# make try MODEL=runs/demo/stage2/model shows another model; OPEN=false leaves the browser alone; PORT=0 takes any.
MODEL ?= models/phantom/model
PORT ?= 7860
OPEN ?= true

# Reading the project's metadata is what tells whether the environment is older than what it should hold.
STAMP := $(VENV)/.installed

# Packages are installed without bytecode, most of which nobody would load; what is imported writes its own, once.
# Where that is forbidden, as in many containers, each start of Python would compile torch anew: 16 s in place of 5.
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

# Asked for before the installation, which takes longer than to read one line.
$(MODEL)/config.json:
	@echo "error: there is no model in $(MODEL): train one by 'make demo', then 'make try MODEL=$(RUN)/stage2/model'" >&2
	@exit 1

try: $(MODEL)/config.json $(VENV)/.installed-app  ## the page, with the trained phantom model of this repository
	$(BIN)/medunifier serve --model $(MODEL) --phantoms 200 --port $(PORT) --browser $(OPEN)

demo: $(STAMP)  ## fresh clone to a trained phantom model and its page, in a quarter of an hour on two cores
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/demo.py --run_dir $(RUN)

# Work is stolen from the end of the other's half: neighbours share a server or a trained model, and stay together.
test: $(VENV)/.installed-dev  ## the quick tests
	$(BIN)/python -m pytest -n logical --dist worksteal

test-slow: $(VENV)/.installed-dev  ## all tests: minutes more
	$(BIN)/python -m pytest -n logical --dist worksteal -m ''

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## ours beside a peer, in the same run
	$(BIN)/medunifier bench loader
	$(BIN)/medunifier bench ingest
	$(BIN)/medunifier bench stage2
	$(BIN)/medunifier bench generate

docs: $(VENV)/.installed-dev  ## the site, in build/site
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build *.egg-info
