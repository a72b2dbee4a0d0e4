# make run        label the sample portraits: a small environment without torch, half a minute
# make test       the full environment, lint, all tests, every notebook on drawn faces
# make check      lint and the quick tests
# make notebooks  run the notebooks on real photos: make notebooks DATA="dir1 dir2"
# make train      train a classifier on your own class folders: make train DATA=dir [NAME=model] [EPOCHS=10] [WEIGHTS=random]
# make train-simpsons  train a classifier as a file says: make train-simpsons CONFIG=configs/simpsons.yaml
# make demo       run the notebooks on drawn faces
# make report     execute the notebooks from committed results, without photos, and compare their outputs
# make lab        open the notebooks
# make docs       the documentation, in docs/_build/html
# make tables     write the tables and help texts in README.md, samples/ and docs/ anew
# make constraints  write constraints.txt anew: the newest versions that fit each other
# make test NEWEST=1  with the newest versions instead of those of constraints.txt, in .venv-newest (so with any target)

PYTHON ?= python3
VENV ?= $(if $(NEWEST),.venv-newest,.venv)
DOCS_VENV ?= .venv-docs
# The tables and help texts that cog writes, and where.
COG := cog -P -I tools -p 'import tables'
PAGES := README.md samples/README.md docs/*.md
# What `make run` labels: pictures with known answers, two of them wrong.
SAMPLES := samples samples/portraits/composites samples/portraits/london/024_neutral.jpg
VERSIONS := $(if $(NEWEST),--upgrade,--constraint constraints.txt)
BIN := $(VENV)/bin
# For the shell, whatever spaces and quotes a name holds.
quoted = '$(subst ','\'',$(1))'

.PHONY: run env test check lint constraints demo report notebooks train train-simpsons lab docs tables clean help

help:
	@sed -n 's/^# make/make/p' Makefile

run: $(VENV)/.runtime
	@mkdir -p runs/samples
	@$(BIN)/python process.py $(SAMPLES) --tasks gender,age,glasses --format csv --output - \
		--html runs/samples/report.html --annotate runs/samples/annotated
	@echo "a page to look at: runs/samples/report.html; pictures with boxes: runs/samples/annotated"

env: $(VENV)/.full

test: $(VENV)/.full lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.full lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/cards.py --check
	$(BIN)/$(COG) --check $(PAGES)
	if command -v actionlint >/dev/null; then actionlint; fi

demo: $(VENV)/.full
	$(BIN)/python -m faces.research.notebooks --profile demo

report: $(VENV)/.full
	$(BIN)/python -m faces.research.notebooks --report

notebooks: $(VENV)/.full
	$(BIN)/python -m faces.research.notebooks --profile full $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY))

train: $(VENV)/.full
	@test -n $(call quoted,$(DATA)) || { echo "Say where the photos are: make train DATA=dir (dir/class_one/*.jpg, dir/class_two/*.jpg)"; exit 2; }
	$(BIN)/faces train $(call quoted,$(DATA)) $(if $(NAME),--name $(call quoted,$(NAME))) $(if $(EPOCHS),epochs=$(call quoted,$(EPOCHS))) $(if $(WEIGHTS),weights=$(call quoted,$(WEIGHTS)))

train-simpsons: CONFIG ?= configs/simpsons.yaml
train-simpsons: $(VENV)/.full
	$(BIN)/faces train $(call quoted,$(CONFIG))

tables: $(VENV)/.full
	$(BIN)/python tools/cards.py
	$(BIN)/$(COG) -r $(PAGES)

docs: $(DOCS_VENV)/.docs
	$(DOCS_VENV)/bin/sphinx-build -q -W --keep-going -j auto -c docs . docs/_build/html
	@echo "docs/_build/html/index.html"

$(DOCS_VENV)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(VERSIONS) --editable '.[docs]'
	@touch $@

lab: $(VENV)/.full
	$(BIN)/jupyter lab notebooks --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

# torch and torchvision as the pair that pip takes, all else as uv resolves it for every platform.
constraints: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m pip install --dry-run --ignore-installed --no-deps torch torchvision \
		| sed -n 's/^Would install //p' | tr ' ' '\n' | sed 's/-/==/' > $(VENV)/pair.txt
	UV_CUSTOM_COMPILE_COMMAND="make constraints" $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal \
		--all-extras --python-version 3.11 --no-annotate --constraint $(VENV)/pair.txt --output-file constraints.txt

clean:
	rm -rf $(VENV) $(DOCS_VENV) docs/_build runs/demo runs/notebooks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# With NEWEST=1 what is installed is never new enough.
newest:

# What process.py needs and no more (about 140 MB); the full environment contains it. Bytecode of what is imported is made
# by the first run; compiling all of it beforehand would take a third of the room again.
$(VENV)/.runtime: pyproject.toml constraints.txt $(if $(NEWEST),newest) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(VERSIONS) --editable .
	@touch $@

# uv installs torch and the rest in a third of pip's time; without it pip does the same.
$(VENV)/.full: pyproject.toml constraints.txt $(if $(NEWEST),newest) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python $(VERSIONS) --editable '.[all]' \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check $(VERSIONS) --editable '.[all]'
	@touch $@ $(VENV)/.runtime
