"""Whether dvc.lock belongs to the code, without the data: `make fresh`, for a checkout that has only what git keeps.

`dvc repro --dry --allow-missing` is meant for this and does not serve here. It would run a stage that reads a folder of
which DVC keeps a part. And it fails at a stage that is stale, because it wants to read what is not there
(docs/decisions/0038-ci-asks-for-a-run-of-a-commit.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from densitywatch.errors import DensitywatchError
from pipelines import dvc_commands

MOST = 3
"""How many stages the sentence names."""


class NotFresh(DensitywatchError):
    """dvc.lock is not what the code would make."""


def check(root: Path) -> None:
    """Raise NotFresh, one sentence, unless every stage of dvc.lock was made by the present code and params."""
    stale = stale_in_lock(root)
    if not stale:
        return
    named = "; ".join(f"{name}: {why}" for name, why in list(stale.items())[:MOST])
    more = f" and {len(stale) - MOST} more" if len(stale) > MOST else ""
    raise NotFresh(
        f"dvc.lock does not belong to this code ({named}{more}); run `make run` and commit dvc.lock and metrics/,"
        " or start the workflow `retrain`, whose pull request brings them"
    )


def stale_in_lock(root: Path) -> dict[str, str]:
    """The stages that would run again for another reason than data that is not here, each with its first reason."""
    status = dvc_commands.status(root)  # says in a sentence what is wrong with a file that cannot be read
    names, kept = _in_dvc_yaml(root)
    locked = _locked(root)
    # of a stage without data of its own, `dvc status` says no more than that its results are not here
    found = {name: "dvc.lock does not have it" for name in names if name not in locked}
    for name, changes in status.items():
        for change in changes:
            reason = _reason(change, kept, root)
            if reason is not None:
                found.setdefault(name, reason)
    for name, reason in _torn(locked):
        found.setdefault(name, reason)
    return found


def _reason(change: Any, kept: set[str], root: Path) -> str | None:
    """Why one entry of `dvc status` counts; None where it only says that DVC's files are not here."""
    if change == "always changed":
        return None
    if not isinstance(change, dict):
        return str(change)  # "changed command"
    for kind, items in change.items():
        for path, state in items.items():
            if isinstance(state, dict):  # params.yaml: its keys
                return f"{', '.join(sorted(state)[:MOST])} of {path}"
            if state in ("deleted", "not in cache") and any(_meet(path, out) for out in kept):
                continue
            if any(out.startswith(f"{path}/") and not (root / out).exists() for out in kept):
                continue  # a folder above files of DVC's, some of which are not here
            return f"{path} {state}" if kind == "changed deps" else f"its {path} {state}"
    return None


def _meet(path: str, out: str) -> bool:
    return path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/")


def _in_dvc_yaml(root: Path) -> tuple[list[str], set[str]]:
    """The names of the stages, and the paths that they make and DVC keeps; git keeps the metrics."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(root)) as repo:
        stages = list(repo.index.stages)
        names = [str(stage.name) for stage in stages if isinstance(stage, PipelineStage)]
        return names, {out.def_path for stage in stages for out in stage.outs if out.use_cache}


def _locked(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock."""
    path = root / "dvc.lock"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]) if path.is_file() else {}


def _torn(locked: dict[str, Any]) -> list[tuple[str, str]]:
    """Stages of dvc.lock that read another version of a file than the one that dvc.lock says was made."""
    made = {out["path"]: out.get("md5") for stage in locked.values() for out in stage.get("outs", [])}
    return [
        (name, f"it read another version of {dep['path']}")
        for name, stage in locked.items()
        for dep in stage.get("deps", [])
        if dep["path"] in made and made[dep["path"]] != dep.get("md5")
    ]


def main(arguments: list[str]) -> int:
    if arguments:
        print("usage: python -m pipelines fresh", file=sys.stderr)
        return 2
    try:
        check(Path.cwd())
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    print("dvc.lock belongs to this code")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
