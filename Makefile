# A clone needs python3 (3.10 or newer, with venv and pip); everything else is installed into .venv.
# Each install leaves a stamp and is repeated only when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/run.stamp
DEV := $(VENV)/dev.stamp

.PHONY: setup demo test test-slow lint
.NOTPARALLEL:  # both stamps install into one environment

# What running a model needs.
setup: $(RUN)

demo: $(RUN)
	$(VENV)/bin/python -m scripts.demo --model scenes --out out/demo

# Tests must not depend on a network, and their tensors are so small that a second thread only waits.
test test-slow: export HF_HUB_OFFLINE := 1
test test-slow: export OMP_NUM_THREADS := 1

# The tests of the page need a browser (apt install chromium): without one, test names them as skipped, and test-slow fails.
test: $(DEV)
	$(VENV)/bin/python -m pytest

test-slow: $(DEV)
	$(VENV)/bin/python -m pytest -m slow

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(RUN): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e .
	touch $@

# All of the train and serve groups: deepspeed comes as source but without compiled parts, 12 seconds on one core.
# Of the eval group, lmms-eval comes without the 1.4 GB it asks for: the dev group has what it imports for our tests.
$(DEV): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[train,serve,dev]"
	$(VENV)/bin/pip install --no-deps lmms-eval==0.7.3
	touch $(RUN) $@
