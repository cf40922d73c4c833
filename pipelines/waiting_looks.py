"""Runs that a schedule has started and that wait, as looks into the inbox behind one that goes on: one is enough.

A look takes every batch that is ready. Where one takes longer than the schedule's interval, or the machine was off for
a day, others wait, and a worker asks the server for each of them again every few seconds. With some twenty the server
has time for nothing else, and not even one of them begins.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

MOST = 200
"""Runs that one answer of the server holds, at most."""
EVERY = 60.0
"""Seconds, the shortest interval of a schedule."""


@contextmanager
def one_waits() -> Iterator[None]:
    """While the block goes on, at most one run of this run's deployment waits for it.

    Nothing is done in a run that no deployment has started. A server that fails stops nothing: it is asked again.
    """
    if deployment.id is None:
        yield
        return
    own, ended = UUID(str(deployment.id)), threading.Event()

    def thin_out() -> None:
        while not ended.wait(EVERY):
            with suppress(Exception), get_client(sync_client=True) as client:  # httpx's errors and Prefect's own
                leave_one_waiting(client, own)

    thread = threading.Thread(target=thin_out, name="runs that wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(EVERY)


def leave_one_waiting(client: SyncPrefectClient, deployment_id: UUID) -> int:
    """Delete what the deployment's schedule has started and what waits, all but the newest; returns how many."""
    waiting = _waiting(client, deployment_id)[:-1]
    for run in waiting:
        with suppress(ObjectNotFound):  # a person was faster
            client.delete_flow_run(run.id)
    return len(waiting)


def _waiting(client: SyncPrefectClient, deployment_id: UUID) -> list[FlowRun]:
    """The runs of its schedule whose time has come and that have not begun; the newest comes last."""
    scheduled = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=MOST,
    )
    now = datetime.now(UTC)
    return [
        run for run in scheduled if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now
    ]
