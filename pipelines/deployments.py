"""What `make up` puts into Prefect's server, without changing what a person has set there.

A value of params.yaml takes effect when it differs from the last one, which is in var/deployed.json. So an edited
`inbox.cron` moves the schedule. Otherwise a schedule that a person paused, moved or deleted in Prefect's page stays so.
Tags, limits, parameters and the work pools are set once, when they are made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from densitywatch.errors import DataError
from densitywatch.files import read_json, write_whole
from densitywatch.params import Params
from pipelines.server import ServiceFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOLS = ("gpu", "training")
"""`make up` starts a worker for the first, `make worker` those of the second (docs/how-to/gpu-machines.md)."""
FILE = Path("pipelines") / "prefect.yaml"
NOTE = Path("var") / "deployed.json"
CHOOSE_A_MODEL = ("promote", "rollback")
"""The deployments whose page offers the models of params.yaml."""
SILENT_AFTER = timedelta(seconds=150)  # five heartbeats


def deploy(root: Path, params: Params) -> None:
    """Make or update the work pools, the device limit, the flows of prefect.yaml and the automations.

    Raises ServiceFailed when Prefect refuses one.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    from pipelines.automations import keep_automations

    before = _noted(root)
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                template = ProcessWorker.get_default_base_job_template()
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        _keep_device_limit(client, params.device.slots, before.get("slots"))
        watch_silent_runs(client)
        wanted = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
        present = {deployment.name: deployment for deployment in client.read_deployments()}
        missing = [entry["name"] for entry in wanted["deployments"] if entry["name"] not in present]
        if missing:  # all by one program: each start takes seconds
            names = [word for name in missing for word in ("--name", name)]
            _prefect(root, params, "deploy", *names, "--prefect-file", str(FILE))
            present = {deployment.name: deployment for deployment in client.read_deployments()}
        for entry in wanted["deployments"]:
            found = present[entry["name"]]
            pull_steps = _pull_steps(entry.get("pull", wanted["pull"]), root)
            _keep_code(client, found, entry["entrypoint"], pull_steps, params)
            if entry.get("schedules") and entry["name"] not in missing:
                _keep_schedule(client, found, params.inbox.cron, before.get("cron"))
        automations = keep_automations(client, params, before)
    now = {"cron": params.inbox.cron, "slots": params.device.slots, **automations}
    write_whole(root / NOTE, json.dumps(now) + "\n")


def _keep_device_limit(client: SyncPrefectClient, slots: int, before: int | None) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    from pipelines.device_slots import DEVICE_LIMIT, ensure_device_limit

    ensure_device_limit(slots)
    if before is not None and before != slots:
        client.update_global_concurrency_limit(DEVICE_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots))


def _keep_code(
    client: SyncPrefectClient,
    found: DeploymentResponse,
    entrypoint: str,
    pull_steps: list[dict[str, Any]],
    params: Params,
) -> None:
    """Point a deployment to this checkout's code: the folder may have moved, the flow may have new parameters."""
    from prefect.client.schemas.actions import DeploymentUpdate

    schema = parameters_of(found.name, entrypoint, params)
    if (found.entrypoint, found.pull_steps, found.parameter_openapi_schema) != (entrypoint, pull_steps, schema):
        update = DeploymentUpdate(entrypoint=entrypoint, pull_steps=pull_steps, parameter_openapi_schema=schema)
        client.update_deployment(found.id, update)


def parameters_of(name: str, entrypoint: str, params: Params) -> dict[str, Any]:
    """The schema of a deployment's parameters, which makes the form in Prefect's page.

    Where a person chooses a model, the choices are those of params.yaml.
    """
    from prefect.utilities.callables import parameter_schema_from_entrypoint

    schema = dict(parameter_schema_from_entrypoint(entrypoint).model_dump())
    if name in CHOOSE_A_MODEL:
        schema["properties"]["model"]["enum"] = [*params.models, "detector"]
    return schema


def _pull_steps(steps: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """The steps of prefect.yaml as `prefect deploy` stores them: the variable is replaced by this folder."""
    filled = json.loads(json.dumps(steps))
    for step in filled:
        for inputs in step.values():
            if "directory" in inputs:
                inputs["directory"] = str(root.resolve())
    return list(filled)


def _keep_schedule(client: SyncPrefectClient, found: DeploymentResponse, cron: str, before: str | None) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    if cron == before:
        return
    crons = [schedule for schedule in found.schedules if isinstance(schedule.schedule, CronSchedule)]
    ours = sorted(crons, key=lambda schedule: getattr(schedule.schedule, "cron", None) != before)[:1]
    if not ours:
        client.create_deployment_schedules(
            found.id, [DeploymentScheduleCreate(schedule=CronSchedule(cron=cron), active=True)]
        )
    for schedule in ours:
        changed = schedule.schedule.model_copy(update={"cron": cron})
        client.update_deployment_schedule(found.id, schedule.id, schedule=changed)


def watch_silent_runs(client: SyncPrefectClient, within: timedelta = SILENT_AFTER) -> None:
    """Mark a run as crashed when its heartbeats stop: a killed worker's slots would stay taken (Prefect's docs)."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    from pipelines.batch_words import OUTLIERS
    from pipelines.detect_outliers import ALARM
    from pipelines.promotion import REJECTED

    name = "Crash runs that went silent"
    if client.read_automations_by_name(name):
        return
    states = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", OUTLIERS, ALARM, REJECTED)
    ends = {f"prefect.flow-run.{state}" for state in ("heartbeat", *states)}  # an event has the name of the state
    Automation(
        name=name,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect=ends,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name=None, message="No sign of life; its process is gone.", force=False
            )
        ],
    ).create()


def settle_runs() -> None:
    """Set the state of each run that the worker of `make up` held when it ended.

    A run that had not begun is scheduled again; one that was running has crashed. Prefect's worker sets neither: a
    run would stay "Submitting" for ever and hold the only place of its deployment.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import Cancelled, Crashed, Scheduled

    from pipelines.worker import POOL

    left = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": left}}})
        ):
            if run.deployment_id is None or run.state is None:  # started by a person, without a worker
                continue
            if run.work_pool_name == POOL:  # its worker may be another machine's, and outlives these servers
                continue
            state: State[None]
            if run.state.type == StateType.PENDING:
                state = Scheduled(message="The worker ended before it began; it waits for the next one.")
            elif run.state.type == StateType.CANCELLING:
                state = Cancelled()
            else:
                state = Crashed(message="Its worker was stopped.")
            client.set_flow_run_state(run.id, state, force=True)


def _prefect(root: Path, params: Params, *arguments: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=root,
        env={**os.environ, "DENSITYWATCH_ROOT": str(root.resolve()), "DENSITYWATCH_CRON": params.inbox.cron},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceFailed(f"prefect {' '.join(arguments[:2])}: {' '.join(done.stdout.split())[-300:]}")


def _noted(root: Path) -> dict[str, Any]:
    try:
        known = read_json(root / NOTE)
    except (FileNotFoundError, DataError):
        return {}
    return known if isinstance(known, dict) else {}
