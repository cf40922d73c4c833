"""Device slots: a limit on Prefect's server, taken with a lease, and the order in which stages wait for it."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from densitywatch import stopping
from pipelines import server
from pipelines.dvc_commands import StageFailed
from pipelines.prefect_text import first_line

DEVICE_LIMIT = "gpu"
LEASE = 90.0
"""Seconds after which the slot of a killed flow is free again; a flow that runs renews its lease."""
RENEWED_EVERY = 20.0
"""Seconds between renewals: the server may be down for a minute before a running flow loses its slot."""
TRIES = 9
"""Number of times that a failing server is asked for a slot: about eight minutes in all."""
GATHER = 1.5
"""Seconds to wait for stages that become ready at the same time, before the first in order takes its slot."""

_held: set[UUID] = set()
"""The leases of this process: while it has one, the slots of a temporary server are not reset."""


class Turn:
    """Who takes the next device slot: of the stages that wait, the first one in `order`.

    Until `everyone` is set, at most `places` stages have their turn at once.
    """

    def __init__(self, places: int, order: Sequence[str] = ()) -> None:
        self.places = threading.Semaphore(max(0, places))
        self.everyone = threading.Event()
        self.order = {name: place for place, name in enumerate(order)}
        self.line: list[tuple[int, str]] = []
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """Wait in line, and then for a place or for `everyone`. Raises Stopped when this process is to stop."""
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
        """Take `name` out of the line: it has its slot, or needs none."""
        with self.lock:
            self.line = [other for other in self.line if other[1] != name]

    def _is_first(self, own: tuple[int, str]) -> bool:
        with self.lock:
            return min(self.line) == own


@contextmanager
def device_slot(needed: bool = True) -> Iterator[None]:
    """A slot of the limit `gpu`, which all flows of a server share: N slots let N stages compute at once.

    A busy server is asked again. A slot that could not be given back is free when its lease ends.

    Raises StageFailed when the server fails for minutes, Stopped when this process was told to stop.
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
            get_run_logger().warning("the device slot was not given back, it expires: %s", first_line(error))


def _renew(lease: UUID, given_back: threading.Event) -> None:
    """Renew a lease while its flow runs. Prefect's own renewal gives up after three tries, when a server restarts."""
    with get_client(sync_client=True) as client:
        while not given_back.wait(RENEWED_EVERY):
            with suppress(Exception):  # a server that is down is asked again
                client.renew_concurrency_lease(lease, LEASE)


def _take_slot() -> UUID:
    """Wait for a free slot and return its lease."""
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
                    raise StageFailed(f"no device slot from Prefect's server: {first_line(error)}") from None
                _pause(min(2.0**tries, 120.0))
            else:
                if not answer["limits"]:
                    raise StageFailed(f"no device slot from Prefect's server: it has no limit {DEVICE_LIMIT!r}")
                return UUID(answer["lease_id"])


def _pause(seconds: float) -> None:
    """Sleep, and raise Stopped as soon as this process is told to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stopping.stop_if_asked()
        time.sleep(min(0.2, seconds))


def ensure_device_limit(slots: int = 1) -> None:
    """Create the limit `gpu` where the server has none. A limit that a user has set stays as it is.

    A temporary server ends with this process. It takes the number from params.yaml and starts with all slots free, so a
    slot that a killed run held is free again.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(DEVICE_LIMIT)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another flow was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=DEVICE_LIMIT, limit=slots))
            return
        if server.is_temporary() and not _held:  # a flow inside another one must not reset its slots
            client.update_global_concurrency_limit(
                DEVICE_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots, active_slots=0)
            )
