# Everything runs from a fresh clone: each target first makes .venv with the locked packages, once.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

export OMP_NUM_THREADS := 1

.PHONY: install demo test faults lint strip bench bench-gpu test-gpu clean
.DEFAULT_GOAL := install

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: install
	$(BIN)/kedro run --pipelines demo_data
	$(BIN)/kedro run
	@echo
	@echo "Report:    $(CURDIR)/data/08_reporting/report.html"
	@echo "Samples:   $(CURDIR)/data/08_reporting/ (grids), $(CURDIR)/data/07_model_output/ (videos, token ids)"
	@echo "MLflow:    $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db"
	@echo "Kedro-Viz: $(BIN)/kedro viz run"

test: install
	$(BIN)/python -m pytest -q

faults: install  # two rounds of every fault; FAULT_ROUNDS=full for all of them, which takes hours, or 10-19
	$(BIN)/python -m pytest -q -m "faults or rounds" tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

strip: install  # git holds notebooks without what they printed
	$(BIN)/python -c "$$STRIP" notebooks/*.ipynb

define STRIP
import sys, nbformat
for file in sys.argv[1:]:
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, file)
endef
export STRIP

bench: install
	@test -f benchmarks/$(SUBJECT).py || { echo "make bench SUBJECT=x, x one of:" $(filter-out harness gpu __init__,$(basename $(notdir $(wildcard benchmarks/*.py)))); exit 2; }
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .[bench]
	$(BIN)/python -m benchmarks.$(SUBJECT)

bench-gpu:  # needs torch, einops, numpy and safetensors only, so that any machine with a GPU will do
	PYTHONPATH=src $(or $(GPU_PYTHON),python3) -m benchmarks.gpu

test-gpu:  # the tests that need a GPU, with torch, einops, numpy, safetensors and pytest only
	PYTHONPATH=src $(or $(GPU_PYTHON),python3) -m pytest -q tests/models/test_search_gpu.py tests/training/test_gpu.py tests/training/test_peak_memory.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
