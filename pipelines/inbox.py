"""Which batches of the inbox are ready and not scored yet: told by names, sizes and times, so that asking is cheap."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from densitywatch.errors import DataError
from densitywatch.files import write_whole
from densitywatch.params import Params

MARKER = "_SUCCESS"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Batch:
    """One folder of the inbox: name, address, and a digest of its files' names, sizes and times."""

    name: str
    source: str
    listing: str


def new_batches(params: Params, root: Path, now: float) -> list[Batch]:
    """The batches that are ready and whose results are missing or older than their files, by name.

    A batch is ready when it holds a `_SUCCESS` marker, or when its newest file is older than
    params.inbox.settle_seconds at `now` (seconds since the epoch).

    Raises DataError when the inbox is somewhere that cannot be reached; a missing local inbox is an empty one.
    """
    scored = read_scored(root)
    found = []
    for batch in ready_batches(params, root, now):
        results = root / params.inbox.results / batch.name / SUMMARY
        if scored.get(batch.source) != batch.listing or not results.is_file():
            found.append(batch)
    return found


def ready_batches(params: Params, root: Path, now: float) -> list[Batch]:
    address = params.inbox.address
    remote = "://" in address
    base = address if remote else str(root / address)
    try:
        files, top = fsspec.core.url_to_fs(base)
        if not files.isdir(top):
            if remote:
                raise FileNotFoundError("no such folder")
            return []
        folders = [entry["name"].rstrip("/") for entry in files.ls(top, detail=True) if entry["type"] == "directory"]
        batches = []
        for folder in sorted(folders):
            name = folder.rsplit("/", 1)[-1]
            if name.startswith("."):
                continue
            entries = files.find(folder, detail=True)
            newest = max((_modified(entry) for entry in entries.values()), default=now)
            if f"{folder}/{MARKER}" in entries or now - newest >= params.inbox.settle_seconds:
                lines = [f"{path}\0{entry.get('size')}\0{_modified(entry)}" for path, entry in sorted(entries.items())]
                digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
                batches.append(Batch(name, f"{address.rstrip('/')}/{name}", digest))
        return batches
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"inbox {address}: cannot be reached ({reason}); see inbox.address in params.yaml") from None


def _modified(entry: dict[str, Any]) -> float:
    """When a file was last changed, in seconds since the epoch; file systems call it by different names."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def read_scored(root: Path) -> dict[str, str]:
    """What has been scored: a batch's source and the listing it had then. Losing the file costs time, not results."""
    try:
        scored = json.loads((root / "var" / "scored.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return scored if isinstance(scored, dict) else {}


def note_scored(root: Path, batches: list[Batch]) -> None:
    """Remember these batches as scored."""
    scored = read_scored(root) | {batch.source: batch.listing for batch in batches}
    write_whole(root / "var" / "scored.json", json.dumps(scored, indent=1) + "\n")
