"""DVC's stages as Prefect tasks: one task a stage, named after it, in the order of DVC's own graph."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Completed

from pipelines import dag, server
from pipelines.timing import Step

DEVICE_LIMIT = "gpu"


def run_graph(root: Path, stages: list[dag.Stage], stale: set[str]) -> list[Step]:
    """Run every stage as a task and return them in the order of the graph.

    A stage that `dvc status` found unchanged, and before which nothing ran, is skipped without asking DVC again.

    Raises StageFailed for the first stage, in that order, that failed; what does not depend on it still runs.
    """
    futures: dict[str, PrefectFuture[Step]] = {}
    for stage in stages:
        step = run_stage.with_options(
            name=stage.name, task_run_name=stage.name, retries=2 if not stage.after else 0, retry_delay_seconds=[5, 30]
        )
        # Prefect puts results in the place of futures, and takes a state's data for its result
        after = cast("dict[str, Step]", {name: futures[name] for name in stage.after})
        future = step.submit(stage, root, stale=stage.name in stale, after=after)
        futures[stage.name] = cast("PrefectFuture[Step]", future)
    try:
        for done in futures.values():
            done.wait()
    finally:
        dag.stop_running()
    failed = [future for future in futures.values() if future.state.is_failed() or future.state.is_crashed()]
    if failed:
        failed[0].result()  # raises what the first one raised
    return [future.result() for future in futures.values()]


@task(cache_policy=NO_CACHE)  # DVC is the cache
def run_stage(stage: dag.Stage, root: Path, stale: bool, after: dict[str, Step]) -> State[Step]:
    """One stage, under a device slot if it computes there; the state's name says whether it ran."""
    started = time.time()
    if not stale and all(step.outcome == "skipped" for step in after.values()):
        return _state(Step(stage.name, "skipped", started, time.time()))
    logger = get_run_logger()
    with device_slot(stage.uses_device):
        started = time.time()
        outcome = dag.run_stage(stage.name, root, logger.info)
    return _state(Step(stage.name, outcome, started, time.time()))


def _state(step: Step) -> State[Step]:
    names = {"ran": "Completed", "restored": "Restored", "skipped": "Skipped"}
    return Completed(name=names[step.outcome], data=step, message=f"{step.name}: {step.outcome}")


@contextmanager
def device_slot(needed: bool = True) -> Iterator[None]:
    """A slot of the limit `gpu`: as many stages compute at once as it has slots, over all flows of this server."""
    if not needed:
        yield
        return
    with concurrency(DEVICE_LIMIT, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        yield


def ensure_device_limit(slots: int = 1) -> None:
    """Create the limit `gpu` where the server has none; one that a user has set on a server stays as it is.

    A temporary server, which lives as long as this process, takes the number of params.yaml and starts
    with all slots free: one that a killed run held comes back.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(DEVICE_LIMIT)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another flow was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=DEVICE_LIMIT, limit=slots))
            return
        if server.is_temporary():
            client.update_global_concurrency_limit(
                DEVICE_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots, active_slots=0)
            )
