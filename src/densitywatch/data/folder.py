"""`source: folder`: the user's own images, from a folder, an archive or any fsspec address, into one Parquet file.

Nothing is trusted. Names become text, never paths. Links that lead out of the folder are not followed unless params
say so. A file that cannot be decoded is listed in rejected.json with its reason. A few files are in memory at a time,
and of the images their folders and labels: what decides about parts is on disk until all files are read.
"""

from __future__ import annotations

import glob
import json
import tempfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from densitywatch.data.decoding.images import decode_images
from densitywatch.data.inputs.archives import ARCHIVE, archive_kind
from densitywatch.data.inputs.clutter import skipped_line
from densitywatch.data.inputs.entries import Entry, SourceUnreachable
from densitywatch.data.inputs.joined import source_names
from densitywatch.data.inputs.label_table import MUST_BE_LABELS, Labels, is_label_table, read_label_table
from densitywatch.data.inputs.parts_and_labels import Arrangement, arrange
from densitywatch.data.inputs.source import entries, is_local, local_path, without_secrets
from densitywatch.errors import DataError, DensitywatchError
from densitywatch.progress import say, track
from densitywatch.text import one_line

BATCH_FILES = 64
BATCH_BYTES = 64 << 20
ROW_GROUP = 1 << 20
"""Least bytes in a row group of images.parquet: the more there are, the more of the file's index is in memory."""
ROWS = 1 << 14
"""Rows of entries.parquet that are in memory at a time."""
SHOWN = 5
READERS = 8
"""Number of files of a remote store that are read at once."""
FAILURES = 5
"""Number of failures in a row after which the store is at fault and not the files."""
UNREACHABLE = "cannot be read: "

Read = tuple[Entry, bytes | str]
"""An entry, and its bytes or, as text, the reason why there are none."""


@dataclass(frozen=True)
class Fetched:
    """The images of one source that can be used, in the order of images.parquet."""

    source: str
    """The name of the source; empty where it is the only one."""
    kept: TextIO
    """A line of JSON for each image: its path, its place, and its label in a column of a Parquet file."""
    kinds: array[int]
    """Images of one folder with one label are a kind: the number of each image's kind, 4 bytes."""
    arrangement: Arrangement
    """Part and label of each kind."""

    def paths(self) -> Iterator[str]:
        """The images' paths."""
        return (path for path, _, _ in _lines(self.kept))

    def left_out(self) -> list[dict[str, str]]:
        """Path and reason of those that the arrangement leaves out."""
        reasons = self.arrangement.left_out
        if not reasons:
            return []
        named = zip(self.paths(), self.kinds, strict=True)
        return [{"path": path, "reason": reasons[kind]} for path, kind in named if kind in reasons]


def _lines(kept: TextIO) -> Iterator[tuple[str, str, str | None]]:
    kept.seek(0)
    return map(json.loads, kept)


def fetch_folder(
    addresses: Sequence[str], target: Path, root: Path, *, follow_links: bool = False, by_folder: bool = False
) -> None:
    """Copy every usable image below `addresses` into `target`/images.parquet and list the others in rejected.json.

    entries.parquet has the part, the label and the source of every image that is used. Parts and labels are found in
    each source by itself. Of several sources each gets a name, which goes in front of its images' paths. A relative
    local address is below `root`. `by_folder`: the innermost folders are groups, so they are no labels.
    Raises DataError when an address cannot be read, holds no usable image, or leaves parts or labels in doubt
    (parts_and_labels.py), or when only some of the sources have labels.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rejected: list[dict[str, str]] = []
    found: list[Fetched] = []
    schema = pa.schema([("path", pa.string()), ("bytes", pa.binary())])
    with ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(target / "images.parquet", schema, compression="none"))
        waiting: list[tuple[str, bytes]] = []

        def write(usable: Sequence[tuple[str, bytes]], least: int = ROW_GROUP) -> None:
            waiting.extend(usable)
            if waiting and sum(len(content) for _, content in waiting) >= least:
                columns = [list(column) for column in zip(*waiting, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                waiting.clear()

        for address, source in zip(addresses, source_names(addresses), strict=True):
            # a file without a name, which is gone when it is closed
            kept = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=target))
            unusable, tables = _read_all(address, source, root, follow_links, kept, write)
            fetched = _arranged(address, source, kept, tables, by_folder)
            found.append(fetched)
            rejected += unusable + fetched.left_out()
        write((), least=0)
        _refuse_some_labels(addresses, [each.arrangement for each in found])
        _write_entries(target / "entries.parquet", found)
        (target / "rejected.json").write_text(
            json.dumps(rejected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        for each in found:
            _tell(each)
    _tell_counts([each.arrangement for each in found], len(rejected))


def _read_all(
    address: str,
    source: str,
    root: Path,
    follow_links: bool,
    kept: TextIO,
    write: Callable[[Sequence[tuple[str, bytes]]], None],
) -> tuple[list[dict[str, str]], dict[str, bytes | str]]:
    """Read one address: usable images go to `write`, what is known of them to `kept`.

    Returns path and reason of the other files, which rejected.json lists, and the tables of labels.
    """
    skipped: Counter[str] = Counter()
    unusable: list[dict[str, str]] = []
    tables: dict[str, bytes | str] = {}
    before = f"{source}/" if source else ""
    for batch in _batches(_read(_entries(address, root, follow_links, skipped)), tables):
        data = [content for _, content in batch if isinstance(content, bytes)]
        pictures = iter(decode_images(data, size=8, channels=1, resize="stretch"))
        usable: list[tuple[str, bytes]] = []
        for entry, content in batch:
            if isinstance(content, bytes) and isinstance(picture := next(pictures), DataError):
                unusable.append({"path": before + entry.path, "reason": str(picture)})
            elif isinstance(content, str):
                unusable.append({"path": before + entry.path, "reason": content})
            else:
                usable.append((before + entry.path, content))
                kept.write(json.dumps([before + entry.path, entry.place or entry.path, entry.label]) + "\n")
        write(usable)
    if (line := skipped_line(skipped)) is not None:
        say(line)
    for problem in unusable[:SHOWN]:
        say(f"not usable: {problem['path']!r}: {problem['reason']}")
    if len(unusable) > SHOWN:
        say(f"not usable: {len(unusable) - SHOWN} more, see data/raw/rejected.json")
    if kept.tell() == 0:
        shown = without_secrets(address)
        first = f"; the first, {unusable[0]['path']!r}: {unusable[0]['reason']}" if unusable else ""
        raise DataError(
            f"data.address: none of the {len(unusable)} files in {shown} is a usable image{first}"
            if unusable
            else f"data.address: {shown} holds no files; put images into it or correct the address"
        )
    return unusable, tables


def _arranged(address: str, source: str, kept: TextIO, tables: Mapping[str, bytes | str], by_folder: bool) -> Fetched:
    """Parts and labels of one source, by kind."""
    labels, remarks = _labels(tables)
    kinds = array("i")
    known: dict[tuple[str, str | None], int] = {}
    places: list[str] = []
    counts: list[int] = []
    for _, place, label in _lines(kept):
        given = labels.of(place) or label
        kind = known.setdefault((place[: place.rfind("/") + 1], given), len(known))
        if kind == len(places):
            places.append(_without_innermost(place) if by_folder else place)
            counts.append(0)
        counts[kind] += 1
        kinds.append(kind)
    all_given = [given for _, given in known]
    remarks += _unknown(labels, tables, all_given)
    last = without_secrets(address).rstrip("/").rpartition("/")[2]
    wrapper = ARCHIVE.sub("", last) if archive_kind(last) else None
    arrangement = arrange(places, all_given, wrapper, counts)
    arrangement.remarks[:0] = remarks
    return Fetched(source, kept, kinds, arrangement)


def _without_innermost(place: str) -> str:
    """A place without the folder that the image is in."""
    *folders, name = place.split("/")
    return "/".join([*folders[:-1], name])


def _refuse_some_labels(addresses: Sequence[str], arrangements: Sequence[Arrangement]) -> None:
    labelled = [any(label is not None for label in arrangement.labels) for arrangement in arrangements]
    if any(labelled) and not all(labelled):
        with_labels, without = (without_secrets(addresses[labelled.index(has)]) for has in (True, False))
        raise DataError(
            f"data.address: the images of {with_labels} have labels and those of {without} have none; put them into"
            " class folders, or take the labels away"
        )


def _entries(address: str, root: Path, follow_links: bool, skipped: Counter[str]) -> Iterator[Entry]:
    source = address
    if is_local(address):
        path = root / local_path(address).expanduser()
        if not path.exists() and not glob.has_magic(str(path)):
            raise DataError(
                f"data.address: {address} is not there; give a folder of images, a zip, tar or Parquet file"
            )
        if path.is_file() and archive_kind(path.name) is None:
            raise DataError(f"data.address: {address} is a file; give a folder of images, a zip, tar or Parquet file")
        source = str(path)
    try:
        yield from entries(source, follow_links=follow_links, skipped=skipped, dataset=True)
    except DataError as error:
        raise DataError(f"data.address: {error}") from None
    except (DensitywatchError, GeneratorExit):
        raise
    except Exception as error:  # each fsspec driver raises its own library's exceptions
        raise DataError(f"data.address: {without_secrets(address)} cannot be read: {one_line(error)}") from None


def _read(found: Iterator[Entry]) -> Iterator[Read]:
    """Every entry with its content, in order, a few read ahead."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        waiting: deque[tuple[Entry, Future[bytes | str]]] = deque()
        try:
            for entry in track(found, "reading files"):
                future = pool.submit(_content, entry)
                if not entry.independent:
                    future.result()  # its bytes are gone once the next entry is asked for
                waiting.append((entry, future))
                if len(waiting) > READERS:
                    yield waiting[0][0], waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][0], waiting[0][1].result()
                waiting.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _content(entry: Entry) -> bytes | str:
    try:
        return entry.read()
    except SourceUnreachable as error:
        if not entry.independent:
            raise DataError(f"data.address: {entry.path}: cannot be read: {error.why}") from None
        return f"{UNREACHABLE}{error.why}"
    except DataError as error:
        return str(error)


def _batches(found: Iterator[Read], tables: dict[str, bytes | str]) -> Iterator[list[Read]]:
    """Files in groups that fit into memory; tables of labels are put into `tables`.

    Raises DataError when the store fails for FAILURES files in a row.
    """
    batch: list[Read] = []
    held = failures = 0
    for entry, content in found:
        unreachable = content if isinstance(content, str) and content.startswith(UNREACHABLE) else None
        failures = failures + 1 if unreachable else 0
        if failures == FAILURES:
            raise DataError(f"data.address: {entry.path} and the {FAILURES - 1} files before it {unreachable}")
        if is_label_table(entry.path) and entry.label is None:
            tables[entry.place or entry.path] = content
            continue
        batch.append((entry, content))
        held += len(content)
        if len(batch) == BATCH_FILES or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _labels(tables: Mapping[str, bytes | str]) -> tuple[Labels, list[str]]:
    """The labels that tables give, and remarks for the user."""
    labels, remarks = Labels(), []
    for name, content in tables.items():
        try:
            if isinstance(content, str):
                raise DataError(content)
            labels.add(name, read_label_table(content, name))
        except DataError as error:
            if name.rpartition("/")[2].lower() in MUST_BE_LABELS:
                raise DataError(f"data.address: {name}: {error}") from None
            remarks.append(f"{name} is not used for labels: {error}")
    return labels, remarks


def _unknown(labels: Labels, tables: Mapping[str, bytes | str], given: Sequence[str | None]) -> list[str]:
    """A remark about files that the tables name and that are no images here."""
    unknown = labels.unknown()
    if not unknown:
        return []
    if not any(given):
        raise DataError(
            f"data.address: none of the {len(unknown):,} files that {', '.join(tables)} names is a usable image (the "
            f"first is {unknown[0][:100]!r}); write their paths below the folder of the table"
        )
    shown = ", ".join(repr(name[:100]) for name in unknown[:SHOWN])
    more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
    return [f"{', '.join(tables)}: {len(unknown):,} of the files are not usable images here: {shown}{more}"]


def _write_entries(path: Path, found: Sequence[Fetched]) -> None:
    """One row for each image that is used: its path, its row in images.parquet, its part, its label and its source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"path": pa.string(), "row": pa.int64(), "part": pa.string(), "label": pa.string(), "source": pa.string()}
    schema = pa.schema(list(kinds.items()))
    rows = _entry_rows(found)
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, ROWS)):
            writer.write_table(pa.table([list(column) for column in zip(*some, strict=True)], schema=schema))


def _entry_rows(found: Sequence[Fetched]) -> Iterator[tuple[str, int, str, str | None, str]]:
    row = 0
    for each in found:
        arrangement = each.arrangement
        for path, kind in zip(each.paths(), each.kinds, strict=True):
            if kind not in arrangement.left_out:
                yield path, row, arrangement.parts[kind], arrangement.labels[kind], each.source
            row += 1


def _tell(fetched: Fetched) -> None:
    for remark in fetched.arrangement.remarks:
        say(f"{fetched.source}: {remark}" if fetched.source else remark)
    by_reason: dict[str, list[str]] = {}
    for image in fetched.left_out():
        by_reason.setdefault(image["reason"], []).append(image["path"])
    for reason, left_out in list(by_reason.items())[:SHOWN]:
        shown = ", ".join(map(repr, left_out[:SHOWN]))
        more = f" and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else ""
        say(f"left out: {shown}{more}: {reason}")
    if len(by_reason) > SHOWN:
        say(f"left out for {len(by_reason) - SHOWN} more reasons: see data/raw/rejected.json")


def _tell_counts(arrangements: Sequence[Arrangement], rejected: int) -> None:
    parts = Counter[str]()
    labels = set[str | None]()
    for each in arrangements:
        for kind, (part, label) in enumerate(zip(each.parts, each.labels, strict=True)):
            if kind not in each.left_out:
                parts[part] += each.counts[kind]
                labels.add(label)
    classes = len(labels - {None})
    own = f"parts: {', '.join(f'{part} {count:,}' for part, count in parts.items())}" if any(parts) else "no parts"
    classes_in_words = "1 class" if classes == 1 else f"{classes or 'no'} classes"
    say(f"{parts.total():,} images, {classes_in_words}, {own}; files not usable or left out: {rejected:,}")
