"""What a retraining does that a drift alarm asked for, before it trains: it adds the accepted images to the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from densitywatch.data.look import ACCEPTED
from densitywatch.params import Params
from densitywatch.text import visible
from pipelines import dvc_commands
from pipelines.batch_words import counted
from pipelines.drift_note import standing_alarm
from pipelines.prefect_text import leave_artifact, name_this_run, plain_words
from pipelines.run_times import Step, timed

if TYPE_CHECKING:
    from densitywatch.batches.accepting import Accepted


def accept_drifted(params: Params, root: Path, drift: str, asked_by: str) -> list[Step]:
    """Where a drift alarm stands: accept its images and leave a page that says so; returns the step.

    Without one, images whose verdict was taken back since they were accepted are taken away.
    The name of the run says what asked for it. drift: the batch whose alarm did. asked_by: the run of Prefect that
    raised it.
    """
    if drift:
        name_this_run(f"retrain: drift of {plain_words(drift)}")
    alarm = standing_alarm(params, root)
    if alarm is None:
        if drift:
            get_run_logger().info("the alarm of %s does not stand any more", visible(drift))
        return refreshed(params, root)
    return [accept_images(alarm.batches, alarm.batch, params, root, asked_by, alarm.stream)]


def refreshed(params: Params, root: Path) -> list[Step]:
    """Bring the images that were accepted under earlier alarms up to date; returns the step, none without any."""
    from densitywatch.batches.accepting import CHANGED
    from densitywatch.data.accepted import accepted_files

    return [refresh_images(params, root)] if accepted_files(root) or (root / CHANGED).exists() else []


@task(name="refresh accepted images", cache_policy=NO_CACHE)
def refresh_images(params: Params, root: Path) -> Step:
    """Make the files of data/accepted, and their version in DVC, of what people say by now."""
    with timed("refresh accepted images") as step:
        done = bring_up_to_date([], "", params, root)
        step.outcome = "changed" if done.changed else "no change"
    return step


def bring_up_to_date(batches: list[str], alarm: str, params: Params, root: Path) -> Accepted:
    """Accept what is to be accepted, name what cannot be, and note the version in DVC where it is another one.

    A change that an earlier run was stopped before noting is noted now.
    """
    from densitywatch.batches.accepting import CHANGED, accept
    from densitywatch.data.accepted import accepted_files

    done = accept(batches, params, root, alarm=alarm)
    for problem in done.problems:
        get_run_logger().warning("nothing accepted of %s", visible(problem))
    kept, files = (root / ACCEPTED).with_suffix(".dvc"), accepted_files(root)
    if (root / CHANGED).exists() or (files and not kept.exists()):
        if files:
            dvc_commands.run_dvc(root, "add", str(ACCEPTED))
        else:
            kept.unlink(missing_ok=True)
        (root / CHANGED).unlink(missing_ok=True)
    return done


@task(name="accept images", cache_policy=NO_CACHE)
def accept_images(batches: list[str], alarm: str, params: Params, root: Path, asked_by: str, stream: str = "") -> Step:
    """Bring data/accepted and its version in DVC up to date with the verdicts on these batches.

    alarm: the batch that raised it, in this stream of batches; the two say which drift it is.
    """
    logger = get_run_logger()
    with timed("accept images") as step:
        done = bring_up_to_date(batches, f"{stream} {alarm}", params, root)
        said = (
            f"{counted(done.images, 'image')} of {counted(len(batches), 'batch')} accepted into the dataset"
            f" (data.accept: {params.data.accept}), {done.fair:,} of them of random draws that were judged whole;"
            f" {done.unjudged:,} flagged ones have no verdict"
        )
        if not done.images and params.data.accept == "reviewed":
            said += f". Nothing is learnt until somebody looks: densitywatch review {alarm} --at-random 200"
        logger.info("%s", visible(said))
        step.outcome = counted(done.images, "image")
    asked = f"Asked for by the [scoring run](/runs/flow-run/{plain_words(asked_by)}).\n\n" if asked_by else ""
    page = f"Drift alarm at batch {plain_words(alarm)}.\n\n{asked}{plain_words(said, 400)}\n\n" + "\n".join(
        f"* {plain_words(name)}" for name in batches[:100]
    )
    leave_artifact(lambda: create_markdown_artifact(page, key="asked-by", description="Why this run retrains"))
    return step
