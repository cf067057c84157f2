# Each target sets itself up from nothing but python3, python3-venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find protos -name '*.proto')

.PHONY: help demo serve test lint format bench real clean

help:
	@echo 'make demo    one real build request through a real server, and what came of it'
	@echo 'make serve   the server on 127.0.0.1:50051, until Ctrl-C'
	@echo 'make test    all tests'
	@echo 'make lint    ruff and mypy, as CI runs them'
	@echo 'make format  what ruff can mend by itself'
	@echo 'make bench   the table of docs/performance.md, on this machine'
	@echo 'make real    the tests of Debian packages in sandboxes and outside; takes root'
	@echo 'make clean   remove what these made'

# One virtual environment; a stamp for each set of extras that is in it.
$(VENV)/with-%: $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing tvix-specgen[$*] into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/with-server
	@$(BIN)/python examples/demo.py

serve: $(VENV)/with-server
	@echo 'Try, from another terminal:'
	@echo "  grpcurl -plaintext -d @ 127.0.0.1:50051 specgen.v1.SpecService/GenerateSpec < examples/ogre-1.9.0.json"
	@exec $(BIN)/specgen-server --listen 127.0.0.1:50051

test: $(VENV)/with-test
	$(BIN)/python -m pytest $(ARGS)

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
