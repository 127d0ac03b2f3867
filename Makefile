# make demo        train, test, predict and draw on real digits: some minutes; downloads no data; make alone does the same
# make install     .venv with the library, one to three minutes; the other targets do it first
# make help        these lines
# make test        the test suite
# make train       CIFAR-10, ResNet-20, preset fast; goes on where it was stopped
# make slow        the checks that need minutes or the real data (CIFAR_DIR=folder)
# make browser-test the pages of runs in headless Chromium, which it installs with apt-get where it is missing (as root)
# make docs        the documentation as a site, build/site/index.html
# make bench       speed beside stock Keras and PyTorch (TORCH_PYTHON=interpreter that has it)
# make crash-test  kills a training run a hundred times and compares it with one that nobody killed; results/reliability.json
# make reproduce   the tables and figures of He, Liang and Lu & Song, in about 29 hours; goes on where it was stopped (DATA_DIR=folder)
# make lint        ruff and mypy

# The first interpreter that starts and is new enough; PYTHON=... names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo install help test train slow browser-test docs bench crash-test reproduce lint

demo: $(INSTALLED)
	$(BIN)/python cifar10_main.py --mode=train --dataset=digits --version=make-demo --overwrite
	$(BIN)/python cifar10_main.py --mode=predict --version=make-demo --images examples/digits

install: $(INSTALLED)

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(MAKEFILE_LIST)

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

train: $(INSTALLED)
	$(BIN)/python cifar10_main.py --mode=train --resume

slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m pytest -q -m slow

browser-test: $(INSTALLED)
	command -v chromedriver >/dev/null || { apt-get update && apt-get install --yes chromium chromium-driver; }
	$(BIN)/python -m pip install --quiet 'selenium>=4.20'
	$(BIN)/python -m pytest -q -m slow tests/test_browser.py

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/build_site.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/throughput.py $(if $(TORCH_PYTHON),--torch_python $(TORCH_PYTHON))

crash-test: $(INSTALLED)
	$(BIN)/python benchmarks/crash_test.py --kills 100

reproduce: $(INSTALLED)
	$(BIN)/python benchmarks/reproduce.py $(if $(DATA_DIR),--data_dir=$(DATA_DIR))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

$(INSTALLED): setup.cfg
	@test -n "$(PYTHON)" || { echo "error: expected Python 3.11, 3.12 or 3.13, found none; install one or give PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
