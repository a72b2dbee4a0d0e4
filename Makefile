# make run        label the sample portraits: a small environment without torch, half a minute
# make test       the full environment, lint, all tests, every notebook on drawn faces
# make notebooks  run the notebooks on real photos: make notebooks DATA="dir1 dir2"
# make train      train the published classifier on your own class folders: make train DATA=dir [NAME=model] [EPOCHS=10]
# make train-simpsons  train a classifier as a file says: make train-simpsons CONFIG=configs/simpsons.yaml
# make demo       run the notebooks on drawn faces
# make report     execute the notebooks from committed results, without photos, and compare their outputs
# make lab        open the notebooks

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run env test lint demo report notebooks train train-simpsons lab clean help

help:
	@sed -n 's/^# make/make/p' Makefile

run: $(VENV)/.runtime
	$(BIN)/python process.py samples
	@cat process_results.json

env: $(VENV)/.full

test: $(VENV)/.full lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: $(VENV)/.full
	$(BIN)/python -m faces.notebooks --profile demo

report: $(VENV)/.full
	$(BIN)/python -m faces.notebooks --report

notebooks: $(VENV)/.full
	$(BIN)/python -m faces.notebooks --profile full $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY))

train: $(VENV)/.full
	@test -n "$(DATA)" || { echo "Say where the photos are: make train DATA=dir (dir/class_one/*.jpg, dir/class_two/*.jpg)"; exit 2; }
	$(BIN)/python -m faces.recipes $(DATA) $(if $(NAME),--name $(NAME)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(WEIGHTS),--weights $(WEIGHTS))

train-simpsons: CONFIG ?= configs/simpsons.yaml
train-simpsons: $(VENV)/.full
	$(BIN)/python -m faces.configured $(CONFIG)

lab: $(VENV)/.full
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf $(VENV) runs/demo runs/notebooks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# What process.py needs and no more (about 140 MB); the full environment contains it. Bytecode of what is imported is made
# by the first run; compiling all of it beforehand would take a third of the room again.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

# uv installs torch and the rest in a third of pip's time; without it pip does the same.
$(VENV)/.full: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[notebooks,serve,parquet,heic,coreml,dev]' \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebooks,serve,parquet,heic,coreml,dev]'
	@touch $@ $(VENV)/.runtime
