"""DVC's stages as Prefect tasks: one task a stage, named after it, in the order of DVC's own graph."""

from __future__ import annotations

import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Completed

from densitywatch import stopping
from pipelines import dag, server
from pipelines.timing import Step

DEVICE_LIMIT = "gpu"
LEASE = 90.0
"""Seconds after which the slot of a flow that was killed is free again; a living one renews it."""
RENEWED_EVERY = 20.0
"""Seconds between renewals: a server may be away for a minute before a living flow loses its slot."""
TRIES = 9
"""How often a server that does not answer well is asked for a slot: about eight minutes in all."""
AGAIN_AFTER = [5.0, 30.0]
"""Seconds before a step that reaches out of this machine, to a source or a remote, is tried again."""


_held: set[UUID] = set()
"""The leases of this process: as long as it has one, a temporary server's slots are not all free."""
GATHER = 1.5
"""Seconds in which stages that become ready together come to stand in line."""


class Turn:
    """Whose turn it is at the device: of those who wait the one that comes first in `order`, one after the other.

    Until `everyone` is set, at most `places` of those who ask are there at once.
    """

    def __init__(self, places: int, order: Sequence[str] = ()) -> None:
        self.places = threading.Semaphore(max(0, places))
        self.everyone = threading.Event()
        self.order = {name: place for place, name in enumerate(order)}
        self.line: list[tuple[int, str]] = []
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """Wait in line, and then for a place or for everyone's turn. Raises Stopped when this process is to stop."""
        held = False
        own = (self.order.get(name, len(self.order)), name)
        with self.lock:
            self.line.append(own)
        try:
            if self.order and own[0] > 0:
                time.sleep(GATHER)
            while not (
                self._is_first(own) and (self.everyone.is_set() or (held := self.places.acquire(blocking=False)))
            ):
                stopping.stop_if_asked()
                time.sleep(0.2)
            yield
        finally:
            self.next_please(name)
            if held:
                self.places.release()

    def next_please(self, name: str) -> None:
        """`name` has its slot, or needs none any more."""
        with self.lock:
            self.line = [other for other in self.line if other[1] != name]

    def _is_first(self, own: tuple[int, str]) -> bool:
        with self.lock:
            return min(self.line) == own


def run_graph(
    root: Path,
    stages: list[dag.Stage],
    stale: set[str],
    *,
    first: Set[str] = frozenset(),
    then: Callable[[], None] = lambda: None,
    later: Sequence[tuple[Set[str], Callable[[], None]]] = (),
    slots: int = 1,
    order: Sequence[str] = (),
) -> list[Step]:
    """Run every stage as a task and return them in the order of the graph.

    A stage that `dvc status` found unchanged, and before which nothing ran, is skipped without asking DVC again.
    One that fetches, after no other or after a look at what is there, is tried again when it fails.

    first: stages that are wanted before all others; `then` is called when they are done. Until it has come back, one of
    the `slots` is theirs, so that no long training keeps them waiting.

    order: the stages that are to take their slots before others when they wait together, the first one first.

    later: what is called after that, one after the other, each as soon as its stages are done and none of them failed.

    Raises StageFailed for the first stage, in that order, that failed; what does not depend on it still runs.
    """
    turn = Turn(slots - 1, order)
    futures: dict[str, PrefectFuture[Step]] = {}
    looks = {stage.name for stage in stages if stage.always}
    for stage in stages:
        step = run_stage.with_options(
            name=stage.name,
            task_run_name=verbatim(stage.name),
            retries=len(AGAIN_AFTER) if not stage.always and set(stage.after) <= looks else 0,
            retry_delay_seconds=AGAIN_AFTER,
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
        turn.everyone.set()
        _call_when_done(futures, later)
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


def _call_when_done(
    futures: Mapping[str, PrefectFuture[Step]], calls: Sequence[tuple[Set[str], Callable[[], None]]]
) -> None:
    waiting, done = list(calls), set[str]()
    for name, future in futures.items():
        # what comes after a failure never gets a final state, and is done all the same
        future.add_done_callback(partial(_note_done, done, name))
    while waiting:
        stopping.stop_if_asked()
        for call in [call for call in waiting if call[0] <= done]:
            waiting.remove(call)
            for name in call[0]:
                futures[name].wait()  # takes the state from the task itself: the server hears of it later
            if all(futures[name].state.is_completed() for name in call[0]):
                call[1]()
        time.sleep(0.2)


def _note_done(done: set[str], name: str, _: PrefectFuture[Step]) -> None:
    done.add(name)


@task(cache_policy=NO_CACHE)  # DVC is the cache
def run_stage(stage: dag.Stage, root: Path, stale: bool, after: dict[str, Step], turn: Turn | None) -> State[Step]:
    """One stage, under a device slot if it computes there; the state's name says whether it ran."""
    started = time.time()
    if not stale and all(step.outcome == "skipped" for step in after.values()):
        return _state(Step(stage.name, "skipped", started, time.time()))
    logger = get_run_logger()
    waits = turn if stage.uses_device else None
    with waits.taken(stage.name) if waits else nullcontext(), device_slot(stage.uses_device):
        if waits:
            waits.next_please(stage.name)
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
    lease = _take_slot()
    _held.add(lease)
    given_back = threading.Event()
    renewal = contextvars.copy_context()  # Prefect keeps its settings there
    threading.Thread(target=renewal.run, args=(_renew, lease, given_back), daemon=True).start()
    try:
        yield
    finally:
        given_back.set()
        _held.discard(lease)
        try:
            with get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(lease)
        except Exception as error:
            get_run_logger().warning("the device slot was not given back, it expires: %s", _first_line(error))


def _renew(lease: UUID, given_back: threading.Event) -> None:
    """Keep a slot while its flow lives. Prefect's own renewal gives up after three tries, a server's restart."""
    with get_client(sync_client=True) as client:
        while not given_back.wait(RENEWED_EVERY):
            with suppress(Exception):  # a server that is away is asked again
                client.renew_concurrency_lease(lease, LEASE)


def _take_slot() -> UUID:
    """The lease of a slot, once one is free."""
    tries = 0
    with get_client(sync_client=True) as client:
        while True:
            stopping.stop_if_asked()
            try:
                answer = client.increment_concurrency_slots_with_lease([DEVICE_LIMIT], 1, "concurrency", LEASE).json()
            except httpx.HTTPError as error:
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
                if status == 423:  # all are taken
                    tries = 0
                    time.sleep(1)
                    continue
                tries += 1
                lasting = status is not None and status < 500 and status not in (408, 429)
                if lasting or tries == TRIES:
                    raise dag.StageFailed(f"no device slot from Prefect's server: {_first_line(error)}") from None
                _pause(min(2.0**tries, 120.0))
            else:
                if not answer["limits"]:
                    raise dag.StageFailed(f"no device slot from Prefect's server: it has no limit {DEVICE_LIMIT!r}")
                return UUID(answer["lease_id"])


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
        if server.is_temporary() and not _held:  # a flow within another finds its slots in use
            client.update_global_concurrency_limit(
                DEVICE_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots, active_slots=0)
            )
