# make quickstart    a transfer-learning result from nothing
# make test          the quick tests
# make test-all      all tests that run here
# make test-floors   the tests that touch libraries, with the lowest versions that are allowed
# make faults        kills, damaged files and full disks, counted
# make lint          ruff and mypy
# make bench         the speed benchmarks
# make gpu           what only a GPU can tell, in 35 minutes; TINY=1 tries it on any machine
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
BIN = $(VENV)/bin
FLOORS = $(VENV)/floors
UV_INSTALL = $(BIN)/uv pip install -q --compile-bytecode --python
PYTEST = -m pytest -n logical --dist worksteal

.PHONY: quickstart test test-all test-floors faults lint bench gpu wheel clean

# uv takes a quarter of pip's time; pip is used where uv can't be had. uv compiles no bytecode unless
# asked: each process of the tests would take 12 s instead of 5 s to import the libraries.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv \
		&& $(UV_INSTALL) $(BIN)/python -e ".[quickstart,dev]" \
		|| $(BIN)/python -m pip install -q -e ".[quickstart,dev]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/hf-cifar train quickstart
	$(BIN)/hf-cifar predict runs/quickstart docs/cat.png docs/ship.png

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST)

test-all: $(VENV)/.installed
	$(BIN)/python $(PYTEST) -m "slow or real or not slow"

test-floors: $(VENV)/.installed
	$(BIN)/python -m pip install -q uv
	test -x $(FLOORS)/bin/python || $(BIN)/uv venv -q --python $(BIN)/python $(FLOORS)
	$(UV_INSTALL) $(FLOORS)/bin/python --resolution lowest-direct -e ".[quickstart,audit]"
	$(UV_INSTALL) $(FLOORS)/bin/python pytest pytest-xdist hypothesis tensorboard
	$(FLOORS)/bin/python $(PYTEST) --ignore tests/project --ignore tests/benchmarks

faults: $(VENV)/.installed
	$(BIN)/python $(PYTEST) tests/faults -m "slow or not slow"

bench: $(VENV)/.installed
	for m in vit-ti16 resnet-18; do \
		$(BIN)/python benchmarks/efficiency.py --model $$m --data $(DATA) || exit 1; done
	$(BIN)/python benchmarks/efficiency.py --model toy --turns 30 --steps 80 --data $(DATA)
	for m in toy resnet-18 vit-ti16; do \
		$(BIN)/python benchmarks/stock.py --model $$m --data $(DATA) || exit 1; done
	for n in linear_probe small_sets evaluation scale memory; do \
		$(BIN)/python benchmarks/$$n.py --data $(DATA) || exit 1; done

gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py --data $(DATA) $(if $(TINY),--tiny) $(GPU_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
