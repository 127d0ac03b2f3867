# make demo        a minute or two: train, test, predict and draw on real digits, no download of data
# make test        the test suite
# make train       CIFAR-10, ResNet-20, preset fast; goes on where it was stopped
# make slow        the checks that need minutes or the real data (CIFAR_DIR=folder)
# make bench       speed beside stock Keras and PyTorch (TORCH_PYTHON=interpreter that has it)
# make crash-test  kills a training run a hundred times and compares it with one that nobody killed; results/reliability.json
# make lint        ruff

PYTHON ?= $(shell for version in 3.13 3.12 3.11; do command -v python$$version && break; done || echo python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test train slow bench crash-test lint

demo: $(INSTALLED)
	$(BIN)/python cifar10_main.py --mode=train --dataset=digits --version=demo --overwrite
	$(BIN)/python cifar10_main.py --mode=predict --version=demo --images examples/digits

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

train: $(INSTALLED)
	$(BIN)/python cifar10_main.py --mode=train --resume

slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slow

bench: $(INSTALLED)
	$(BIN)/python benchmarks/throughput.py $(if $(TORCH_PYTHON),--torch_python $(TORCH_PYTHON))

crash-test: $(INSTALLED)
	$(BIN)/python benchmarks/crash_test.py --kills 100

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
