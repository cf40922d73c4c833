"""What the flow `retrain` says of git: what was not committed before, what is to be committed after, and the result of
a run of a commit, each in its log and as an artifact.
"""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import Artifact, create_markdown_artifact

from densitywatch.data.look import ACCEPTED
from densitywatch.errors import DensitywatchError
from densitywatch.params import load_params
from densitywatch.text import visible
from pipelines import commit_run, git_files, retrain_result
from pipelines.drift_note import end_alarm
from pipelines.prefect_text import leave_artifact
from pipelines.run_times import Step

MOST = 20
COMMIT = "git add dvc.lock metrics && git commit -m 'Retrain'"


def retrain_commit(root: Path, ref: str, placement: str = "here") -> list[Step]:
    """Run commit `ref` in a clone; leave its result for people (Markdown) and for the CI side (JSON)."""
    logger = get_run_logger()
    done = commit_run.run(root, ref, lambda line: logger.info("%s", line), placement)
    for line in retrain_result.verdict_lines(done.result):
        logger.info("%s", line)
    if any(row["model"] == "detector" and row["outcome"] == "promoted" for row in done.result["verdicts"]):
        end_alarm(load_params(root / "params.yaml"), root)  # the clone does not know of it
    page = retrain_result.page(done.result)
    leave_artifact(lambda: create_markdown_artifact(page, key="retrain-commit", description=visible(ref)))
    # not through leave_artifact: without it a run of CI has no result, which its state must say
    kind, key = retrain_result.TYPE, retrain_result.KEY
    Artifact(type=kind, key=key, data=done.result, description="For the CI side").create()
    others = done.result["other_changes"]
    if others:
        logger.warning("the run changed files that are not sent back: %s", _shown(others))
    return done.steps


def note_uncommitted(root: Path) -> None:
    """Say what of the checkout is not committed, or refuse the run, as params.yaml's `git.uncommitted` says.

    Raises DensitywatchError for `refuse`, where there is no git repository too.
    """
    refuse = load_params(root / "params.yaml").git.uncommitted == "refuse"
    if not git_files.is_repository(root):
        if refuse:
            raise DensitywatchError(f"{root} is no git repository, and git.uncommitted is `refuse` in params.yaml")
        return
    paths = git_files.uncommitted(root)
    if not paths:
        return
    what = f"not committed: {_shown(paths)}"
    if refuse:
        raise DensitywatchError(f"{what}; commit it, or set git.uncommitted to `record` in params.yaml")
    get_run_logger().warning("%s; this run belongs to no commit", what)
    leave_artifact(
        lambda: create_markdown_artifact(_list("Not committed when this run began", paths), key="git-uncommitted")
    )


def tell_what_to_commit(root: Path) -> None:
    """Say which files that git keeps the run has changed, and the command that commits them."""
    if commit_run.is_clone(root) or not git_files.is_repository(root):
        return  # a clone's files go back with its result
    paths = git_files.unkept_results(root)
    if not paths:
        return
    command = COMMIT.replace("metrics", f"metrics {ACCEPTED}.dvc") if f"{ACCEPTED}.dvc" in paths else COMMIT
    get_run_logger().info("changed, not committed: %s; keep them: %s", _shown(paths), command)
    page = f"{_list('Changed and not committed', paths)}\nKeep them:\n\n    {command}\n"
    leave_artifact(lambda: create_markdown_artifact(page, key="git-results"))


def _shown(paths: list[str]) -> str:
    more = f" and {len(paths) - MOST} more" if len(paths) > MOST else ""
    return visible(", ".join(paths[:MOST]) + more)


def _list(title: str, paths: list[str]) -> str:
    """A title and the paths as a block of text, in which Markdown and HTML mean nothing."""
    return f"## {title}\n\n" + "".join(f"    {visible(path)}\n" for path in paths)
