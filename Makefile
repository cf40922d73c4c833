# The commands of the README. `make run` and `make test` set up what they need; a second time that costs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test lint format bench up down clean lock

help:
	@echo "make run                 fetch, train, evaluate, register, score a batch: all that is not up to date"
	@echo "make run PROFILE=gpu     the same, with profiles/gpu.yaml laid over params.yaml first (tiny: a quick try)"
	@echo "make test                every test, the whole chain among them"
	@echo "make lint                ruff and mypy"
	@echo "make up | down           Prefect's server with a worker, and MLflow's server, on this machine"
	@echo "make bench               the benchmarks"
	@echo "make format | lock | clean"

run: .venv/ready
	$(if $(PROFILE),$(BIN)/densitywatch profile $(PROFILE))
	@$(BIN)/python -m pipelines retrain

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# other ports: make up PREFECT_PORT=4300 MLFLOW_PORT=5100
up: .venv/ready
	@PREFECT_PORT=$(or $(PREFECT_PORT),4200) MLFLOW_PORT=$(or $(MLFLOW_PORT),5000) $(BIN)/python -m pipelines.services up

down: .venv/ready
	@$(BIN)/python -m pipelines.services down

# what tools leave behind; data, models, the registry and results stay
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info checkpoints
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# every version pinned, for every platform; one that need not change does not
lock:
	$(PYTHON) -m venv var/lock
	var/lock/bin/python -m pip install --quiet uv
	var/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

# the stamp is written last: an environment that was interrupted on the way is taken up again
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"make: Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ...")'
	@echo "setting up .venv from requirements.lock (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
