# Each target sets itself up from nothing but python3, python3-venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find protos -name '*.proto')
OLDEST := $(shell sed -n 's/^requires-python = ">=3\.\(.*\)"/\1/p' pyproject.toml)

.PHONY: help demo serve test bench-test lint format bench real clean

help:
	@echo 'make demo        one real build request through a real server, and what came of it'
	@echo 'make serve       the server on 127.0.0.1:50051, until Ctrl-C'
	@echo 'make test        the tests; those are skipped whose programs are not there'
	@echo 'make bench-test  whether the benchmarks work, in a brief run'
	@echo 'make lint        ruff and mypy, as CI runs them'
	@echo 'make format      what ruff can mend by itself'
	@echo 'make bench       the table of docs/performance.md, on this machine'
	@echo 'make real        the tests of Debian packages in sandboxes and outside; takes root'
	@echo 'make clean       remove what these made'

# One virtual environment; a stamp for each set of extras that is in it. An environment without a
# Python that is new enough and has pip (half made, or its Python is gone) is made anew.
IS_USABLE = -c 'import pip, sys; sys.exit(sys.version_info < (3, $(OLDEST)))' 2>/dev/null

$(VENV)/with-%: $(SOURCES) $(BIN)/python
	@$(BIN)/python $(IS_USABLE) || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, $(OLDEST)))' || { \
			echo "tvix-specgen needs Python 3.$(OLDEST) or newer, and $(PYTHON) is" \
				"$$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.$(OLDEST)" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "installing tvix-specgen[$*] into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# Where there is none, the stamps are out of date.
$(BIN)/python: ;

demo: $(VENV)/with-server
	@$(BIN)/python examples/demo.py

serve: $(VENV)/with-server
	@echo 'Try, from another terminal:'
	@echo "  grpcurl -plaintext -d @ 127.0.0.1:50051 specgen.v1.SpecService/GenerateSpec < examples/ogre-1.9.0.json"
	@exec $(BIN)/specgen-server --listen 127.0.0.1:50051

test: $(VENV)/with-test
	$(BIN)/python -m pytest $(ARGS)

bench-test: $(VENV)/with-test
	$(BIN)/python -m pytest -m bench $(ARGS)

lint: $(VENV)/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/with-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/with-bench
	$(BIN)/python bench/run.py $(ARGS)

real: $(VENV)/with-test
	$(BIN)/python bench/real_software.py $(ARGS)

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find protos -name '*_pb2*.py*' -delete
