"""The scheduled job: score every new batch of the inbox with the champion detector and report what it found.

Results depend on the batch and the detector alone, and appear by rename. So a batch scored twice, two jobs at once, or
a job started again after a kill give the same results.
"""

from __future__ import annotations

import base64
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment
from prefect.states import Failed

from densitywatch import environment
from densitywatch.batches.inbox import Batch, find_batches
from densitywatch.errors import DataError, DensitywatchError, DriftAlarm, ValidationFailed
from densitywatch.params import Params, load_params
from densitywatch.text import one_line, visible
from pipelines import links, reports, stoppable_runs
from pipelines.batch_words import in_figures, last_state, name_run, row
from pipelines.device_slots import device_slot, ensure_device_limit
from pipelines.drift_loop import follow_alarm
from pipelines.prefect_text import leave_artifact, verbatim, without_markup
from pipelines.vanished_runs import crash_vanished
from pipelines.waiting_looks import one_waits

ALARM = "Drift alarm"
"""The name of the state that a run ends in when the stream has moved; its type is Failed."""
CHAMPION: Any = "models:/densitywatch-detector@champion"


@flow(name="detect-outliers", flow_run_name="detect-outliers")
def detect_outliers(root: Path = Path(), batches: list[str] | None = None) -> list[dict[str, Any]]:
    """Score the inbox's new batches, or those named in `batches` whether new or not; returns their summaries.

    A batch that cannot be scored does not stop the others; it is named when all are done.

    It may run while `retrain` runs: it changes nothing that DVC tracks.

    A drift alarm ends the run in the state ALARM, after every batch is scored and done: each run that scores a batch
    ends so until a person has seen the alarm (inbox.drift_seen) or the detector has another version. A batch that is
    scored again says again what it said at first. A run that flagged images, without an alarm, ends in the state
    OUTLIERS of batch_words.py, which is of type Completed. An alarm asks for a retraining (drift_loop.py).

    Raises DataError naming the batches that failed, or those asked for that are not there; DriftAlarm as above.
    """
    root = root.resolve()
    with stoppable_runs.stoppable(root), one_waits():
        if deployment.id is not None:
            with suppress(Exception):  # httpx's errors and Prefect's own: the next look asks again
                crash_vanished(root)
        try:
            summaries = _detect_outliers(root, batches)
            ended: Any = last_state(summaries)
            return ended or summaries  # Prefect takes a returned state for the run's
        except DriftAlarm as alarm:
            get_run_logger().error("%s", visible(str(alarm)))
            ended = Failed(name=ALARM, message=str(alarm), data=alarm)
            return ended  # type: ignore[no-any-return]


def _detect_outliers(root: Path, batches: list[str] | None) -> list[dict[str, Any]]:
    started = time.time()
    params = load_params(root / "params.yaml")
    environment.limit_threads(os.environ, params.device.threads_of_a_stage)  # a batch is scored in one device slot
    present = find_batches(params, root, now=time.time())
    if batches is None:
        wanted = [batch for batch in present if batch.state == "ready"]
    else:
        wanted = [batch for batch in present if batch.name in batches and batch.state in ("ready", "done")]
        missing = set(batches) - {batch.name for batch in wanted}
        if missing:
            raise DataError(f"inbox {params.inbox.address}: no batch {', '.join(sorted(missing))} that is complete")
    name_run([batch.name for batch in wanted])
    if not wanted:
        get_run_logger().info("no new batch in %s", params.inbox.address)
        _note_look(params, root, started, present, {}, [])
        _follow_alarm([], params, root, started)
        return []
    from densitywatch.batches.drift_state import alarm_in_words

    ensure_device_limit(params.device.slots)
    for note in stand_ins(params, root):
        get_run_logger().warning("%s", note)
    summaries, failures = [], []
    done: dict[str, bool] = {}
    for batch in wanted:
        try:
            named = score_batch.with_options(task_run_name=verbatim(f"score {batch.name}"))
            summaries.append(named(batch, params, root))
            done[batch.name] = True
            get_run_logger().info("%s", visible(in_figures(summaries[-1])))
        except (DensitywatchError, OSError) as error:
            done[batch.name] = isinstance(error, ValidationFailed)  # its results stand
            failures.append(f"{batch.name} ({error})")
        except Exception as error:  # one batch never stops the others
            get_run_logger().error("%s: %s", visible(batch.name), visible(one_line(error)), exc_info=True)
            failures.append(f"{batch.name} ({type(error).__name__}: {one_line(error)})")
    _note_look(params, root, started, present, done, failures)
    if summaries:
        rows = [row(summary) for summary in summaries]
        leave_artifact(lambda: create_table_artifact(rows, key="outlier-batches", description="Batches"))
    _follow_alarm(wanted, params, root, started)
    alarm = next((text for summary in reversed(summaries) if (text := alarm_in_words(summary)) is not None), None)
    if failures:
        moved = f"; {alarm}" if alarm is not None else ""
        raise DataError(f"not scored, or not as expected: {'; '.join(failures)}{moved}")
    if alarm is not None:
        raise DriftAlarm(alarm)
    return summaries


def _note_look(
    params: Params, root: Path, started: float, present: list[Batch], done: dict[str, bool], failures: list[str]
) -> None:
    """Keep what this run found for `make status` and for Prometheus; where that fails, a warning says so.

    `done`: for each batch that it took up, whether it is done.
    """
    from densitywatch.batches.looks import note_look

    left = [batch for batch in present if batch.state in ("ready", "waiting") and not done.get(batch.name, False)]
    try:
        note_look(
            params,
            root,
            started=started,
            ended=time.time(),
            scored=sum(done.values()),
            left=left,
            failures=failures,
        )
    except (DataError, OSError) as error:
        get_run_logger().warning("what this run found is not kept: %s", visible(one_line(error)))


def _follow_alarm(wanted: list[Batch], params: Params, root: Path, started: float) -> None:
    """Note what these batches say of drift, those too that are not as expected, and ask for a retraining if it is due.

    What goes wrong with it is named and fails no batch.
    """
    from densitywatch.batches.results_folder import read_summary, results_folder

    folders = [results_folder(batch.source, params, root) for batch in wanted]
    told = [{**summary, "folder": str(folder)} for folder in folders if (summary := read_summary(folder)) is not None]
    try:
        follow_alarm(told, params, root, began=started, now=time.time())
    except (DensitywatchError, OSError) as error:
        get_run_logger().warning("the drift alarm could not be followed: %s", visible(one_line(error)))


def stand_ins(params: Params, root: Path) -> list[str]:
    """A warning for each champion whose alias or files are gone, and for each one that a person moved by hand."""
    from densitywatch.registry.on_watch import on_watch

    said = []
    for name in champions(params):
        with suppress(DensitywatchError):  # scoring itself raises the reason
            found = on_watch(name, params, root)
            said += [found.moved, found.stand_in]
    return [note for note in said if note]


def champions(params: Params) -> list[str]:
    """The registered models whose champions score a batch."""
    return [
        *(["detector"] if isinstance(CHAMPION, str) else []),
        *([params.inbox.labels] if params.inbox.labels else []),
    ]


@task(name="score", cache_policy=NO_CACHE)
def score_batch(batch: Batch, params: Params, root: Path) -> dict[str, Any]:
    """Score one batch under a device slot, log it in MLflow, leave a page about it in Prefect, and check it.

    The batch is done when all of that is done. If a job is killed after the results are written, or stopped before the
    check has ended, the next job finds them and does the rest.

    Raises ValidationFailed when the batch as a whole breaks an expectation; its results are kept.
    """
    from densitywatch.batches.checks import validate_batch
    from densitywatch.batches.drift_state import alarm_in_words
    from densitywatch.batches.results_folder import note_run
    from densitywatch.batches.score_batch import ScoreOptions, score_source
    from densitywatch.registry.on_watch import on_watch
    from densitywatch.tracking.runs import log_batch

    with device_slot():
        found = {name: on_watch(name, params, root) for name in champions(params)}
        for moved in filter(None, (one.moved for one in found.values())):
            get_run_logger().warning("%s", visible(moved))
        labels = params.inbox.labels and str(found[params.inbox.labels].folder)
        options = ScoreOptions(strict=params.inbox.strict, control=params.inbox.control, label_model=labels)
        detector = found["detector"].folder if "detector" in found else CHAMPION
        summary = score_source(batch.source, params, root, detector=detector, options=options)
    instead = "; ".join(one.stand_in for one in found.values() if one.stand_in)
    note_run(Path(summary["folder"]), stand_in=instead)
    if instead:
        summary["stand_in"] = instead
    log_batch(summary, params, root, links.of_batch(Path(summary["folder"]), root))
    figures = "\n".join(f"| {key} | {value} |" for key, value in row(summary).items())
    folder = Path(summary["folder"]).resolve()
    link = f"[report of {_text(folder.name)}]({reports.page_of(folder, root)})"
    warning = f"**Not scored with the champion:** {without_markup(instead)}\n\n" if instead else ""
    text = f"{warning}| | |\n|---|---|\n{figures}\n\nThe page with the images: {link}\n\n{gallery_text(folder)}\n"
    leave_artifact(lambda: create_markdown_artifact(text, key="outlier-batch", description=_text(batch.name)))
    try:
        validate_batch(Path(summary["folder"]), summary["files"], params)
    except DensitywatchError as error:  # the summary is not handed on, and a camera that breaks often does both
        if isinstance(error, ValidationFailed):  # a batch that breaks an expectation is done too
            note_run(Path(summary["folder"]), listing=batch.listing)
        if (alarm := alarm_in_words(summary)) is None:
            raise
        raise type(error)(f"{error}; {alarm}") from error
    note_run(Path(summary["folder"]), listing=batch.listing)
    return summary


def gallery_text(folder: Path) -> str:
    """The most outlying images as one picture inside the text: Prefect's server stores no files."""
    from densitywatch.batches.gallery import contact_sheet

    sheet = contact_sheet(folder)
    if sheet is None:
        return "No image of this batch could be read."
    picture = base64.b64encode(sheet).decode()
    return f"Worst first, flagged ones framed:\n\n![the least usual images](data:image/png;base64,{picture})"


def _text(name: str) -> str:
    return re.sub(r"[^\w ./:+-]", "?", name)
