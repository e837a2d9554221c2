# Every target sets up what it needs in $(VENV); nothing outside this folder is changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PILOT_ARGS ?=
DEMO_ARGS ?=
MONITOR_ARGS ?=
TEST_ARGS ?=
# With it, as images of containers often have, each of the hundreds of processes of the tests compiles our modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Those that need no arguments and end within minutes; the long comparison is benchmarks/nshot.py.
BENCHMARKS := $(addprefix benchmarks/, startup.py segments.py import_speed.py steps.py released_step.py classifier_step.py composing.py mixes.py scaling.py model_state.py distributed_step.py checkpoint_stall.py recovery.py sweep_scale.py metrics.py)

.DEFAULT_GOAL := help
.PHONY: help venv pilot demo-s3 monitor test test-full lint bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=python3.12 (makes $(VENV)), PILOT_ARGS='--shots 5,10', TEST_ARGS='-k store -x'"

venv: $(READY) ## the environment alone, with everything in it

pilot: $(READY) ## compare the methods on small built-in images (or PILOT_ARGS=FOLDER) and write a report
	$(BIN)/hydramix pilot $(PILOT_ARGS)

demo-s3: $(READY) ## the same from and into a bucket, on a real S3 server of this machine (DEMO_ARGS='--preset smoke')
	$(BIN)/python cluster/demo_s3.py $(DEMO_ARGS)

monitor: $(READY) ## Prometheus with our rules and Alertmanager on this machine, until Ctrl-C
	$(BIN)/python monitoring/monitor.py $(MONITOR_ARGS)

# Of two cores one process uses half; but Ray starts so many that its tests need both.
test: $(READY) ## one pass over everything, in 30 to 40 minutes (or TEST_ARGS='-k store -x')
ifeq ($(strip $(TEST_ARGS)),)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone'
	$(BIN)/pytest -m alone
else
	$(BIN)/pytest $(TEST_ARGS)
endif

test-full: $(READY) ## whole matrices and long fault tests as well
	$(BIN)/pytest --full $(TEST_ARGS)

lint: $(READY) ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## measure what benchmarks/ promises
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

clean: ## remove the environment, caches and builds; runs and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Tests and pilot share one environment: one thing to make, to explain and to renew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); sys.exit(None if ok else "hydramix_dist needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -e '.[dev]' -c constraints.txt
	@# pip compiles on one core what it installs: 86 CPU seconds for all of it. Of what is not for Python, errors are no matter.
	@-$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing|rllib)/' $(VENV)/lib
	@touch $@
