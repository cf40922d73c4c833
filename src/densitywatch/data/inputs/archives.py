"""The members of zip, tar and Parquet files as entries: read in memory, within limits, and never written to disk.

An archive comes from outside and may be crafted to do harm. A member's name is a label and no path. Sizes are checked
before and while bytes are unpacked. What can be read of a broken archive is used, and one more entry says where it is
broken.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

from densitywatch.data.decoding.sandbox import SandboxFailed
from densitywatch.data.inputs.clutter import is_side_car, kind_in_batch, kind_in_dataset, sample_key, split_clutter
from densitywatch.data.inputs.entries import Damaged, Entry, SourceUnreachable, most_members, refused
from densitywatch.data.inputs.parquet_rows import parquet_entries
from densitywatch.data.inputs.parts_and_labels import PARTS, is_part
from densitywatch.data.inputs.tar_members import tar_members
from densitywatch.data.inputs.zip_members import ZipArchive, ZipMember
from densitywatch.errors import DataError
from densitywatch.text import one_line

ARCHIVE = re.compile(
    r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz|parquet|parq|pq)(?:\?.*)?$", re.IGNORECASE | re.DOTALL
)
"""Names of archives; a query behind the name, as downloads have it, is not part of the name."""
PARQUET = ("parquet", "parq", "pq")
PART = re.compile(rf"({'|'.join(sorted(PARTS, key=len, reverse=True))})(?=[-_. \d])", re.IGNORECASE)
"""`train-00000-of-00001.parquet`, `test.zip`: a name that begins with a part."""
HELD = 16
"""Most side-car files that are kept until their picture comes; a sample has a few."""
HELD_BYTES = 4 << 20


def archive_kind(name: str) -> str | None:
    """`zip`, `tar` or `parquet` by the ending of the name, or None."""
    found = ARCHIVE.search(name)
    if found is None:
        return None
    kind = found.group(1).lower()
    return "zip" if kind == "zip" else "parquet" if kind in PARQUET else "tar"


def members(
    file: BinaryIO, name: str, prefix: str, skipped: Counter[str] | None = None, *, dataset: bool = False
) -> Iterator[Entry]:
    """The entries of the archive `file`; each one's path is `prefix` + the member's name.

    With `dataset`, tables of labels are entries too, and rows of Parquet files have labels. An archive that is empty,
    or cannot be read to its end, has an entry `name` that says so. Members that are no images by their names
    (clutter.py) are left out and counted in `skipped`.
    """
    skipped = Counter() if skipped is None else skipped
    readers = {"zip": _zip, "parquet": _parquet, "tar": _tar}
    folder = place_of(name) if prefix else ""
    count, before = 0, skipped.total()
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        for count, entry in enumerate(readers[archive_kind(name) or "tar"](file, prefix, skipped, dataset), start=1):
            if count > most_members(length):
                raise DataError(f"more members than images fit into its {length:,} bytes; not read any further")
            yield replace(entry, place=_joined(folder, entry.place or entry.path.removeprefix(prefix)))
    except (SourceUnreachable, SandboxFailed):
        raise
    except Exception as error:  # a crafted archive can make its library raise anything
        reason = str(error) if isinstance(error, DataError) else f"broken ({one_line(error)})"
        where = f"the archive, after {count} members: " if count and not isinstance(error, Damaged) else "the archive: "
        yield Entry(name, refused(where + reason), independent=False)
        return
    if count == 0 and skipped.total() == before:
        yield Entry(name, refused("the archive holds no files"), independent=False)


def place_of(name: str) -> str:
    """The folder in which an archive's members count: the archive's own, and below it the part its name begins with."""
    folder, slash, file = name.rpartition("/")
    found = PART.match(file)
    return folder + slash + (f"{found.group(1)}/" if found else "")


def _joined(folder: str, member: str) -> str:
    """The folder and the member's path; the part that the archive's name adds is dropped where a folder names one."""
    *around, last = folder.split("/")[:-1] or [""]
    known = any(is_part(piece) for piece in [*around, *member.split("/")[:-1]])
    return f"{'/'.join([*around, ''])}{member}" if is_part(last) and known else folder + member


def _zip(file: BinaryIO, prefix: str, skipped: Counter[str], dataset: bool) -> Iterator[Entry]:
    archive = ZipArchive(file)
    files = [member for member in archive.members if not member.name.endswith("/")]
    kept, clutter = split_clutter((member.name for member in files), kind_in_dataset if dataset else kind_in_batch)
    skipped.update(clutter)
    wanted = set(kept)
    for member in files:
        if member.name not in wanted:
            continue
        entry = Entry(prefix + member.name, _zip_reader(archive, member), independent=False)
        yield from _opened(entry, prefix, dataset) if archive_kind(member.name) == "parquet" else (entry,)
    archive.complain()


def _zip_reader(archive: ZipArchive, member: ZipMember) -> Callable[[], bytes]:
    return lambda: archive.read(member)


def _tar(file: BinaryIO, prefix: str, skipped: Counter[str], dataset: bool) -> Iterator[Entry]:
    for entry in _without_clutter(tar_members(file, prefix), prefix, skipped, dataset):
        yield from _opened(entry, prefix, dataset) if archive_kind(entry.path) == "parquet" else (entry,)


def _parquet(file: BinaryIO, prefix: str, skipped: Counter[str], dataset: bool) -> Iterator[Entry]:
    return parquet_entries(file, prefix, labels=dataset)


def _opened(entry: Entry, prefix: str, dataset: bool) -> Iterator[Entry]:
    """The rows of a Parquet file inside an archive."""
    try:
        data = entry.read()
    except DataError as error:
        if isinstance(error, SourceUnreachable):
            raise
        yield Entry(entry.path, refused(str(error)), independent=False)
        return
    for inner in members(io.BytesIO(data), entry.path.removeprefix(prefix), "/", dataset=dataset):
        yield replace(inner, path=entry.path + inner.path if inner.path.startswith("/") else entry.path)


def _without_clutter(found: Iterator[Entry], prefix: str, skipped: Counter[str], dataset: bool) -> Iterator[Entry]:
    """`found` without clutter, and without side-car files right before or behind the picture of the same sample."""
    held: list[tuple[str, Entry]] = []
    size, pictured, failure = 0, None, None
    try:
        for entry in found:
            name = entry.path.removeprefix(prefix)
            if (kind := (kind_in_dataset if dataset else kind_in_batch)(name)) is not None:
                skipped[kind] += 1
                continue
            key = sample_key(name)
            if held and (sample_key(held[0][0]) != key or len(held) == HELD or size > HELD_BYTES):
                yield from (side_car for _, side_car in held)
                held, size = [], 0
            if not is_side_car(name):
                skipped.update(kind for side_car, _ in held for kind in split_clutter([side_car, f"{key}.png"])[1])
                held, size, pictured = [], 0, key
                yield entry
            elif key == pictured:
                skipped.update(split_clutter([name, f"{key}.png"])[1])
            else:
                entry, data = _read_now(entry)
                held.append((name, entry))
                size += data
    except DataError as error:
        failure = error
    yield from (side_car for _, side_car in held)
    if failure is not None:
        raise failure


def _read_now(entry: Entry) -> tuple[Entry, int]:
    """The entry with its bytes in memory, and their number."""
    try:
        data = entry.read()
    except SourceUnreachable:
        raise
    except DataError as error:
        return Entry(entry.path, refused(str(error)), independent=False), 0
    return Entry(entry.path, lambda: data, independent=False), len(data)
