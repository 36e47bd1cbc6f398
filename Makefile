# make demo   install, verify the shipped specifications, write demo-report/index.html
# make test   install, run the tests
# make lint   style and types            make bench   scoreboard over BENCH=folder
# make clean  remove what make created
#
# PYTHON=python3.12 chooses the interpreter (3.11 to 3.13), WORKERS=4 the processes of demo and bench.

PYTHON ?= python3
VENV ?= .venv
CXX ?= g++
WORKERS ?= 1
BENCH ?= specs

BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
BUILD := $(VENV)/.build
SOURCES := $(shell find verifier -name '*.py' 2>/dev/null)
NATIVE := $(shell find csrc -type f 2>/dev/null) $(wildcard setup.py CMakeLists.txt pyproject.toml)

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: demo-report/index.html
	@$(BIN)/python -m verifier run specs/instances.csv --out demo-report/results.csv --resume
	@echo "report: demo-report/index.html"

demo-report/index.html: demo-report/results.csv
	@$(BIN)/python -m verifier report demo-report/results.csv --details demo-report/details.jsonl \
	  --instances specs/instances.csv --originals specs/originals.json --out $@

demo-report/results.csv: $(BUILD) $(SOURCES) specs/instances.csv
	@mkdir -p demo-report
	@$(BIN)/python -m verifier run specs/instances.csv --out $@ --details demo-report/details.jsonl \
	  --workers $(WORKERS)

test: $(BUILD)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

lint: $(BUILD)
	$(BIN)/ruff check .
	$(BIN)/mypy verifier benchmarks specs
	@if command -v clang-format >/dev/null; then \
	  find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs clang-format --dry-run -Werror; \
	else echo "clang-format is not installed: C++ formatting was not checked"; fi

bench: $(BUILD)
	$(BIN)/python benchmarks/run.py $(BENCH) --workers $(WORKERS)

clean:
	rm -rf $(VENV) build demo-report out *.egg-info

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "make: Python 3.11, 3.12 or 3.13 is needed, '$(PYTHON)' is not one of them;" \
	    "install one and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }

$(DEPENDENCIES): constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	@touch $@

$(BUILD): $(DEPENDENCIES) $(NATIVE)
	@command -v $(firstword $(CXX)) >/dev/null || { \
	  echo "make: no C++ compiler '$(CXX)'. Install one: 'apt-get install g++' (Debian, Ubuntu)," \
	    "'dnf install gcc-c++' (Fedora), 'xcode-select --install' (macOS); or name yours: make CXX=clang++" >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
