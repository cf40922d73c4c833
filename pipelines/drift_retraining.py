"""What a retraining does that a drift alarm asked for, before it trains: it adds the accepted images to the dataset."""

from __future__ import annotations

from pathlib import Path

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


def accept_drifted(params: Params, root: Path, drift: str, asked_by: str) -> list[Step]:
    """Where a drift alarm stands: accept its images and leave a page that says so; returns the step.

    The name of the run says what asked for it. drift: the batch whose alarm did. asked_by: the run of Prefect that
    raised it.
    """
    if drift:
        name_this_run(f"retrain: drift of {plain_words(drift)}")
    alarm = standing_alarm(params, root)
    if alarm is None:
        if drift:
            get_run_logger().info("the alarm of %s does not stand any more", visible(drift))
        return []
    return [accept_images(alarm.batches, alarm.batch, params, root, asked_by)]


@task(name="accept images", cache_policy=NO_CACHE)
def accept_images(batches: list[str], alarm: str, params: Params, root: Path, asked_by: str) -> Step:
    """Bring data/accepted and its version in DVC up to date with the verdicts on these batches."""
    from densitywatch.batches.accepting import accept
    from densitywatch.data.accepted import accepted_files

    logger = get_run_logger()
    with timed("accept images") as step:
        done = accept(batches, params, root)
        for problem in done.problems:
            logger.warning("nothing accepted of %s", visible(problem))
        if done.changed:
            if accepted_files(root):
                dvc_commands.run_dvc(root, "add", str(ACCEPTED))
            else:
                (root / ACCEPTED).with_suffix(".dvc").unlink(missing_ok=True)
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
