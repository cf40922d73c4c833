"""The flow `train-model`: one stage, computed by a worker in its own clone, for a run on another machine.

Data and results go through the DVC remote. The caller's side is training_pool.py; worker.py starts the worker.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from densitywatch.errors import DensitywatchError
from densitywatch.files import write_whole
from densitywatch.tracking.store import FLOW_RUN_VARIABLE, plain
from densitywatch.training.bookkeeping import training_of
from pipelines import arrivals, commits, dvc_commands, links, stoppable_runs
from pipelines.dvc_commands import StageFailed
from pipelines.stage_inputs import read_inputs
from pipelines.stage_progress import with_bar

WEIGHTS = "model.safetensors"  # as in models/storage.py, which imports torch
RESULT = "stage-result"
"""The type of the artifact that tells the caller what was made."""


@flow(name="train-model", flow_run_name="{stage}")
def train_model(
    stage: str,
    commit: str | None = None,
    inputs: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
    packages: dict[str, str] | None = None,
) -> State[Any]:
    """Compute one stage in the clone of the worker that takes this run, and push its result to the DVC remote.

    Args:
        stage: The stage of dvc.yaml, such as train@vae.
        commit: The commit that the clone has to be at, 40 digits. It is fetched if need be. Empty: as the clone is.
        inputs: The entries of dvc.lock of the stages before this one. Empty: those of the commit.
        files: What small files that git keeps and a run writes hold, by path.
        packages: Versions of packages that the worker has to have.
    """
    root = Path.cwd()
    try:
        check_packages(packages or {})
        with (
            stoppable_runs.stoppable(root),
            stoppable_runs.one_run(root, say=get_run_logger().info),
        ):
            if commit is not None:
                commits.go_to(root, commit)
            lay_out(inputs or {}, files or {}, root)
            return Completed(message=_compute(stage, root))
    except DensitywatchError as error:
        get_run_logger().error("%s", error)
        return Failed(message=str(error))


def _compute(stage: str, root: Path) -> str:
    logger = get_run_logger()
    _bring_inputs(stage, root)
    model = stage.partition("@")[2] or "classifier"
    kept = (root / "checkpoints" / model).is_dir()
    logger.info(
        "%s: %s",
        stage,
        "goes on from the checkpoint in this clone, if it is of these params and data"
        if kept
        else "trains from the start: no checkpoint is in this clone",
    )
    os.environ[FLOW_RUN_VARIABLE] = links.flow_run_page() or ""  # the stage's run in MLflow links back
    outcome = dvc_commands.run_stage(stage, root, with_bar(stage, logger.info))
    dvc_commands.run_dvc(root, "push", "--run-cache", stage)
    Artifact(type=RESULT, description=f"What {stage} made", data=_result(stage, outcome, root)).create()
    return f"{stage}: {outcome} on {os.environ.get('DENSITYWATCH_WORKER', 'a worker')}"


def _bring_inputs(stage: str, root: Path) -> None:
    """Pull what the stage depends on, and compare its bytes with the digests of dvc.lock."""
    needed = read_inputs(stage, root)
    if not needed.pulled:
        return
    remote = dvc_commands.default_remote(root)
    if remote is None:
        raise StageFailed(f"the worker's clone {root} has no default DVC remote; set the one that the caller has")
    dvc_commands.check_remote(remote)
    try:
        dvc_commands.run_dvc(root, "pull", *needed.pulled)
    except StageFailed as error:
        raise StageFailed(
            f"the DVC remote {plain(remote)} gave this worker no {' '.join(needed.pulled)} ({error});"
            " set one remote that the caller and the worker both reach"
        ) from None
    arrivals.check_digests(needed.pulled, root)


def _result(stage: str, outcome: str, root: Path) -> dict[str, Any]:
    """What the caller needs besides the files in the remote."""
    entry = arrivals.lock_entries(root)[stage]
    outs = arrivals.out_digests(entry)
    unpushed = read_inputs(stage, root).unpushed_outs
    weights = {path: root / path / WEIGHTS for path in outs if (root / path / WEIGHTS).is_file()}
    return {
        "outcome": outcome,
        "outs": outs,
        "files": {path: (root / path).read_text(encoding="utf-8") for path in unpushed},
        "trainings": {path: training_of(file, Path(path).name, root) for path, file in weights.items()},
    }


def lay_out(inputs: dict[str, Any], files: dict[str, str], root: Path) -> None:
    """Write the caller's entries into dvc.lock and its files into the clone.

    Raises StageFailed for a file that would lie outside of it.
    """
    for name, text in files.items():
        if not (root / name).resolve().is_relative_to(root.resolve() / "metrics"):
            raise StageFailed(f"{name!r} is not in metrics/, and a caller writes nowhere else")
        write_whole(root / name, text)
    if inputs:
        entries = {**arrivals.lock_entries(root), **inputs}
        write_whole(root / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False))


def installed_packages() -> dict[str, str]:
    """The versions of the packages that this project asks for by name, which a model's bytes may depend on."""
    found = {}
    for line in metadata.requires("densitywatch") or []:
        if "extra ==" not in line:
            name = "".join(character if character.isalnum() or character in "-_." else " " for character in line)
            found[name.split()[0]] = metadata.version(name.split()[0])
    return found


def check_packages(wanted: dict[str, str]) -> None:
    """Raises StageFailed when this environment has another version of one; the build (+cpu, +cu130) may differ."""
    here = installed_packages()
    other = [
        f"{name} {here.get(name, 'not at all')} where the caller has {version}"
        for name, version in wanted.items()
        if here.get(name, "").partition("+")[0] != version.partition("+")[0]
    ]
    if other:
        raise StageFailed(f"this worker has {', '.join(other)}; run `make worker` at the caller's commit to install it")
