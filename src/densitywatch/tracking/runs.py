"""MLflow's store opened safely, and one run for each training and each scored batch.

MLflow is imported inside functions: it takes seconds, and it must not be imported before `settle` has set the
environment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import BaseModel

from densitywatch.errors import DensitywatchError, ModelError
from densitywatch.models.storage import model_settings
from densitywatch.params import Params
from densitywatch.tracking.opening import open_client, prepare_store, store_errors
from densitywatch.tracking.store import (
    FLOW_RUN,
    FLOW_RUN_VARIABLE,
    REPORT,
    check_reachable,
    plain,
    store_lock,
    tracking_uri,
)
from densitywatch.tracking.unsent import Unsent, Value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLUSH_SECONDS = 5.0
FLUSH_VALUES = 500
BATCH_TAG = "densitywatch.batch"
ASKED_TAG = "densitywatch.asked"
"""The tag of a run that tells which request made it."""
BATCH_LIMIT = 1000  # values that MLflow takes in one log_batch
__all__ = [  # what opening.py and store.py have is handed on
    "Run",
    "batches_experiment",
    "log_batch",
    "log_evaluation",
    "open_client",
    "prepare_store",
    "store_errors",
    "tracking_uri",
    "training_run",
]

log = logging.getLogger(__name__)


def batches_experiment(params: Params) -> str:
    """The name of the experiment that scored batches are in: not among training runs."""
    return f"{params.mlflow.experiment}-batches"


class Run:
    """One MLflow run. Values are collected and sent together, so that a training loop does not wait for each.

    A store that fails in between does not stop the training: values are kept and sent later, at the latest at the end.
    `unsent` keeps them on the disk as well, in case this process is killed.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, unsent: Unsent | None = None) -> None:
        self.run_id = run_id
        self._client, self._uri, self._unsent = client, uri, unsent
        self._pending: list[Metric] = []
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._warned = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of one step. Takes no time, except a few milliseconds every FLUSH_SECONDS."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if self._unsent is not None:
            self._unsent.add([Value(name, float(value), now, step) for name, value in metrics.items()])
        if time.monotonic() >= self._flush_at or (len(self._pending) >= FLUSH_VALUES and not self._warned):
            try:
                self.flush()
            except DensitywatchError as error:
                self._flush_at = time.monotonic() + 60
                if not self._warned:
                    log.warning("%s; the run goes on and its values are sent later", error)
                    self._warned = True

    def take(self, values: Iterable[Value]) -> None:
        """Values of an earlier process, to be sent with the next ones."""
        from mlflow.entities import Metric

        self._pending += [Metric(*value) for value in values]

    def flush(self) -> None:
        """Send the values so far. Raises DensitywatchError, and keeps them, when the store does not answer."""
        check_reachable(self._uri, create=False)  # MLflow would retry for 15 seconds, in which nothing trains
        with store_errors(self._uri):
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:BATCH_LIMIT])
                del self._pending[:BATCH_LIMIT]
        if self._unsent is not None:
            self._unsent.begin(self.run_id)
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    def log_artifacts(self, folder: Path, to: str) -> None:
        """Copy the files of `folder` to the run's artifacts under `to`."""
        with store_errors(self._uri):
            self._client.log_artifacts(self.run_id, str(folder), artifact_path=to)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with store_errors(self._uri):
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)


@contextmanager
def training_run(
    name: str,
    params: Params,
    root: Path,
    *,
    dataset_name: str,
    dataset_digest: str,
    stage: str,
    resume_run_id: str | None = None,
) -> Iterator[Run]:
    """The run of one model's training: params, git commit, DVC stage and dataset are noted at its start.

    `resume_run_id` continues that run, or starts a new one where the store does not have it. The run ends as FINISHED,
    as FAILED when the body raises, or as KILLED when it is interrupted. A killed process leaves it RUNNING; the next
    one resumes it, or ends it as KILLED and starts anew. Values that the killed one had not sent are sent then. Raises
    DensitywatchError when the store cannot be reached at the start or at the end.
    """
    experiment = prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    with closing(Unsent(name, root)) as unsent:
        with store_errors(uri):
            _send_left(client, uri, unsent, resume_run_id)
            run_id = _reopen(client, resume_run_id) if resume_run_id else None
            if run_id is None:
                run_id = _new_run(client, experiment, name)
                unsent.begin(run_id)
                _describe(client, run_id, name, params, root, dataset_name, dataset_digest, stage)
        unsent.begin(run_id)
        run = Run(client, uri, run_id, unsent)
        try:
            yield run
        except BaseException as failure:
            with suppress(DensitywatchError), store_errors(uri):  # the body's error is the one to report
                client.set_terminated(run_id, status="KILLED" if isinstance(failure, KeyboardInterrupt) else "FAILED")
                run.flush()
                unsent.end()
            raise
        run.flush()
        with store_errors(uri):
            client.set_terminated(run_id)
        unsent.end()


def _send_left(client: MlflowClient, uri: str, unsent: Unsent, resume_run_id: str | None) -> None:
    """Send what a killed training of this model had not sent, and end its run unless it is resumed."""
    run_id, values = unsent.left()
    if run_id is None or not run_exists(client, run_id):
        return
    run = Run(client, uri, run_id)
    run.take(values)
    run.flush()
    if run_id != resume_run_id and client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status="KILLED")


def _new_run(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> str:
    """Make a run and return its id.

    Where a server made it and its answer was lost, MLflow's client has asked again, and the first one is deleted.
    """
    asked = uuid4().hex
    made = str(client.create_run(experiment, tags={ASKED_TAG: asked, **(tags or {})}, run_name=name).info.run_id)
    for twin in client.search_runs([experiment], f"tags.`{ASKED_TAG}` = '{asked}'"):
        if twin.info.run_id != made:
            client.delete_run(twin.info.run_id)
    return made


def _reopen(client: MlflowClient, run_id: str) -> str | None:
    """Set the run to RUNNING again; None where this store has no such run."""
    if not run_exists(client, run_id):
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def run_exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def _describe(
    client: MlflowClient, run_id: str, name: str, params: Params, root: Path, dataset: str, digest: str, stage: str
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    tags = {
        "mlflow.source.name": f"densitywatch train {name}",
        "model": name,
        "dvc_stage": stage,
        "dataset_name": dataset,
        "dataset_digest": digest,
        "densitywatch_version": version("densitywatch"),
        **git_tags(root),
        **_links({FLOW_RUN: os.environ.get(FLOW_RUN_VARIABLE, "")}),
    }
    client.log_batch(
        run_id,
        params=[Param(key, value) for key, value in flat_params(name, params).items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    source = json.dumps({"uri": "data/prepared"})
    # MLflow takes 36 characters of a digest; the whole one is among the tags
    data = Dataset(name=dataset, digest=digest[:36], source_type="local", source=source)
    client.log_inputs(run_id, [DatasetInput(data, tags=[InputTag("mlflow.data.context", "training")])])


def _links(addresses: Mapping[str, str]) -> dict[str, str]:
    """Tags with the addresses of other pages, and the note with links that MLflow shows on top of the run's page."""
    names = {FLOW_RUN: "the flow run in Prefect", REPORT: "the report of the batch"}
    known = {
        name: address for name, address in addresses.items() if re.fullmatch(r"(https?|file)://[^\s()<>]+", address)
    }
    if not known:
        return {}
    return {**known, "mlflow.note.content": ", ".join(f"[{names[name]}]({known[name]})" for name in known)}


def flat_params(name: str, params: Params) -> dict[str, str]:
    """The params that decide this model's training, as flat keys; what params.yaml leaves out has its default."""
    if name not in params.models:
        raise ModelError(f"models.{name}: no such block in params.yaml; it has {', '.join(sorted(params.models))}")
    block = params.models[name]
    groups: dict[str, BaseModel] = {
        "data": params.data,
        "device": params.device,
        "settings": model_settings(block),
        "training": block.training,
    }
    values: dict[str, Any] = {"model": name, "kind": block.kind, "seed": params.seed}
    for group, content in groups.items():
        values |= {f"{group}.{key}": value for key, value in content.model_dump(mode="json").items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def git_tags(root: Path) -> dict[str, str]:
    """The commit of `root` and whether files differ from it; empty where there is no repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()  # noqa: S603 fixed arguments

    try:
        changed = git("status", "--porcelain", "--untracked-files=no") != ""
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git_changes": str(changed).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def log_evaluation(
    run_id: str, metrics: Mapping[str, float], figures_folder: Path | None, params: Params, root: Path
) -> bool:
    """Add test figures and pictures to the run that trained the model; pictures go to its artifacts under `evaluation`.

    Returns False and writes nothing when this store does not have the run: the model came from another machine.
    """
    prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    with store_errors(uri):
        if not run_exists(client, run_id):
            log.warning(
                "run %s is not in %s (trained on another machine?); its evaluation is not logged", run_id, plain(uri)
            )
            return False
        run = Run(client, uri, run_id)
        run.log(0, metrics)
        run.flush()
        if figures_folder is not None and figures_folder.is_dir():
            run.log_artifacts(figures_folder, "evaluation")
    return True


def log_batch(summary: Mapping[str, Any], params: Params, root: Path, links: Mapping[str, str] | None = None) -> str:
    """Log one scored batch as a run: its figures, its detector, report.html and summary.json. Returns the run's id.

    `summary` is what `score_source` returns. `links`: addresses of other pages, for the tags FLOW_RUN and REPORT. The
    same results have one run, however often they are logged.
    """
    from mlflow.entities import Param, RunTag

    experiment = prepare_store(params, root, batches_experiment(params))
    uri = tracking_uri(params, root)
    client = open_client(uri)
    key = hashlib.sha256(
        json.dumps([summary[part] for part in ("content", "identity", "false_discovery_rate")], sort_keys=True).encode()
    ).hexdigest()
    name = re.sub(r"[^\w ./:+-]", "?", str(summary["batch"]))[-200:]
    with store_lock(uri, root, "batches"), store_errors(uri):  # two jobs with the same results make one run
        known = client.search_runs([experiment], f"tags.`{BATCH_TAG}` = '{key}'")
        done = [run for run in known if run.info.status == "FINISHED"]
        if done:
            return str(done[0].info.run_id)
        # one that a killed job had begun is gone on with: nobody else works on it under this lock
        begun = str(known[0].info.run_id) if known else None
        run_id = begun or _new_run(client, experiment, f"score {name}", {BATCH_TAG: key})
        tags = [RunTag("detector_sha256", str(summary["identity"]["detector"]))]
        tags += [RunTag(name, text) for name, text in _links(links or {}).items()]
        if summary.get("stand_in"):  # it was not scored with the champion
            tags.append(RunTag("stand_in", str(summary["stand_in"])[:5000]))
        client.log_batch(run_id, params=[Param("batch", name)], tags=tags)
        run = Run(client, uri, run_id)
        run.log(0, {key: float(value) for key, value in summary.items() if isinstance(value, int | float)})
        run.flush()
        for file in ("report.html", "summary.json"):
            client.log_artifact(run_id, str(Path(summary["folder"]) / file), "batch")
        client.set_terminated(run_id)
    return run_id
