"""The flow `retrain`: every stage of dvc.yaml as a task, then register, gate, promote, push, and score a batch."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment
from prefect.transactions import Transaction, transaction

from densitywatch import environment
from densitywatch.batches.inbox import find_batches
from densitywatch.data.cells import SORTED
from densitywatch.data.fetch import RAW
from densitywatch.errors import DataError, DensitywatchError, DriftAlarm
from densitywatch.files import write_whole
from densitywatch.params import Params, load_params
from densitywatch.text import visible
from densitywatch.tracking.store import FLOW_RUN_VARIABLE
from pipelines import dvc_commands, dvc_graph, links, stoppable_runs, training_pool
from pipelines.actor import actor
from pipelines.commit_pages import note_uncommitted, retrain_commit, tell_what_to_commit
from pipelines.commit_run import VERDICTS, is_clone
from pipelines.detect_outliers import detect_outliers
from pipelines.device_slots import device_slot, ensure_device_limit
from pipelines.drift_note import end_alarm, note_learnt, standing_alarm
from pipelines.drift_retraining import accept_drifted
from pipelines.prefect_text import leave_artifact, verbatim
from pipelines.promotion import gate_table
from pipelines.run_times import Step, timed
from pipelines.stage_tasks import AGAIN_AFTER, run_graph
from pipelines.up_to_date import note_up_to_date

DEMO = "demo"
WATCH = "calibrate"
"""The stage that makes the detector. What the scheduled job needs is trained, released and used before all else."""


@flow(name="retrain", flow_run_name="retrain")
def retrain(
    root: Path = Path(),
    ref: str | None = None,
    placement: training_pool.Placement = "here",
    drift: str = "",
    asked_by: str = "",
) -> list[Step]:
    """Bring everything up to date, in DVC's order, and make what passes the gate champion.

    A rejected candidate does not fail the flow: a table in Prefect names it. The demo batch, where the inbox has it, is
    scored again with the present champion; so are all new batches. Where a drift alarm stands, the accepted images of
    its batches join the dataset first (data.accept).

    One run at a time in a checkout: a deployment's run waits for the other to end, any other start is refused.

    Args:
        root: The checkout.
        ref: A commit, branch or tag of git to retrain, in a clone next to the checkout. Empty: the checkout as it is.
        placement: Where models are trained: "here" in this checkout, or on the "pool" of workers that `make worker`
            starts, each in its own clone.
        drift: The batch whose drift alarm asked for this run.
        asked_by: The run of Prefect that raised the alarm.

    Raises StageFailed or another DensitywatchError with one sentence when a step fails.
    """
    root = root.resolve()
    with (
        stoppable_runs.stoppable(root),
        stoppable_runs.one_run(root, say=get_run_logger().info if deployment.id else None),
    ):
        return retrain_commit(root, ref, placement) if ref else _retrain(root, placement, drift, asked_by)


def _retrain(
    root: Path, placement: training_pool.Placement = "here", drift: str = "", asked_by: str = ""
) -> list[Step]:
    note_uncommitted(root)
    # the gate measures models in this process while stages run
    device = load_params(root / "params.yaml").device
    environment.limit_threads(os.environ, device.threads_of_a_stage)
    params = load_params(root / "params.yaml")
    ensure_device_limit(params.device.slots)
    os.environ[FLOW_RUN_VARIABLE] = links.flow_run_page() or ""  # the stages' runs in MLflow link back
    steps: list[Step] = []
    remote = dvc_commands.default_remote(root)
    dvc_commands.check_remote(remote)
    stages = dvc_graph.read_graph(root)
    elsewhere = training_pool.elsewhere(placement, stages, root)
    alarm = None if is_clone(root) else standing_alarm(params, root)
    if not is_clone(root):  # a run of a commit trains what the commit says
        steps += accept_drifted(params, root, drift, asked_by)
    stale = dvc_commands.stale_stages(root)
    if stale and remote and dvc_commands.holds_something(remote):
        steps.append(pull(root))
        stale = dvc_commands.stale_stages(root)
    if stale and any(block.training.compile for block in params.models.values()):
        from densitywatch.devices import say_if_eager  # imports torch, which counts its threads at that moment

        say_if_eager(params.device)
    names = {stage.name for stage in stages}
    verdicts: list[dict[str, Any]] = []
    released: list[Step] = []

    def put_on_watch() -> None:
        released.append(_release("detector", params, root, verdicts))
        released.append(_detect(params, root, demo=True))

    def release_model(name: str) -> None:
        released.append(_release(name, params, root, verdicts))

    # labels need one more champion, so the scheduled job then waits for all models
    early = {WATCH, "demo_batch"} <= names and params.inbox.labels is None
    steps += run_graph(
        root,
        stages,
        stale,
        first=dvc_graph.with_ancestors(stages, {WATCH, "demo_batch"}) if early else frozenset(),
        then=put_on_watch if early else lambda: None,
        # a model is released as soon as it is evaluated
        later=[({f"evaluate@{name}"} & names, partial(release_model, name)) for name in params.models],
        slots=params.device.slots,
        order=[f"train@{name}" for name in params.models],
        elsewhere=elsewhere,
    )
    assert_fresh(root)
    steps += released
    if not early:
        steps.append(_release("detector", params, root, verdicts))
    write_whole(root / VERDICTS, json.dumps(verdicts) + "\n")
    leave_artifact(lambda: gate_table(verdicts, params, root))
    leave_artifact(
        lambda: create_markdown_artifact(
            links.models_table(verdicts, params, root), key="models", description="The models, linked to MLflow's pages"
        )
    )
    if remote:
        steps.append(push(root))
    steps.append(_detect(params, root, demo=not early))
    if (root / RAW / SORTED).is_dir():
        steps.append(assess_sorted(params, root))
    rows = [{"step": step.name, "outcome": step.outcome, "seconds": round(step.seconds, 1)} for step in steps]
    leave_artifact(lambda: create_table_artifact(rows, key="retrain-steps", description="Steps of the run"))
    note_learnt(alarm, params, root)
    note_up_to_date(root)
    tell_what_to_commit(root)
    return steps


def _release(name: str, params: Params, root: Path, verdicts: list[dict[str, Any]]) -> Step:
    with timed(f"release {name}") as step:
        verdicts.append(release(name, params, root))
        step.outcome = verdicts[-1]["outcome"]
        if name == "detector" and step.outcome == "promoted":
            end_alarm(params, root)
    return step


def _detect(params: Params, root: Path, *, demo: bool) -> Step:
    """Score the new batches; with `demo` also the demo batch, even if it has been scored.

    A batch or an inbox that cannot be read is a warning: the models are right all the same, and the scheduled job says
    it again. In the clone of a commit's run the demo batch alone: results of others would be removed with the clone.
    """
    with timed("detect outliers") as step:
        try:
            present = [
                batch
                for batch in find_batches(params, root, now=time.time())
                if batch.name == DEMO or not is_clone(root)
            ]
            wanted = [
                batch.name
                for batch in present
                if batch.state == "ready" or (demo and batch.name == DEMO and batch.state == "done")
            ]
            step.outcome = f"{len(detect_outliers(root, batches=wanted))} batches"
        except DriftAlarm as alarm:  # to retrain is what the alarm asks for
            get_run_logger().warning("%s", visible(str(alarm)))
            step.outcome = "drift alarm"
        except DataError as error:
            get_run_logger().warning("%s", visible(str(error)))
            step.outcome = "a batch failed"
    return step


@task(name="assess", cache_policy=NO_CACHE)
def assess_sorted(params: Params, root: Path) -> Step:
    """Measure the detector on the real defects that the source brings, which nothing is fitted on."""
    from densitywatch.batches.assess.assessment import assess

    with timed("assess") as step, device_slot():
        found = assess(str(RAW / SORTED), params, root, root / "data" / "assessments" / params.data.source)
        step.outcome = f"{len(found['kinds'])} kinds"
    return step


@task(name="pull", cache_policy=NO_CACHE)
def pull(root: Path) -> Step:
    """Take from the DVC remote what it has for the present dvc.lock; the rest is made again."""
    with timed("pull") as step:
        try:
            dvc_commands.run_dvc(root, "pull", "--allow-missing", "--run-cache")
        except dvc_commands.StageFailed as error:
            get_run_logger().warning("%s; what is missing is made again", error)
            step.outcome = "nothing"
    return step


@task(name="push", cache_policy=NO_CACHE, retries=len(AGAIN_AFTER), retry_delay_seconds=AGAIN_AFTER)
def push(root: Path) -> Step:
    """Send data, models and pages to the default DVC remote."""
    with timed("push") as step:
        dvc_commands.run_dvc(root, "push")
    return step


@task(name="assert fresh", cache_policy=NO_CACHE)
def assert_fresh(root: Path) -> None:
    """Raises StageFailed when DVC still finds a changed stage after all have run."""
    left = dvc_commands.stale_stages(root)
    if left:
        raise dvc_commands.StageFailed(
            f"still not up to date after the run: {', '.join(sorted(left))}; `dvc status` says why (was a file edited"
            " while it ran?)"
        )


def release(name: str, params: Params, root: Path) -> dict[str, Any]:
    """Register, gate and promote models/<name>; if the new champion cannot score an image, the old one is put back."""
    with transaction() as held:
        held.set("release", (name, params, root))
        version = register.with_options(task_run_name=verbatim(f"register {name}"))(name, params, root)
        promoted, reason = promote.with_options(task_run_name=verbatim(f"promote {name}"))(name, params, root)
        held.set("promoted", promoted)
        if promoted:
            check_champion.with_options(task_run_name=verbatim(f"check {name}"))(name, params, root)
    outcome = "promoted" if promoted else "rejected" if "rejected" in reason else "unchanged"
    return {"model": name, "version": version, "outcome": outcome, "gate": reason}


@task(name="register", cache_policy=NO_CACHE)
def register(name: str, params: Params, root: Path) -> int:
    """Register models/<name> and return its version; equal bytes have one version."""
    from densitywatch.registry import versions as registry

    return registry.register(name, params, root)


@task(name="promote", cache_policy=NO_CACHE)
def promote(name: str, params: Params, root: Path) -> tuple[bool, str]:
    """Ask the gate; return whether the challenger became champion, and the gate's reason.

    Where nothing is to be measured, no device slot is waited for: stages may hold them for an hour.
    """
    from densitywatch.registry import versions as registry
    from densitywatch.registry.read_history import is_champion

    with nullcontext() if is_champion(name, params, root) else device_slot():
        verdict = registry.promote(name, params, root, automatic=True, actor=actor())
    (get_run_logger().info if verdict.passed else get_run_logger().warning)("%s: %s", name, verdict.reason)
    return verdict.passed and verdict.candidate is not None, verdict.reason


@promote.on_rollback
def put_back(held: Transaction) -> None:
    """Make the previous champion champion again; where there was none, remove the alias."""
    from densitywatch.registry import versions as registry

    if held.get("promoted"):
        name, params, root = held.get("release")
        why = "the new champion could not be used"
        registry.rollback(name, params, root, to_none=True, actor=actor(), reason=why)


@task(name="check", cache_policy=NO_CACHE)
def check_champion(name: str, params: Params, root: Path) -> None:
    """Load the champion from the registry, as its users do, and let it measure two images.

    Raises DensitywatchError when it cannot.
    """
    import numpy as np

    from densitywatch.data.dataset import open_split
    from densitywatch.registry import measuring
    from densitywatch.registry import versions as registry

    folder = registry.download_model(f"models:/densitywatch-{name}@champion", params, root, stand_in=False)
    images = np.array(open_split(root / "data" / "prepared", "validation").images[:2])
    if name == "detector":
        from densitywatch.detector import detector

        if not np.isfinite(detector.load(folder).score(images).score).all():
            raise DensitywatchError(f"{name}: the new champion gives no finite score")
    elif not np.isfinite(measuring.measure_model(folder, images, params, root).value):
        raise DensitywatchError(f"{name}: the new champion measures no finite number")
