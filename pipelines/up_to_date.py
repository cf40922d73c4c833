"""Whether anything has changed since the last finished run; takes as long as one `dvc status`."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path

from densitywatch.batches.inbox import find_batches
from densitywatch.data.look import is_changed
from densitywatch.errors import DataError
from densitywatch.files import read_json, write_whole
from densitywatch.params import load_params
from densitywatch.tracking.addresses import follow_move, lost_champions
from densitywatch.tracking.store import sqlite_path, tracking_uri
from pipelines import dvc_commands
from pipelines.drift_note import standing_alarm

RECEIPT = Path("var") / "fresh.json"
FILES = ("dvc.lock", "params.yaml")


def is_up_to_date(root: Path) -> bool:
    """Whether a run would do nothing: the last one finished, no stage is stale since, no batch waits, no drift alarm
    stands, and every champion's files are there.

    The source is looked at last, so that a batch never waits for it. Raises ParamsError when params.yaml is wrong.
    """
    params = load_params(root / "params.yaml")
    uri = tracking_uri(params, root)
    database = sqlite_path(uri)
    return (
        _noted(root) == _digests(root)
        and (database is None or database.is_file())
        and not any(batch.state == "ready" for batch in find_batches(params, root, now=time.time()))
        and standing_alarm(params, root) is None
        and _champions_stand(uri, root)
        and not dvc_commands.stale_stages(root)
        and not is_changed(params, root)
    )


def note_up_to_date(root: Path) -> None:
    """Write the receipt of a run that finished."""
    write_whole(root / RECEIPT, json.dumps(_digests(root)) + "\n")


def _champions_stand(uri: str, root: Path) -> bool:
    follow_move(uri, root)
    try:
        lost = lost_champions(uri)
    except sqlite3.Error:  # the run itself reports what is wrong
        return False
    for name in lost:
        print(f"{name}: the champion's files are gone or altered", flush=True)
    return not lost


def _noted(root: Path) -> object:
    try:
        found: object = read_json(root / RECEIPT)
        return found
    except (FileNotFoundError, DataError):
        return None


def _digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in FILES if (root / name).is_file()}
