# The commands of the README. `make run` and `make test` set up what they need; a second time that costs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test test-fast faults soak audit lint docs format bench up down status worker backup restore clean lock pull fresh compare ask-retrain propose-retrain

help:
	@echo "make run                 fetch, train, evaluate, register, score a batch: all that is not up to date"
	@echo "make run PROFILE=gpu     the same, with profiles/gpu.yaml laid over params.yaml first (tiny: a quick try)"
	@echo "make run PROFILE=cells   photographs with real defects: solar cells, fetched (CC BY-NC-SA 4.0, not for commercial use)"
	@echo "make test                every test but those of make faults, the whole chain among them"
	@echo "make test-fast           those without servers, browsers and slow trainings: under 3 minutes on two cores"
	@echo "make faults              the system broken on purpose: kills, full disks, damaged files; about an hour"
	@echo "make soak                two hours of batches every few seconds: does anything grow? HOURS=1 EVERY=10 for others"
	@echo "make audit               known vulnerabilities and licences of all packages; asks PyPI"
	@echo "make lint                ruff, typos and mypy; actionlint and zizmor on the workflows of CI"
	@echo "make docs                the docs site, into var/site; warnings are errors"
	@echo "make up | down           Prefect's server with a worker, MLflow's server and the reports, on this machine"
	@echo "make status              what runs, what waits, what the gate said, what the last batches were like"
	@echo "make worker GPU=0        a worker that trains for others on this GPU; then: make run PLACEMENT=pool"
	@echo "make backup [TO=folder]  everything that git does not keep; make restore FROM=folder brings it back"
	@echo "make pull                data, models and pages of dvc.lock, from the DVC remote"
	@echo "make fresh               does dvc.lock belong to the code?"
	@echo "make ask-retrain REF=x   a run of commit x on the Prefect server; make propose-retrain: a pull request of it"
	@echo "make bench               the benchmarks"
	@echo "make format | lock | clean"

run: .venv/ready
	$(if $(PROFILE),$(BIN)/densitywatch profile $(PROFILE))
	@$(BIN)/python -m pipelines retrain $(PLACEMENT)

# in as many processes as WORKERS says, a file of tests to one of them, the longest first (tests/conftest.py): make test
# WORKERS=1 for one after the other
WORKERS := 2
test: .venv/ready-dev
	$(BIN)/python -m pytest -m "not faults" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# the markers are those of pyproject.toml; what has become slow shows at the end
test-fast: .venv/ready-dev
	$(BIN)/python -m pytest -m "not server and not browser and not slow and not faults" --durations=5 --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# one after the other: a fault that is timed needs the machine. Needs root or sudo (for mount), and postgresql. The table of
# what was tried, survived and lost goes to var/faults.md: docs/reliability.md
faults: .venv/ready-dev
	@rm -f var/faults.json
	$(BIN)/python -m pytest -m faults tests/faults

# hours of batches against the servers of make up, in a clone, after make run: nothing but the results may grow
HOURS := 2
EVERY := 5
soak: .venv/ready-dev
	$(BIN)/python -m tests.faults.soak $(HOURS) $(EVERY)

# .pre-commit-config.yaml runs the same six; tests/test_repository.py compares them. None of them uses the network.
lint: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/mypy
	$(BIN)/actionlint -shellcheck= -pyflakes=
	$(BIN)/zizmor --offline --quiet --no-progress .github

# names and versions go to PyPI's service of known vulnerabilities; licences.toml says what is allowed
audit: .venv/ready-dev
	@$(BIN)/python -m pipelines audit

pull: .venv/ready
	@$(BIN)/python -m pipelines pull

fresh: .venv/ready
	@$(BIN)/python -m pipelines fresh

# what differs from commit BASE, as Markdown. Names of branches come from outside: the shell reads them from the
# environment, and make never expands them.
compare: .venv/ready
	@$(BIN)/python -m pipelines compare "$${BASE:?a commit to compare with: make compare BASE=main}"

# These two need no .venv: any Python and git, and gh for the second. SUMMARY is a Markdown file to append to.
ask-retrain:
	@PYTHONPATH=src:. $(PYTHON) -m pipelines.ask_retrain $${SUMMARY:+--summary "$$SUMMARY"} -- "$${REF:-HEAD}"

propose-retrain:
	@PYTHONPATH=src:. $(PYTHON) -m pipelines.propose_retrain -- "$${BASE:-main}"

docs: .venv/ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open var/site/index.html; for its search: $(BIN)/python -m http.server --directory var/site"

format: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready
	@for file in benchmarks/*/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# other ports: make up PREFECT_PORT=4300 MLFLOW_PORT=5100 REPORTS_PORT=4500
up: .venv/ready
	@PREFECT_PORT=$(or $(PREFECT_PORT),4200) MLFLOW_PORT=$(or $(MLFLOW_PORT),5000) \
		REPORTS_PORT=$(or $(REPORTS_PORT),4400) $(BIN)/python -m pipelines.services up

down: .venv/ready
	@$(BIN)/python -m pipelines.services down

status: .venv/ready
	@$(BIN)/python -m pipelines status

# in a clone of its own, var/workers/gpu0; without GPU on the processor: docs/how-to/gpu-machines.md
worker: .venv/ready
	@$(BIN)/python -m pipelines.worker $(GPU)

# docs/how-to/team.md: databases, artifacts, the DVC remote where it is a folder, results
backup: .venv/ready
	@$(BIN)/python -m pipelines.backup backup $(if $(TO),"$(TO)")

restore: .venv/ready
	@$(BIN)/python -m pipelines.backup restore $(if $(FROM),"$(FROM)")

# what tools leave behind; data, models, the registry and results stay
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info checkpoints
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# every version and every file's hash pinned, for every platform; one that need not change does not. Another uv: its number
UV_VERSION := 0.13.9
COMPILE := var/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --generate-hashes \
	--custom-compile-command "make lock"
lock:
	$(PYTHON) -m venv --clear var/lock
	var/lock/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r installer.lock
	echo "uv==$(UV_VERSION)" | $(COMPILE) --output-file installer.lock -
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --extra docs --extra postgres --extra ray --extra s3 --constraint requirements.lock \
		$$(sed -n 's/^\([a-z0-9.-]*\)==.*/--no-emit-package \1/p' requirements.lock) \
		--output-file requirements-dev.lock pyproject.toml

# uv asks the same index as pip. Four files at a time: an interruption on a slow line loses four in part, not fifty.
# Every file is compared with its hash in the lock file, those that a build needs as well.
INSTALL = index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)} || true; \
	export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
	export UV_CONCURRENT_DOWNLOADS="$${UV_CONCURRENT_DOWNLOADS:-4}" UV_HTTP_TIMEOUT="$${UV_HTTP_TIMEOUT:-180}"; \
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --build-constraints requirements.lock

# What `make run` needs. The stamp is written last and taken away before anything changes: an environment that was
# interrupted on the way is made anew, of the files that uv keeps once they have arrived whole.
.venv/ready: installer.lock requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"make: Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ...")'
	@test -e $@ || { \
		echo "setting up .venv: on Linux 3.3 GB to download and 6.6 GB on disk, three quarters of it torch's CUDA libraries;"; \
		echo "some 5 minutes at 20 MB/s. Interrupted, the same command goes on: what has arrived is kept."; \
		$(PYTHON) -m venv --clear .venv; }
	@rm -f $@
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r installer.lock
	@$(INSTALL) --require-hashes --compile-bytecode -r requirements.lock
	@$(INSTALL) --editable .
	@touch $@

# what the tests and `make lint` need besides
.venv/ready-dev: .venv/ready requirements-dev.lock
	@echo "adding the tests' tools to .venv: 0.1 GB to download"
	@rm -f .venv/ready
	@$(INSTALL) --require-hashes --compile-bytecode -r requirements-dev.lock
	@touch .venv/ready
	@touch $@
