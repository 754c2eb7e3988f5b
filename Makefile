# Everything a fresh clone needs: `make demo`, `make test`. Set-up runs once, and again only when what it installs changed.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
PY := $(VENV)/bin/python

# The stamp carries a checksum of what decides the installation, so that a touched but equal file costs nothing.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
DEMO := build/demo

.PHONY: help setup demo test test-all lint format types bench schema clean

help:
	@echo "make demo      export YOLOv9-c in its training form, rewrite it, show the report"
	@echo "make test      the tests but the slow ones (own set-up)"
	@echo "make test-all  every test"
	@echo "make lint      ruff: format and lint;  make format  applies them"
	@echo "make types     pyright, strict, on rewriter/"
	@echo "make bench     time and memory of apply against onnx.load + onnx.save"
	@echo "make schema    write docs/schema/ and docs/reference.md anew"
	@echo "make clean     remove build/ and caches;  the environment is $(VENV)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,torch,zoo,test]"
	rm -f $(VENV)/installed-*
	touch $@

$(DEMO)/yolov9-c.onnx: tools/export_yolov9.py $(wildcard fixtures/yolov9/*.py) | $(STAMP)
	mkdir -p $(DEMO)
	$(PY) tools/export_yolov9.py c --form legacy --size 640 -o $@
	touch $@

demo: $(DEMO)/yolov9-c.onnx | $(STAMP)
	$(VENV)/bin/fxrewrite apply $(DEMO)/yolov9-c.onnx --patterns repconv,conv-bn,bypass,aux-prune \
	    -o $(DEMO)/yolov9-c.rewritten.onnx --force

test: | $(STAMP)
	$(PY) -m pytest -m "not slow" -n $(JOBS)

test-all: | $(STAMP)
	$(PY) -m pytest -n $(JOBS)

lint: | $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: | $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

types: | $(STAMP)
	$(VENV)/bin/pyright --pythonpath $(PY)

bench: $(DEMO)/yolov9-c.onnx | $(STAMP)
	$(PY) tools/bench_apply.py

schema: | $(STAMP)
	$(PY) tools/gen_schemas.py
	$(PY) tools/gen_reference.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
