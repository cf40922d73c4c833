"""Input files for a process on another machine: what it must know to read each, as plain data.

A file of a folder or of a store goes as its place and its name, and is read where it is scored. A member of an archive
can be read only in the archive's order, so it goes with its bytes; so does a file that only this machine's process can
name. What cannot be read goes as the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from densitywatch.data.inputs.entries import Entry, SourceUnreachable, refused
from densitywatch.data.inputs.local_tree import Tree
from densitywatch.data.inputs.source import is_local, local_path, read_remote
from densitywatch.errors import DataError
from densitywatch.text import one_line

PACKED = pa.struct(
    [
        ("path", pa.string()),
        ("place", pa.string()),
        ("name", pa.binary()),
        ("data", pa.large_binary()),
        ("reason", pa.string()),
    ]
)
"""An entry; of `name` with its `place`, `data` and `reason`, one is not null."""


def pack(entry: Entry, source: str, *, follow_links: bool) -> dict[str, Any]:
    """An entry of `source` as a row of PACKED. Raises SourceUnreachable when the store stops answering."""
    found = _place(entry, source, follow_links)
    if found is not None:
        place, name = found
        return {"path": entry.path, "place": place, "name": os.fsencode(name)}
    try:
        return {"path": entry.path, "data": entry.read()}
    except SourceUnreachable:
        raise
    except DataError as error:
        return {"path": entry.path, "reason": str(error)}
    except Exception as error:  # the same sentence as in chunks.load
        return {"path": entry.path, "reason": f"cannot be read ({one_line(error)})"}


def unpack(row: dict[str, Any]) -> Entry:
    """The entry of a row of PACKED. Its bytes, or the file itself, can be read in any order."""
    path, data = row["path"], row["data"]
    if row["reason"] is not None:
        return Entry(path, refused(row["reason"]))
    if data is not None:
        return Entry(path, lambda: data)
    return Entry(path, partial(_opened(row["place"]), os.fsdecode(row["name"]), path))


def _place(entry: Entry, source: str, follow_links: bool) -> tuple[str, str] | None:
    """Where another machine finds the entry's file, and its name there; None where its bytes must go along.

    The path of an entry is made to be shown, so the name is taken from its `read`, which is partial(tree.read, name)
    or partial(read, filesystem, name, path): see data/inputs/source.py.
    """
    if not (entry.independent and isinstance(entry.read, partial)):
        return None
    if is_local(source):
        top = local_path(source)
        return (json.dumps([str(top), follow_links]), str(entry.read.args[0])) if top.is_dir() else None
    filesystem, name, _ = entry.read.args
    place = _as_text(filesystem)
    return None if place is None else (place, str(name))


@cache
def _as_text(filesystem: Any) -> str | None:
    """A file system of fsspec, so that another process can make the same; None for one made from an open file."""
    try:
        return str(filesystem.to_json())
    except (TypeError, ValueError):
        return None


@cache
def _opened(place: str) -> Callable[[str, str], bytes]:
    """What reads the file of a name, shown as a path, at a place."""
    told = json.loads(place)
    if isinstance(told, list):
        top, follow_links = told
        tree = Tree(Path(top), follow_links=follow_links)
        return lambda name, path: tree.read(name)

    from fsspec import AbstractFileSystem

    return partial(read_remote, AbstractFileSystem.from_json(place))  # so that a row is the same on every machine
