"""A run of one commit: in a clone of its own under var/commits, so that the person's checkout stays as it is.

The clone shares the checkout's DVC cache, its remote and its registry, and runs the code of the commit in the same
environment. What git keeps of the results comes back in an artifact (retrain_result.py); what DVC keeps goes to its
cache and its remote. Afterwards the clone is removed (docs/decisions/0038-ci-asks-for-a-run-of-a-commit.md).
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densitywatch import stopping
from densitywatch.errors import DensitywatchError
from densitywatch.files import read_json
from densitywatch.params import load_params
from densitywatch.text import visible
from densitywatch.tracking.addresses import ARTIFACTS
from densitywatch.tracking.store import tracking_uri
from pipelines import dvc_commands, git_files, prefect_home, retrain_result
from pipelines.run_times import Step

FOLDER = Path("var") / "commits"
NOTE = Path("var") / "commit.json"
"""In a clone: which commit it is of. A run there scores the demo batch alone: results of others would go with it."""
VERDICTS = Path("var") / "verdicts.json"
TRACEBACK = Path("var") / "log" / "traceback.txt"
ENVIRONMENT = "requirements.lock"
OF_PREFECT = re.compile(r"\d\d:\d\d:\d\d\.\d+ \| ")
RUN_PAGE = re.compile(r"/runs/flow-run/([0-9a-f-]{36})")


@dataclass(frozen=True)
class CommitRun:
    """How the run of a commit ended: its steps, and the result as retrain_result.py describes it."""

    steps: list[Step]
    result: dict[str, Any]


def is_clone(root: Path) -> bool:
    """Whether `root` is the clone of a commit's run."""
    return (root / NOTE).is_file()


def run(root: Path, ref: str, say: Callable[[str], None], placement: str = "here") -> CommitRun:
    """Retrain the commit that `ref` names, in a clone; call it while the run lock of `root` is held.

    Raises DensitywatchError with one sentence: git does not know `ref`, the commit needs another environment, or what
    stopped its run.
    """
    git_files.check_ref(ref)
    folder = root / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        commit, clone = _clone(root, ref, folder)
        say(f"{ref} is commit {commit}; it runs in {clone}")
        _check_environment(root, clone, commit)
        _share(root, clone, ref, commit)
        if (clone / "dvc.lock").is_file():
            dvc_commands.run_dvc(clone, "checkout", "--allow-missing", "--quiet")
        started = time.time()
        _retrain(root, clone, say, placement)
        return CommitRun(_steps(clone, started), _result(clone, ref, commit, time.time() - started))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clone(root: Path, ref: str, folder: Path) -> tuple[str, Path]:
    """A clone of `root` at the commit, without its hooks and refs; a commit that `root` lacks comes from its origin.

    A worktree would run the person's hooks, and leave an entry in the repository when the run is killed.
    """
    commit = git_files.commit_of(root, ref)
    clone = folder / "checkout"
    folder.mkdir(parents=True)
    git_files.git(root, "clone", "--quiet", "--no-checkout", "--shared", str(root), str(clone), seconds=None)
    if commit is None:
        commit = _fetch(root, clone, ref)
    git_files.git(clone, "checkout", "--quiet", "--detach", commit, seconds=None)
    return commit, clone


def _fetch(root: Path, clone: Path, ref: str) -> str:
    unknown = f"git does not know '{ref}' in {root}"
    try:
        origin = git_files.git(root, "config", "--get", "remote.origin.url").strip()
    except DensitywatchError:
        raise DensitywatchError(f"{unknown}, and it has no remote `origin` to ask; fetch the commit there") from None
    if "://" not in origin and ":" not in origin:
        origin = str((root / origin).resolve())  # a folder
    # the repository's own settings may say how to log in
    own = git_files.git(root, "rev-parse", "--path-format=absolute", "--git-path", "config").strip()
    fetch = ("-c", f"include.path={own}", "fetch", "--quiet", "--no-tags", "--", origin, ref)
    try:
        git_files.git(clone, *fetch, seconds=git_files.FETCH_SECONDS)
        return git_files.git(clone, "rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
    except DensitywatchError as error:
        raise DensitywatchError(f"{unknown}, nor does its remote `origin` ({error}); push the commit first") from None


def _check_environment(root: Path, clone: Path, commit: str) -> None:
    ours, theirs = root / ENVIRONMENT, clone / ENVIRONMENT
    if not theirs.is_file() or ours.read_bytes() != theirs.read_bytes():
        raise DensitywatchError(
            f"commit {commit[:12]} has another {ENVIRONMENT} than {root}, whose environment it would run in; check"
            f" out a commit with that {ENVIRONMENT} there and run `make up`"
        )
    if not (clone / "pipelines" / "commit_run.py").is_file():
        raise DensitywatchError(f"commit {commit[:12]} is older than runs of a commit; check it out and `make run`")


def _share(root: Path, clone: Path, ref: str, commit: str) -> None:
    """Let the clone use the cache, the remotes (their passwords too) and the artifacts of `root`."""
    from configobj import ConfigObj  # the library with which DVC reads this file
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        ours, cache = repo.config, repo.cache.local_cache_dir
    settings: dict[str, Any] = {"cache": {"dir": str(cache)}}
    if ours["core"].get("remote"):
        settings["core"] = {"remote": ours["core"]["remote"]}
    for name, values in ours["remote"].items():
        settings[f'remote "{name}"'] = {key: str(value) for key, value in values.items()}
    lines = ConfigObj(settings, encoding="utf-8").write()
    prefect_home.write_private(clone / ".dvc" / "config.local", b"\n".join(lines).decode() + "\n")
    (root / ARTIFACTS).mkdir(exist_ok=True)
    (clone / ARTIFACTS).symlink_to(root.resolve() / ARTIFACTS)  # where a new experiment keeps its files
    (clone / "var").mkdir(exist_ok=True)
    (clone / NOTE).write_text(json.dumps({"ref": ref, "commit": commit}) + "\n", encoding="utf-8")


def _retrain(root: Path, clone: Path, say: Callable[[str], None], placement: str) -> None:
    """Run the commit's own code; its lines go to a file, and those that are not Prefect's to `say` as well."""
    log = root / "var" / "log" / "commit.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "pipelines", "retrain", *([] if placement == "here" else [placement])],
            cwd=clone,
            env=_environment(root, clone),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a stop goes to this process, which then ends the clone's (run_processes.py)
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            page = RUN_PAGE.search(line)
            if page is not None and not any("its stages" in said for said in lines):
                lines.append(f"its stages are those of the flow run {page[1]}")
                say(lines[-1])
            elif line.strip() and OF_PREFECT.match(line) is None:
                lines.append(visible(line.rstrip()))
                say(lines[-1])
    if process.returncode != 0:
        stopping.stop_if_asked()
        trace = clone / TRACEBACK
        if trace.is_file():
            shutil.copyfile(trace, root / TRACEBACK)
        ours = [line.removeprefix("pipelines: ") for line in lines if line.startswith("pipelines: ")]
        said = ours[-1] if ours else f"the run ended with {process.returncode}; see {log}"
        raise dvc_commands.StageFailed(said.replace(str(trace), str(root / TRACEBACK)))


def _environment(root: Path, clone: Path) -> dict[str, str]:
    own = {name: value for name, value in dvc_commands.child_environment().items() if not name.startswith("PREFECT__")}
    path = [str(clone / "src"), str(clone), *filter(None, [os.environ.get("PYTHONPATH")])]
    store = tracking_uri(load_params(root / "params.yaml"), root)
    return {**own, "PYTHONPATH": os.pathsep.join(path), "MLFLOW_TRACKING_URI": store}


def _steps(clone: Path, started: float) -> list[Step]:
    found = read_json(clone / "var" / "run.json")["steps"]
    return [Step(row["name"], row["outcome"], started + row["started"], started + row["ended"]) for row in found]


def _result(clone: Path, ref: str, commit: str, seconds: float) -> dict[str, Any]:
    paths = [name for name in git_files.unkept_results(clone) if retrain_result.FILE.fullmatch(name)]
    verdicts = read_json(clone / VERDICTS) if (clone / VERDICTS).is_file() else []
    return {
        "version": retrain_result.VERSION,
        "ref": ref,
        "commit": commit,
        "seconds": round(seconds, 1),
        "verdicts": verdicts,
        "files": {name: (clone / name).read_text(encoding="utf-8") for name in paths if (clone / name).is_file()},
        "removed": [name for name in paths if not (clone / name).exists()],
        "other_changes": git_files.uncommitted(clone),
        "metrics": dvc_commands.run_dvc(clone, "metrics", "diff", "--md", "HEAD") if paths else "",
        "curves": {path.stem: curve for path in sorted((clone / "reports" / "plots").glob("*.csv"))
                   if (curve := _curve(path)) is not None},
    }  # fmt: skip


def _curve(path: Path) -> dict[str, Any] | None:
    """A loss curve at evenly spaced steps, for a chart that GitHub draws from text; None where there is nothing."""
    import numpy as np

    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    series: dict[str, list[float]] = {}
    steps = [float(row["step"]) for row in rows if row.get("step")]
    if len(steps) < 2:
        return None
    at = np.linspace(min(steps), max(steps), retrain_result.POINTS)
    for name in ("train", "validation"):
        known = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if len(known) > 1 and np.isfinite(known).all():
            x, y = zip(*known, strict=True)
            series[name] = [float(f"{value:.4g}") for value in np.interp(at, x, y)]
    return {"steps": [steps[0], steps[-1]], **series} if series else None
