"""DVC's stages as Prefect tasks: one task a stage, named after it, in the order of DVC's own graph."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Completed

from densitywatch import stopping
from pipelines import dag, server
from pipelines.timing import Step

DEVICE_LIMIT = "gpu"
LEASE = 90.0
"""Seconds after which the slot of a flow that was killed is free again; a living one renews it."""
TRIES = 9
"""How often a server that does not answer well is asked for a slot: about eight minutes in all."""


class Turn:
    """Whose turn it is at the device: until `everyone` is set, at most `places` of those who ask are there at once."""

    def __init__(self, places: int) -> None:
        self.places = threading.Semaphore(max(0, places))
        self.everyone = threading.Event()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a place, or for everyone's turn. Raises Stopped when this process was told to stop."""
        held = False
        while not self.everyone.is_set() and not (held := self.places.acquire(timeout=0.2)):
            stopping.stop_if_asked()
        try:
            yield
        finally:
            if held:
                self.places.release()


def run_graph(
    root: Path,
    stages: list[dag.Stage],
    stale: set[str],
    *,
    first: Set[str] = frozenset(),
    then: Callable[[], None] = lambda: None,
    slots: int = 1,
) -> list[Step]:
    """Run every stage as a task and return them in the order of the graph.

    A stage that `dvc status` found unchanged, and before which nothing ran, is skipped without asking DVC again.
    One that fetches, after no other or after a look at what is there, is tried again when it fails.

    first: stages that are wanted before all others; `then` is called when they are done. Until it has come back, one of
    the `slots` is theirs, so that no long training keeps them waiting.

    Raises StageFailed for the first stage, in that order, that failed; what does not depend on it still runs.
    """
    turn = Turn(slots - 1)
    futures: dict[str, PrefectFuture[Step]] = {}
    looks = {stage.name for stage in stages if stage.always}
    for stage in stages:
        step = run_stage.with_options(
            name=stage.name,
            task_run_name=verbatim(stage.name),
            retries=2 if not stage.always and set(stage.after) <= looks else 0,
            retry_delay_seconds=[5, 30],
        )
        # Prefect puts results in the place of futures, and takes a state's data for its result
        after = cast("dict[str, Step]", {name: futures[name] for name in stage.after})
        waits = None if stage.name in first else turn
        future = step.submit(stage, root, stale=stage.always or stage.name in stale, after=after, turn=waits)
        futures[stage.name] = cast("PrefectFuture[Step]", future)
    failure: Exception | None = None
    try:
        for name in first:
            futures[name].wait()
        stopping.stop_if_asked()
        if all(futures[name].state.is_completed() for name in first):
            then()
    except Exception as error:  # the others go on; it is raised when they are done
        failure = error
    finally:
        turn.everyone.set()
    for done in futures.values():
        done.wait()
    stopping.stop_if_asked()
    if failure is not None:
        raise failure
    failed = [future for future in futures.values() if future.state.is_failed() or future.state.is_crashed()]
    if failed:
        failed[0].result()  # raises what the first one raised
    return [future.result() for future in futures.values()]


@task(cache_policy=NO_CACHE)  # DVC is the cache
def run_stage(stage: dag.Stage, root: Path, stale: bool, after: dict[str, Step], turn: Turn | None) -> State[Step]:
    """One stage, under a device slot if it computes there; the state's name says whether it ran."""
    started = time.time()
    if not stale and all(step.outcome == "skipped" for step in after.values()):
        return _state(Step(stage.name, "skipped", started, time.time()))
    logger = get_run_logger()
    with turn.taken() if turn and stage.uses_device else nullcontext(), device_slot(stage.uses_device):
        started = time.time()
        outcome = dag.run_stage(stage.name, root, logger.info)
    return _state(Step(stage.name, outcome, started, time.time()))


def _state(step: Step) -> State[Step]:
    names = {"ran": "Completed", "restored": "Restored", "skipped": "Skipped"}
    return Completed(name=names[step.outcome], data=step, message=f"{step.name}: {step.outcome}")


def verbatim(name: str) -> Callable[[], str]:
    """A run's name for Prefect, which takes a plain string for a template: a name from outside would read settings."""
    shown = re.sub(r"[^\w ./:+@-]", "?", name)
    return lambda: shown


def leave(make: Callable[[], Any]) -> None:
    """Leave an artifact in Prefect; a server that does not take it is named, and fails nothing."""
    try:
        make()
    except Exception as error:
        get_run_logger().warning("Prefect's server did not take a page: %s", _first_line(error))


@contextmanager
def device_slot(needed: bool = True) -> Iterator[None]:
    """A slot of the limit `gpu`: as many stages compute at once as it has slots, over all flows of this server.

    A server that is busy is asked again; a slot that it does not take back comes back by itself after some time.

    Raises StageFailed when the server does not answer well for minutes, Stopped when this process was told to stop.
    """
    if not needed:
        yield
        return
    slot = _take_slot()
    try:
        yield
    finally:
        try:
            slot.__exit__(None, None, None)
        except Exception as error:
            get_run_logger().warning("the device slot was not given back, it expires: %s", _first_line(error))


def _take_slot() -> Any:
    tries = 0
    while True:
        stopping.stop_if_asked()
        slot = concurrency(
            DEVICE_LIMIT,
            occupy=1,
            max_retries=0,
            lease_duration=LEASE,
            strict=True,
            raise_on_lease_renewal_failure=False,
        )
        try:
            slot.__enter__()
        except ConcurrencySlotAcquisitionError as error:
            cause = error.__cause__
            status = cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None
            if status == 423:  # all are taken
                tries = 0
                time.sleep(1)
                continue
            tries += 1
            lasting = cause is None or (status is not None and status < 500 and status not in (408, 429))
            if lasting or tries == TRIES:
                raise dag.StageFailed(f"no device slot from Prefect's server: {_first_line(cause or error)}") from None
            _pause(min(2.0**tries, 120.0))
        else:
            return slot


def _pause(seconds: float) -> None:
    """Sleep, but no longer than until this process is told to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stopping.stop_if_asked()
        time.sleep(min(0.2, seconds))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
