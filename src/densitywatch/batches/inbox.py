"""Which batches of the inbox are ready to be scored. A batch is one folder, archive or Parquet file.

Only listings are read here, never the images, so a schedule of every few minutes costs little when nothing is new.
fsspec is imported for remote inboxes only.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from densitywatch.batches.known_listings import KnownListings
from densitywatch.batches.results_folder import results_folder
from densitywatch.data.inputs.archives import ARCHIVE
from densitywatch.data.inputs.clutter import is_clutter
from densitywatch.data.inputs.source import MARKER, is_local, local_path, without_secrets
from densitywatch.errors import DataError
from densitywatch.params import Params
from densitywatch.text import as_text, one_line


@dataclass(frozen=True)
class Batch:
    """A batch as the inbox shows it now."""

    name: str
    source: str
    """What `score_source` takes."""
    state: Literal["ready", "waiting", "done", "stray"]
    """waiting: may still be written; done: the same files have been scored; stray: a loose file, part of no batch."""
    files: int
    listing: str
    """A fingerprint of names, sizes and times; run.json next to the results keeps it."""
    since: float | None = None
    """When its newest file was written, in seconds since 1970; None where that is not known. Where that would be in the
    future: when a look first found the batch as it is now."""


class _Listed(NamedTuple):
    name: str
    size: int
    modified: str
    changed: float | None
    """When it was last written, in seconds since 1970; None where the store does not say."""
    replaced: str = ""
    """The inode's change time, which no copy keeps. Not the inode's number: some network drives change it at every
    look."""


def find_batches(params: Params, root: Path, *, now: float) -> list[Batch]:
    """Every batch of `inbox.address`, by name. `now`: seconds since 1970, for the settle time.

    A batch is ready when it holds a file _SUCCESS, or when its newest file is `inbox.settle_seconds` old. An empty
    folder without the marker waits. A file with a time of the future (some clock was wrong) counts as written when a
    look first found the batch as it is now; the results folder keeps when that was. Raises DataError when the inbox
    cannot be reached; a local inbox that does not exist yet is empty.
    """
    address = params.inbox.address
    children = _local(root / local_path(address), params.inbox.follow_links) if is_local(address) else _remote(address)
    with KnownListings(root / params.inbox.results) as known:
        return [_batch(source, name, files, params, root, now, known) for source, name, files in children]


def _batch(
    source: str,
    name: str,
    files: list[_Listed] | None,
    params: Params,
    root: Path,
    now: float,
    known: KnownListings,
) -> Batch:
    if files is None:
        return Batch(as_text(name), source, "stray", 1, "")
    # files that a file manager leaves when someone looks at a batch must not make it a new one
    files = [file for file in files if file.name == MARKER or not _is_clutter(file.name)]
    listing = _fingerprint([f"{file.name!r} {file.size} {file.modified} {file.replaced}" for file in files])
    inputs = [file for file in files if file.name != MARKER]
    since = max((file.changed for file in inputs if file.changed is not None), default=None)
    settled = _settled(inputs, now - params.inbox.settle_seconds)
    if since is not None and since > now:
        since = known.seen_since(source, listing, now)
        dated = all(file.changed is not None for file in inputs)
        settled = dated and since <= now - params.inbox.settle_seconds
    state: Literal["ready", "waiting", "done"] = "waiting"
    if any(file.name == MARKER for file in files) or settled:
        noted = known.of(source, lambda: results_folder(source, params, root))
        # as version 0.1.0 noted it: a batch that it has scored is still done
        done = noted == listing or noted == _fingerprint([f"{f.name!r} {f.size} {f.modified}" for f in files])
        state = "done" if done else "ready"
    return Batch(as_text(name), source, state, len(inputs), listing, since)


# the files of many batches have the same names
_is_clutter = lru_cache(maxsize=1 << 16)(is_clutter)


def _fingerprint(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "backslashreplace")).hexdigest()


def _settled(files: list[_Listed], before: float) -> bool:
    return bool(files) and all(file.changed is not None and file.changed <= before for file in files)


def _local(inbox: Path, follow_links: bool) -> Iterator[tuple[str, str, list[_Listed] | None]]:
    try:
        with os.scandir(inbox) as found:
            children = sorted(found, key=lambda child: os.fsencode(child.name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{as_text(str(inbox))}: the inbox cannot be listed ({error.strerror})") from None
    for child in children:
        if child.name.startswith((".", "_")) or is_clutter(child.name) or is_clutter(f"{child.name}/-"):
            continue
        if child.is_symlink() and not follow_links:
            yield child.path, child.name, None
        elif _is_folder(child):
            yield child.path, child.name, list(_files_below(child.path))
        else:
            yield child.path, child.name, [_stat(child.path, child.name)] if ARCHIVE.search(child.name) else None


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself
        return False


def _files_below(top: str) -> Iterator[_Listed]:
    folders, start = [top], len(top) + 1
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                for child in found:
                    if child.is_dir(follow_symlinks=False):
                        folders.append(child.path)
                    else:
                        yield _stat(child.path, child.path[start:])
        except OSError:
            continue  # scoring gives the folder a row that says so


def _stat(path: str, name: str) -> _Listed:
    """A file's listing. The inode's change time shows a write even where a copy keeps the file's old dates."""
    try:
        status = os.lstat(path)
    except OSError:
        return _Listed(name, -1, "", None)
    changed, replaced = status.st_ctime, str(status.st_ctime_ns)
    if stat.S_ISLNK(status.st_mode):
        with suppress(OSError):
            behind = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes longer than its stat
            changed = max(changed, behind.st_ctime)
            replaced += f" {behind.st_size} {behind.st_mtime_ns} {behind.st_ctime_ns}"
    return _Listed(name, status.st_size, str(status.st_mtime_ns), changed, replaced)


def _remote(address: str) -> Iterator[tuple[str, str, list[_Listed] | None]]:
    import fsspec

    try:
        filesystem, top = fsspec.core.url_to_fs(address)
        filesystem.invalidate_cache()
        found: list[dict[str, Any]] = sorted(filesystem.ls(top, detail=True), key=lambda item: str(item["name"]))
        for item in found:
            path = str(item["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if path == top.rstrip("/") or name.startswith((".", "_")) or is_clutter(name) or is_clutter(f"{name}/-"):
                continue
            source = filesystem.unstrip_protocol(path)
            if item["type"] == "directory":
                below = filesystem.find(path, detail=True)
                yield source, name, [_seen(below[key], key.removeprefix(path).lstrip("/")) for key in sorted(below)]
            else:
                yield source, name, [_seen(item, name)] if ARCHIVE.search(name) else None
    except FileNotFoundError:
        raise DataError(f"{without_secrets(address)}: no such inbox; check inbox.address in params.yaml") from None
    except DataError:
        raise
    except Exception as error:  # every file system behind fsspec has its own exceptions
        raise DataError(f"{without_secrets(address)}: the inbox cannot be reached ({one_line(error)})") from None


def is_remote_batch(source: str, inbox: str) -> bool:
    """Whether the address `source` lies directly in the address `inbox`.

    One place has many addresses: az:// and abfs://, memory://box and memory:///box. What `_remote` gives is in the file
    system's own spelling, and inbox.address is in the user's.
    """
    (store, path, host), (inbox_store, top, inbox_host) = _place(source), _place(inbox)
    # many file systems leave the host out of the addresses that they give
    same_host = host is None or inbox_host is None or host == inbox_host
    return store == inbox_store and path.rpartition("/")[0] == top and same_host


def _place(address: str) -> tuple[object, str, str | None]:
    """An address's kind of file system, the path there and the host, if it names one. Nothing is connected to."""
    import fsspec

    # read through a cache it is the same place
    address = re.sub(r"^(simplecache|filecache|blockcache|cached)::", "", address)
    protocol, path = fsspec.core.split_protocol(address)
    try:
        # the class alone: some file systems connect when they are made
        kind = fsspec.get_filesystem_class(protocol)
        host = kind._get_kwargs_from_urls(address).get("host")
        return kind, str(kind._strip_protocol(address)).rstrip("/"), host
    except (ImportError, ValueError):  # not installed, or no file system of fsspec
        return protocol, path.rstrip("/"), None


_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


def _seen(item: dict[str, Any], name: str) -> _Listed:
    when = next((item[key] for key in _TIMES if item.get(key) is not None), None)
    seconds = when.timestamp() if isinstance(when, datetime) else float(when) if isinstance(when, int | float) else None
    tag = item.get("ETag") or item.get("etag") or item.get("md5Hash") or when
    return _Listed(name, int(item.get("size") or 0), str(tag), seconds)
