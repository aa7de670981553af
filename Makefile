# make quickstart   a real transfer-learning result from nothing
# make test         the suite
# make faults       kills, damaged files and full disks, counted
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
BIN = $(VENV)/bin

.PHONY: quickstart test faults test-hub1 test-all lint bench wheel clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[quickstart,dev]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/hf-cifar train quickstart
	$(BIN)/hf-cifar predict runs/quickstart docs/cat.png docs/ship.png

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --dist worksteal

faults: $(VENV)/.installed
	$(BIN)/python -m pytest tests/faults -m "slow or not slow" -n logical --dist worksteal

# the Hub's tests again with the other line of huggingface_hub, laid over the environment's own
test-hub1: $(VENV)/.installed
	test -d $(VENV)/hub1 || $(BIN)/python -m pip install -q --target $(VENV)/hub1 "huggingface_hub==1.31.*"
	PYTHONPATH=$(abspath $(VENV)/hub1) $(BIN)/python -m pytest tests/test_hub.py tests/test_verify.py

bench: $(VENV)/.installed
	for m in vit-ti16 resnet-18; do $(BIN)/python benchmarks/efficiency.py --model $$m --data $(DATA) || exit 1; done
	$(BIN)/python benchmarks/efficiency.py --model toy --turns 30 --steps 80 --data $(DATA)
	for m in toy resnet-18 vit-ti16; do $(BIN)/python benchmarks/stock.py --model $$m --data $(DATA) || exit 1; done
	for n in linear_probe evaluation vit_huge scale memory; do $(BIN)/python benchmarks/$$n.py --data $(DATA) || exit 1; done

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow or real or not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
