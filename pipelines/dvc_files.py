"""Repairs, before a run, what a killed DVC leaves behind: it would stop the next one."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import yaml

from densitywatch.errors import DensitywatchError
from densitywatch.files import write_whole

KEPT = Path("var") / "dvc.lock"


def settle(root: Path) -> None:
    """Repair DVC's files; call it while the project's run lock is held."""
    drop_dead_locks(root)
    mend_lock_file(root)


def drop_dead_locks(root: Path) -> None:
    """Remove the entries of processes that are gone from DVC's list of who reads and writes which file."""
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return
    with path.with_suffix(".lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # DVC's own lock over this file
        try:
            held: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            reading = {name: [entry for entry in by if _holds(entry)] for name, by in held.get("read", {}).items()}
            writing = {name: entry for name, entry in held.get("write", {}).items() if _holds(entry)}
        except (ValueError, TypeError, AttributeError, KeyError):  # cut off by a kill: DVC would refuse to go on
            path.unlink()
            return
        kept = {"write": writing, "read": {name: by for name, by in reading.items() if by}}
        if kept != {"write": held.get("write", {}), "read": held.get("read", {})}:
            path.write_text(json.dumps(kept), encoding="utf-8")


def mend_lock_file(root: Path) -> None:
    """Keep a copy of a dvc.lock that is whole; replace one that a kill has cut off by the copy.

    Raises DensitywatchError when there is no copy: git has the file as it was committed.
    """
    path, copy = root / "dvc.lock", root / KEPT
    if not path.is_file():
        return
    if copy.is_file() and copy.read_bytes() == path.read_bytes():
        return  # reading it takes half a second
    if is_whole(path):
        copy.parent.mkdir(exist_ok=True)
        write_whole(copy, path.read_text(encoding="utf-8"))
    elif copy.is_file():
        shutil.copyfile(copy, path)
    else:
        raise DensitywatchError(f"{path}: it is cut off or damaged; `git checkout dvc.lock` brings the last one back")


def is_whole(path: Path) -> bool:
    """Whether DVC can use the file: it is readable, and every stage has its command."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and all("cmd" in stage for stage in (content.get("stages") or {}).values())
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        return False


def _holds(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry runs and is DVC: another program may have its number by now."""
    try:
        return any("dvc" in part for part in psutil.Process(int(entry["pid"])).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
