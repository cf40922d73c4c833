"""Has anything changed since the last run that got to its end? Answered in the time of one `dvc status`."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from densitywatch.errors import DataError
from densitywatch.files import read_json, write_whole
from densitywatch.outliers.inbox import find_batches
from densitywatch.params import load_params
from densitywatch.store import sqlite_path, tracking_uri
from pipelines import dag

RECEIPT = Path("var") / "fresh.json"
FILES = ("dvc.lock", "params.yaml")


def is_fresh(root: Path) -> bool:
    """Whether a run would do nothing: the last one got to its end, no stage is stale since, no batch waits.

    Raises ParamsError when params.yaml cannot be used.
    """
    params = load_params(root / "params.yaml", check_models=False)
    database = sqlite_path(tracking_uri(params, root))
    return (
        _noted(root) == _digests(root)
        and (database is None or database.is_file())
        and not any(batch.state == "ready" for batch in find_batches(params, root, now=time.time()))
        and not dag.stale_stages(root)
    )


def note_fresh(root: Path) -> None:
    """Leave the receipt of a run that got to its end."""
    write_whole(root / RECEIPT, json.dumps(_digests(root)) + "\n")


def _noted(root: Path) -> object:
    try:
        found: object = read_json(root / RECEIPT)
        return found
    except (FileNotFoundError, DataError):
        return None


def _digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in FILES if (root / name).is_file()}
