"""The placement `pool`: a training stage is computed by a worker of the work pool `training`, in the worker's clone.

Data and results go through the DVC remote. This is the caller's side; train_model.py is the worker's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from densitywatch import stopping
from densitywatch.training.bookkeeping import note_training
from pipelines import arrivals, commits, dvc_commands, dvc_graph, server
from pipelines.dvc_commands import Outcome, StageFailed
from pipelines.prefect_text import first_line
from pipelines.stage_inputs import read_inputs
from pipelines.stage_tasks import RunStage
from pipelines.train_model import RESULT, WEIGHTS, installed_packages
from pipelines.worker import POOL

Placement = Literal["here", "pool"]
T = TypeVar("T")

DEPLOYMENT = "train-model/train-model"
TRIES = 3
"""Number of workers that may die over one stage: a stage that kills each of them would go round for ever."""
LOOK_EVERY = 1.0
"""Seconds between two looks at a worker's run."""
NO_WORKER_SECONDS = 120.0
"""How often a run that waits asks whether there still is a worker."""
PENDING_SECONDS = 300.0
"""After this time a run that a worker took and did not begin counts as dead."""
AWAY_SECONDS = 600.0
"""The server may be away for so long while a worker computes."""
ARRIVAL_TRIES = 3
"""Another worker may be writing into the remote's run cache while it is read."""

_pushing = threading.Lock()
_pushed: set[tuple[str, str]] = set()


def elsewhere(placement: Placement, stages: Iterable[dvc_graph.Stage], root: Path) -> Mapping[str, RunStage]:
    """The stages that do not run in this process's checkout, and what runs each: with `pool` those that train.

    Raises StageFailed or another DensitywatchError, with what to do, where no worker could do it.
    """
    if placement == "here":
        return {}
    check(root)
    return {stage.name: run_stage for stage in stages if stage.name.partition("@")[0] in ("train", "train_classifier")}


def check(root: Path) -> None:
    """What a run on the pool needs, looked at before anything runs."""
    remote = dvc_commands.default_remote(root)
    if remote is None:
        raise StageFailed(
            "placement pool: no default DVC remote is set, and data goes to the workers through it; set one that they"
            " reach: .venv/bin/dvc remote add --default NAME ADDRESS"
        )
    if remote.startswith(("http://", "https://")):
        raise StageFailed(
            "placement pool: DVC keeps no run cache in an http remote; use another kind, such as s3 or ssh"
        )
    commits.check_committed(root)
    if server.is_temporary():
        raise StageFailed("placement pool: workers need a Prefect server that stays; start it with `make up`")
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise StageFailed(f"placement pool: Prefect has no deployment {DEPLOYMENT}; `make up` makes it") from None
        _check_workers(client)


def run_stage(name: str, root: Path, say: Callable[[str], None]) -> Outcome:
    """Have a worker compute one stage, and take over its result.

    A result that the remote has already is taken without a worker. When a worker dies another one takes the stage up.

    Raises StageFailed with the worker's reason, Stopped when this process was told to stop; the worker's run is then
    cancelled.
    """
    with suppress(StageFailed):
        outcome = dvc_commands.run_stage(name, root, lambda _: None, restore=True)
        arrivals.check_digests(arrivals.out_digests(arrivals.lock_entries(root)[name]), root)
        return outcome
    request = _request(name, root)
    for left in reversed(range(TRIES)):
        asked = _ask(name, request)
        say(f"{name}: waits for a worker of the pool {POOL} (flow run {asked.id})")
        run = _wait(asked.id, name, say)
        state = run.state
        if state is None or state.type != StateType.CRASHED or not left:
            break
        say(f"{name}: its worker is gone ({state.message or 'no sign of life'}); the next one takes it up")
    if state is None or state.type != StateType.COMPLETED:
        reason = state.message if state and state.message else "it ended without a reason"
        died = f"{TRIES} workers died over it; " if state and state.type == StateType.CRASHED else ""
        raise StageFailed(f"stage {name} on the pool {POOL}: {died}{reason}")
    say(str(state.message))
    return _take_over(name, run.id, root, say)


def _request(name: str, root: Path) -> dict[str, Any]:
    """Push what the stage depends on, and return the parameters of the worker's run."""
    inputs = read_inputs(name, root)
    with _pushing:
        missing = [path for path, digest in inputs.pulled.items() if (path, digest) not in _pushed]
        if missing:
            dvc_commands.run_dvc(root, "push", *missing)
            _pushed.update((path, inputs.pulled[path]) for path in missing)
    return {
        "stage": name,
        "commit": commits.head(root),
        "inputs": inputs.lock,
        "files": {path: (root / path).read_text(encoding="utf-8") for path in inputs.files},
        "packages": installed_packages(),
    }


def _ask(name: str, request: dict[str, Any]) -> FlowRun:
    """Have Prefect schedule the run of a worker."""
    key = str(uuid4())  # asked again, the server gives the same run
    ask = partial(run_deployment, DEPLOYMENT, parameters=request, timeout=0, flow_run_name=name, idempotency_key=key)
    return cast(FlowRun, _patiently(ask))


def _patiently(call: Callable[[], T]) -> T:
    """What `call` returns. A server that is busy or away is asked again, for minutes."""
    until = time.monotonic() + AWAY_SECONDS
    while True:
        stopping.stop_if_asked()
        try:
            return call()
        except httpx.HTTPError as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 503
            if (status < 500 and status not in (408, 429)) or time.monotonic() > until:
                raise StageFailed(f"Prefect's server refuses or does not answer: {first_line(error)}") from None
        time.sleep(LOOK_EVERY)


def _wait(run_id: UUID, name: str, say: Callable[[str], None]) -> FlowRun:
    """Wait for the end of a worker's run; cancel it when this process is told to stop."""
    began, last = time.monotonic(), StateType.SCHEDULED
    try:
        with get_client(sync_client=True) as client:
            while True:
                run = _patiently(partial(client.read_flow_run, run_id))
                if run.state is None or run.state.is_final():
                    return run
                now = time.monotonic()
                if run.state.type != last:
                    began, last = now, run.state.type
                    if last == StateType.RUNNING:
                        say(f"{name}: a worker computes it")
                if last == StateType.SCHEDULED and now - began > NO_WORKER_SECONDS:
                    began = now
                    _check_workers(client)
                elif last == StateType.PENDING and now - began > PENDING_SECONDS:
                    dead: State[None] = Crashed(message="Its worker never began it.")
                    _patiently(partial(client.set_flow_run_state, run_id, dead, force=True))
                time.sleep(LOOK_EVERY)
    except BaseException:
        with suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling(message="The run that asked for it has ended."))
        raise


def _check_workers(client: SyncPrefectClient) -> None:
    try:
        workers = _patiently(partial(client.read_workers_for_work_pool, POOL))
    except ObjectNotFound:
        workers = []
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        raise StageFailed(
            f"no worker is online in the pool {POOL}; start one: make worker GPU=0 (without GPU: on a CPU)"
        )


def _take_over(name: str, run_id: UUID, root: Path, say: Callable[[str], None]) -> Outcome:
    """Restore the stage from the remote and compare every byte with the worker's digests."""
    with get_client(sync_client=True) as client:
        made = ArtifactFilter.model_validate({"flow_run_id": {"any_": [run_id]}, "type": {"any_": [RESULT]}})
        found = _patiently(partial(client.read_artifacts, artifact_filter=made))
    if not found:
        raise StageFailed(f"stage {name}: its worker left no result in Prefect")
    data: Any = found[0].data
    result: dict[str, Any] = (
        json.loads(data) if isinstance(data, str) else dict(data)
    )  # Prefect keeps it as JSON in a text
    arrivals.check_outs(result["outs"], read_inputs(name, root).outs)
    for text in result["files"].values():
        arrivals.put_into_cache(text, root)
    for left in reversed(range(ARRIVAL_TRIES)):
        try:
            dvc_commands.run_stage(name, root, say, restore=True)
            break
        except StageFailed:
            if not left:
                raise
            time.sleep(1.0)
    arrivals.check_digests(result["outs"], root)
    for path, facts in result["trainings"].items():
        if path in result["outs"] and facts:
            note_training(root / path / WEIGHTS, Path(path).name, root, facts)
    return "ran" if result["outcome"] == "ran" else "restored"
