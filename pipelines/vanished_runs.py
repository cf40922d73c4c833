"""Runs that are said to go on and whose process is gone: they are told as crashed.

A process tells the server how its run ended. Where the server could not hear it, as its database was away, the run
would seem to go on for ever. The automation "Crash runs that went silent" misses a run that never gave a sign of life.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines import service_processes

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""The variable by which the worker tells a process its run."""


def crash_vanished(root: Path) -> list[str]:
    """Set the state of the runs that the worker of `make up` began and that no process works on; returns their names.

    A run that ends meanwhile keeps its state.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    from pipelines.worker import POOL

    running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})
    told = []
    with get_client(sync_client=True) as client:
        # first the runs, then the processes: a run that begins in between is not among these runs
        found = client.read_flow_runs(flow_run_filter=running)
        at_work = _at_work(root)
        for run in found:
            # started by a person, or by the worker of another machine
            if run.deployment_id is None or run.work_pool_name == POOL or str(run.id) in at_work:
                continue
            # not forced: the server refuses it where the run has ended
            client.set_flow_run_state(run.id, Crashed(message="Its process is gone, and told nothing of its end."))
            told.append(run.name)
    return told


def _at_work(root: Path) -> set[str]:
    """The runs that processes of this checkout work on, and this process."""
    found = {os.environ.get(FLOW_RUN, "")}
    for process in service_processes.ours(root):
        with suppress(psutil.Error, OSError):
            found.add(process.environ().get(FLOW_RUN, ""))
    return found
