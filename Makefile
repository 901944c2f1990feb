# The whole contributor interface.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: demo quick test cluster check bench bench-science bench-files bench-selection vendor fresh install
.DELETE_ON_ERROR:
unexport PYTHONDONTWRITEBYTECODE # compile a module once, not at each start of Python
# Two processes of one thread each. A run prints its seed; SEED=... repeats it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(SEED:%=--randomly-seed=%)

$(VENV)/.installed: pyproject.toml platform/client/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable 'platform/client[stream,tango]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/manybeam demo --out manybeam-demo

quick: install
	$(PYTEST) --durations=10 -m "not (cluster or s3 or postgres or browser or gpu or slow or hosts or faults)"

test: install
	$(PYTEST) --durations=30 -m "not (hosts or faults)"

cluster: install # as root, because its hosts are network namespaces; LANE=faults needs no root
	$(PYTEST) --durations=10 -m "$(or $(LANE),hosts or faults)"

check: install
	$(BIN)/ruff format --check platform tests infra
	$(BIN)/ruff check platform tests infra
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell platform tests zoo jobs infra README.md CHANGELOG.md
	$(BIN)/deptry platform
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_contracts.py tests/test_imports.py

bench: install
	mkdir -p bench
	$(BIN)/python -m pytest -q --benchmark-enable --benchmark-only --benchmark-json=bench/benchmarks.json tests/benchmarks
	$(BIN)/python tests/benchmarks/ensemble_speed.py --out bench/speed && $(BIN)/python tests/benchmarks/http_speed.py --out bench/http # rivals: ATOMAI_PYTHON, LITSERVE_PYTHON, BENTOML_PYTHON
bench-science: install # the headline table; ATOMAI_PYTHON names the Python of the rival, if there is one
	$(BIN)/python tests/benchmarks/headline.py --out bench/science
bench-files: install # vendor files, beside another reader whose Python FILES_PYTHON names
	$(BIN)/python tests/benchmarks/vendor_files.py --out bench/files
bench-selection: install # choosing, adapting, watching, against rivals; after bench-science
	$(BIN)/python tests/benchmarks/selection.py --out bench/science
	$(BIN)/python tests/benchmarks/adaptation.py --out bench/science
	$(BIN)/python tests/benchmarks/drift_watch.py

vendor: install # scripts and styles of the pages, fetched anew from npm and checked; needs npm
	$(BIN)/python infra/vendor.py

fresh: # what a newcomer does: a new clone, a new virtual environment, the README's two commands
	rm -rf /tmp/manybeam-fresh && git clone --quiet . /tmp/manybeam-fresh/main
	if [ -d ../shared ]; then ln -s "$$(realpath ../shared)" /tmp/manybeam-fresh/shared; fi
	$(MAKE) -C /tmp/manybeam-fresh/main demo
	$(MAKE) -C /tmp/manybeam-fresh/main test
