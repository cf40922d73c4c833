"""`look`: a digest of what the source holds now, in data/source.json, so that a folder that changed is fetched again.

The same of the images that were accepted from drifted batches (data/accepted), in data/accepted.json, for `prepare`.

DVC does not look outside of the project; so `fetch` depends on this file instead of the user's folder. Names and
contents count, dates do not. A file is read again when its size, one of its times or its inode has changed since the
last look, which var/look.json remembers. Of a bucket only the listing is read. Sources that are downloaded as they were
published, and any address over http, are not asked again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from densitywatch.data.decoding.images import MAX_BYTES
from densitywatch.data.inputs.clutter import is_clutter
from densitywatch.errors import DataError
from densitywatch.files import file_digest, write_whole
from densitywatch.params import DataParams, Params
from densitywatch.progress import say, track
from densitywatch.text import one_line

NOTE = Path("data/source.json")
ACCEPTED = Path("data/accepted")
ACCEPTED_NOTE = Path("data/accepted.json")
MEMORY = Path("var/look.json")
SETTLED = 2_000_000_000
"""Nanoseconds. A file that changed so shortly before a look may change again within the same tick of the clock."""
MANY = 1000
"""Number of files from which on progress is shown."""
ASKED_ONCE = re.compile(r"(^|::)https?://")
TAGS = ("ETag", "etag", "md5Hash", "crc32c", "CRC", "blob_id", "sha", "LastModified", "updated", "mtime", "created")
"""What stores list about an object's content, or else its time; the first one that is there is taken."""

Stamp = tuple[int, int, int, int]
"""Size, time of the last write, time of the last change of any kind, inode."""
Remembered = dict[str, tuple[Stamp, str]]
"""By file name: the file's stamp when it was read, and the digest of its content."""
Memory = dict[str, Remembered]
"""The same by address."""


class _Gone(Exception):
    """The address does not exist or is empty, as the folder of a disk that is not mounted."""


def look(params: Params, root: Path) -> None:
    """Bring `root`/data/source.json and accepted.json up to date; where nothing has changed no file is touched.

    Raises DataError when the address does not exist and did not at the last look either, or when DVC knows of accepted
    images that are not there.
    """
    for file, note in ((NOTE, _note(params.data, root)), (ACCEPTED_NOTE, accepted_note(root))):
        if note != _json(root / file):
            write_whole(root / file, json.dumps(note, indent=1) + "\n")


def is_changed(params: Params, root: Path) -> bool:
    """Whether `look` would write another file; none is touched. Raises as `look` does."""
    return bool(accepted_note(root) != _json(root / ACCEPTED_NOTE) or _note(params.data, root) != _json(root / NOTE))


def accepted_note(root: Path) -> dict[str, Any]:
    """What data/accepted.json says: the number of files and a digest. Raises DataError as `look` does."""
    folder = root / ACCEPTED
    if not folder.is_dir() and folder.with_suffix(".dvc").exists():
        raise DataError(f"{ACCEPTED}: not there, and {ACCEPTED}.dvc names it; run `dvc pull {ACCEPTED}.dvc`")
    lines = [f"{file.name!r} {file_digest(file)}\n" for file in sorted(folder.glob("*.parquet"))]
    return {"files": len(lines), "digest": hashlib.sha256("".join(lines).encode()).hexdigest()}


def _note(data: DataParams, root: Path) -> dict[str, Any]:
    note: dict[str, Any] = {
        "source": data.source,
        "address": list(data.address) if isinstance(data.address, tuple) else data.address,
    }
    asked = [(number, address) for number, address in enumerate(data.addresses) if not ASKED_ONCE.search(address)]
    if not asked:
        return note
    memory = _remembered(root)
    before_look = dict(memory)
    files: dict[str, str] = {}
    try:
        for number, address in asked:
            found = _contents(address, root, memory)
            # where there are several, the same files at another address are another source
            files |= (
                {f"{number}/{name}": content for name, content in found.items()} if len(data.addresses) > 1 else found
            )
    except _Gone as gone:
        before = _json(root / NOTE)
        if isinstance(before, dict) and "digest" in before and note.items() <= before.items():
            say(f"data.address: {gone}; going on with the {before['files']:,} files that were there at the last look")
            return before
        raise DataError(f"data.address: {gone}; put images there or correct the address") from None
    memory = {address: known for address, known in memory.items() if address in data.addresses}
    if memory != before_look:
        write_whole(root / MEMORY, json.dumps({"addresses": memory}))
    lines = sorted(f"{name!r} {content}\n" for name, content in files.items())
    digest = hashlib.sha256("".join(lines).encode("utf-8", "backslashreplace")).hexdigest()
    return note | {"files": len(files), "digest": digest}


def _contents(address: str, root: Path, memory: Memory) -> Mapping[str, str]:
    """Each file's name below the address, and a digest or another mark of its content. Raises _Gone.

    `memory`: what earlier looks kept; this one's takes its place.
    """
    plain = "://" not in address and "::" not in address
    try:
        found = _local(root / Path(address).expanduser(), address, memory) if plain else _elsewhere(address, memory)
    except OSError as error:
        raise _Gone(f"{address} cannot be read: {error.strerror or one_line(error)}") from None
    if not found:
        raise _Gone(f"{address} holds no files")
    return found


def _local(top: Path, address: str, memory: Memory) -> dict[str, str]:
    if not top.exists() and not glob.has_magic(str(top)):
        raise _Gone(f"{address} is not there")
    before, known = memory.get(address, {}), Remembered()
    unsettled = time.time_ns() - SETTLED
    found: dict[str, str] = {}
    unread: list[tuple[str, str, Stamp]] = []
    for name, path, status in _files(top):
        if isinstance(status, str):
            found[name] = status
            continue
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        remembered = before.get(name)
        if not stat.S_ISREG(status.st_mode):
            found[name] = "not a regular file"
        elif name and status.st_size > MAX_BYTES:
            found[name] = f"{status.st_size} bytes of {status.st_mtime_ns}"  # an archive, or nothing that is read
        elif remembered is not None and remembered[0] == stamp:
            known[name] = remembered
            found[name] = remembered[1]
        else:
            unread.append((name, path, stamp))
    for name, path, stamp in track(unread, "looking at files") if len(unread) >= MANY else unread:
        try:
            found[name] = file_digest(Path(path))
        except OSError as error:
            found[name] = f"cannot be read: {error.strerror}"
            continue
        if stamp[2] < unsettled:
            known[name] = (stamp, found[name])
    memory[address] = known
    return found


def _files(top: Path) -> Iterator[tuple[str, str, os.stat_result | str]]:
    """Of every file but clutter: its name below `top`, its path, and its status or the reason why there is none.

    The status is that of what a link leads to. A file that is the address itself has the empty name, and a file that a
    glob matches has its path as its name.
    """
    if not top.exists():
        for path in glob.glob(str(top), recursive=True):  # noqa: PTH207 (names that are no UTF-8)
            if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114
                yield from _file_at(path)
        return
    if not top.is_dir():
        yield "", str(top), top.stat()
        return
    folders = [""]
    while folders:
        before = folders.pop()
        try:
            with os.scandir(top / before) as scanned:
                children = list(scanned)
        except OSError as error:
            if not before:
                raise
            yield before, "", f"the folder cannot be read: {error.strerror}"
            continue
        for child in children:
            name = f"{before}{child.name}"
            if child.is_dir(follow_symlinks=False):
                if not is_clutter(f"{child.name}/-"):
                    folders.append(f"{name}/")
            elif not is_clutter(child.name) or child.name.lower().endswith((".csv", ".jsonl")):  # may say the labels
                try:
                    yield name, child.path, child.stat()
                except OSError as error:
                    yield name, "", f"cannot be read: {error.strerror}"


def _file_at(path: str) -> Iterator[tuple[str, str, os.stat_result | str]]:
    if not is_clutter(os.path.basename(path)):  # noqa: PTH119
        try:
            yield path, path, os.stat(path)  # noqa: PTH116
        except OSError as error:
            yield path, "", f"cannot be read: {error.strerror}"


def _remembered(root: Path) -> Memory:
    """What the last look kept; empty where that cannot be read."""
    kept = _json(root / MEMORY)
    try:
        return {
            address: {name: (tuple(stamp), str(digest)) for name, (stamp, digest) in files.items()}
            for address, files in kept["addresses"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _elsewhere(address: str, memory: Memory) -> dict[str, str]:
    """An fsspec address by its listing; no object is read."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    quick: dict[str, Any] = {}  # as in fetch: no minutes of retries for an endpoint that does not exist
    if address.split("://")[0] in ("s3", "s3a"):
        quick = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}}
    try:
        store, top = fsspec.core.url_to_fs(address, skip_instance_cache=True, **quick)
        if isinstance(store, LocalFileSystem):
            return _local(Path(top), address, memory)
        prefix = f"{top.rstrip('/')}/"
        listed = {str(path).removeprefix(prefix): facts for path, facts in store.find(top, detail=True).items()}
    except (OSError, _Gone):
        raise
    except Exception as error:  # each fsspec driver raises its own library's exceptions
        raise _Gone(f"{address} cannot be reached: {one_line(error)}") from None
    return {name: _tag(facts) for name, facts in listed.items() if not is_clutter(name)}


def _tag(facts: Mapping[str, Any]) -> str:
    tag = next((facts[key] for key in TAGS if facts.get(key) is not None), "")
    return f"{facts.get('size')} {tag}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
