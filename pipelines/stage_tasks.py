"""DVC's stages as Prefect tasks: one task a stage, named after it, in the order of DVC's own graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from densitywatch import stopping
from pipelines import arrivals, dvc_commands, dvc_graph
from pipelines.device_slots import Turn, device_slot
from pipelines.prefect_text import verbatim
from pipelines.run_times import Step
from pipelines.stage_progress import with_bar

RunStage = Callable[[str, Path, Callable[[str], None]], dvc_commands.Outcome]
"""Brings the stage of this name in this checkout up to date, tells how it goes, and returns what it did."""
AGAIN_AFTER = [5.0, 30.0]
"""Seconds to wait before each new try of a step that needs another machine: a source or a remote."""


def run_graph(
    root: Path,
    stages: list[dvc_graph.Stage],
    stale: set[str],
    *,
    first: Set[str] = frozenset(),
    then: Callable[[], None] = lambda: None,
    later: Sequence[tuple[Set[str], Callable[[], None]]] = (),
    slots: int = 1,
    order: Sequence[str] = (),
    elsewhere: Mapping[str, RunStage] = MappingProxyType({}),
) -> list[Step]:
    """Run every stage as a task and return them in the order of the graph.

    A stage is skipped without asking DVC when `dvc status` found it unchanged and nothing before it ran. A stage that
    fetches (it comes after none, or after `look` alone) is tried again when it fails.

    first: stages to run before all others; `then` is called when they are done. Until `then` returns, one of the
    `slots` is reserved for them, so that they wait for no long training.

    order: of the stages that wait for a slot at the same time, who takes it first.

    later: pairs of stages and a function. After `then`, each function is called once its stages are done and none
    failed, one function at a time.

    elsewhere: what runs a stage that another machine computes. Such a stage takes no slot here.

    Raises StageFailed for the first stage, in the order of the graph, that failed; what does not depend on it runs.
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
        # Prefect replaces futures by their results, and the result of a state is its data
        after = cast("dict[str, Step]", {name: futures[name] for name in stage.after})
        waits = None if stage.name in first else turn
        future = step.submit(
            stage,
            root,
            stale=stage.always or stage.name in stale,
            after=after,
            turn=waits,
            elsewhere=elsewhere.get(stage.name),
        )
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
    except Exception as error:  # raised when the other stages are done
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
        # a stage after a failed one never gets a final state, but it is done
        future.add_done_callback(partial(_note_done, done, name))
    while waiting:
        stopping.stop_if_asked()
        for call in [call for call in waiting if call[0] <= done]:
            waiting.remove(call)
            for name in call[0]:
                futures[name].wait()  # takes the state from the task itself; the server gets it later
            if all(futures[name].state.is_completed() for name in call[0]):
                call[1]()
        time.sleep(0.2)


def _note_done(done: set[str], name: str, _: PrefectFuture[Step]) -> None:
    done.add(name)


@task(cache_policy=NO_CACHE)  # DVC is the cache
def run_stage(
    stage: dvc_graph.Stage,
    root: Path,
    stale: bool,
    after: dict[str, Step],
    turn: Turn | None,
    elsewhere: RunStage | None,
) -> State[Step]:
    """Run one stage, here with a device slot if it needs one; the state's name says whether it ran."""
    started = time.time()
    if not stale and all(step.outcome == "skipped" for step in after.values()):
        return _state(Step(stage.name, "skipped", started, time.time()))
    logger = get_run_logger()
    if elsewhere is not None:
        outcome = elsewhere(stage.name, root, logger.info)
        return _state(Step(stage.name, outcome, started, time.time()))
    waits = turn if stage.uses_device else None
    with waits.taken(stage.name) if waits else nullcontext(), device_slot(stage.uses_device):
        if waits:
            waits.next_please(stage.name)
        started = time.time()
        outcome = run_here(stage.name, root, with_bar(stage.name, logger.info))
    return _state(Step(stage.name, outcome, started, time.time()))


def run_here(name: str, root: Path, say: Callable[[str], None]) -> dvc_commands.Outcome:
    """Bring a stage up to date in this checkout; what comes from DVC's cache is compared with its digests.

    DVC takes the files of its cache for what their names say. A damaged one is removed, and the stage runs.
    """
    outcome = dvc_commands.run_stage(name, root, say)
    if outcome == "restored":
        try:
            arrivals.check_digests(arrivals.out_digests(arrivals.lock_entries(root)[name]), root)
        except dvc_commands.StageFailed:
            say(f"{name}: its result in DVC's cache is damaged; it is made again")
            outcome = dvc_commands.run_stage(name, root, say)
    return outcome


def _state(step: Step) -> State[Step]:
    names = {"ran": "Completed", "restored": "Restored", "skipped": "Skipped"}
    return Completed(name=names[step.outcome], data=step, message=f"{step.name}: {step.outcome}")
