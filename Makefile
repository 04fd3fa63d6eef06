# make demo: pre-train, draw reconstructions, fine-tune, evaluate on drawn images (no GPU, no data needed)
# make test: tests of every part, in minutes      make test-all: all tests, the slow ones too      make lint: ruff
# make faults: a long campaign of kills, broken files, full disks and signals against real runs (half an hour)
# make clean: remove the virtual environment and demo output
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# a worker for each core, up to eight; each computes with one thread (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-all faults lint setup clean

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(PYTEST) -m "not slow and not faults"

test-slow: setup
	$(PYTEST) -m slow

test-all: test test-slow

faults: setup
	$(PYTEST) -m faults tests/faults

lint: setup
	$(BIN)/ruff check .

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) output/demo
