"""`source: folder`: the user's own images, from a local folder or any fsspec address, into one Parquet file.

Nothing is trusted: names become text, never paths; links that lead out of the folder are not followed; a file that
cannot be decoded is listed in rejected.json with its reason. One file at a time, so memory stays flat.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densitywatch.data.arrangement import Arrangement, arrange
from densitywatch.data.images import MAX_BYTES, decode_image
from densitywatch.errors import DataError
from densitywatch.files import is_full_disk
from densitywatch.progress import say, track

BATCH_FILES = 64
BATCH_BYTES = 64 << 20
SHOWN = 5

Named = tuple[str, bytes | str]
"""A file's name below the address, and its bytes or (as text) the reason why it has none."""


def fetch_folder(address: str, target: Path, root: Path) -> None:
    """Copy every usable image below `address` into `target`/images.parquet and list the others in rejected.json.

    A relative local address is taken from `root`. Raises DataError when the address cannot be read, holds no usable
    image, or is arranged in a way that leaves parts or labels in doubt (arrangement.py).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: list[str] = []
    rejected: list[dict[str, str]] = []
    schema = pa.schema([("path", pa.string()), ("bytes", pa.binary())])
    with pq.ParquetWriter(target / "images.parquet", schema, compression="none") as writer:
        held: list[tuple[str, bytes]] = []

        def flush() -> None:
            columns = [list(column) for column in zip(*held, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            held.clear()

        for name, content in track(_files(address, root), "reading files"):
            shown = name.encode("utf-8", "backslashreplace").decode()
            if isinstance(content, bytes):
                try:
                    decode_image(content, size=8, channels=1, resize="stretch")
                except DataError as error:
                    content = str(error)
            if isinstance(content, str):
                rejected.append({"path": shown, "reason": content})
                continue
            names.append(shown)
            held.append((shown, content))
            if len(held) == BATCH_FILES or sum(len(data) for _, data in held) >= BATCH_BYTES:
                flush()
        if held:
            flush()
    for problem in rejected[:SHOWN]:
        say(f"not usable: {problem['path']!r}: {problem['reason']}")
    if len(rejected) > SHOWN:
        say(f"not usable: {len(rejected) - SHOWN} more, see data/raw/rejected.json")
    if not names:
        first = f"; the first, {rejected[0]['path']!r}: {rejected[0]['reason']}" if rejected else ""
        raise DataError(
            f"data.address: none of the {len(rejected)} files in {address} is a usable image{first}"
            if rejected
            else f"data.address: {address} holds no files; put images into it or correct the address"
        )
    arrangement = arrange(names)
    rejected += [{"path": names[index], "reason": reason} for index, reason in sorted(arrangement.left_out.items())]
    _write_entries(target / "entries.parquet", names, arrangement)
    (target / "rejected.json").write_text(json.dumps(rejected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _tell(names, arrangement, len(rejected))


def _write_entries(path: Path, names: Sequence[str], arrangement: Arrangement) -> None:
    """A row an image that is used: its path, its row in images.parquet, its part and its label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    used = [index for index in range(len(names)) if index not in arrangement.left_out]
    columns = {
        "path": pa.array([names[index] for index in used], pa.string()),
        "row": pa.array(used, pa.int64()),
        "part": pa.array([arrangement.parts[index] for index in used], pa.string()),
        "label": pa.array([arrangement.labels[index] for index in used], pa.string()),
    }
    pq.write_table(pa.table(columns), path)


def _tell(names: Sequence[str], arrangement: Arrangement, rejected: int) -> None:
    for remark in arrangement.remarks:
        say(remark)
    left_out = sorted(arrangement.left_out.items())
    for index, reason in left_out[:SHOWN]:
        say(f"left out: {names[index]!r}: {reason}")
    if len(left_out) > SHOWN:
        say(f"left out: {len(left_out) - SHOWN} more, see data/raw/rejected.json")
    used = [index for index in range(len(names)) if index not in arrangement.left_out]
    parts = Counter(arrangement.parts[index] for index in used)
    classes = len({arrangement.labels[index] for index in used} - {None})
    own = f"parts: {', '.join(f'{part} {count:,}' for part, count in parts.items())}" if any(parts) else "no parts"
    say(f"{len(used):,} images, {classes or 'no'} classes, {own}; files not usable or left out: {rejected:,}")


def _files(address: str, root: Path) -> Iterator[Named]:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    # an S3 endpoint that does not exist should be an error in seconds, not after minutes of retries
    quick: dict[str, Any] = {}
    if address.split("://")[0] in ("s3", "s3a"):
        quick = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}}
    try:
        files, top = fsspec.core.url_to_fs(address, **quick)
        if isinstance(files, LocalFileSystem):
            local = Path(top) if "://" in address else root / Path(address).expanduser()
            yield from _local_files(local, address)
        else:
            yield from _remote_files(files, top)
    except DataError:
        raise
    except Exception as error:  # each fsspec driver raises its own library's exceptions
        if isinstance(error, OSError) and is_full_disk(error):
            raise
        raise DataError(f"data.address: {address} cannot be read: {_one_line(error)}") from None


def _local_files(top: Path, address: str) -> Iterator[Named]:
    """Every file below a local folder, in the order of the names; a link is followed to a file inside of it only."""
    if not top.is_dir():
        raise DataError(
            f"data.address: {address} is {'a file' if top.exists() else 'not there'}; give a folder of images"
        )
    inside = top.resolve()
    refused: list[OSError] = []
    for folder, folders, files in os.walk(top, onerror=refused.append):
        folders.sort()
        for name in sorted([*files, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            path = Path(folder) / name
            yield path.relative_to(top).as_posix(), _read_local(path, inside)
    for error in refused:
        name = os.path.relpath(str(error.filename), top)
        if name == ".":
            raise error
        yield name, f"the folder cannot be read: {error.strerror}"


def _read_local(path: Path, inside: Path) -> bytes | str:
    try:
        if path.is_symlink():
            resolved = path.resolve(strict=True)
            if not resolved.is_relative_to(inside):
                return "a symbolic link that leads out of the folder"
            if resolved.is_dir():
                return "a symbolic link to a folder is not followed"
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return "a symbolic link that leads nowhere"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _remote_files(files: Any, top: str) -> Iterator[Named]:
    """Every object below `top`, read a few at a time side by side."""
    found = files.find(top, detail=True)
    prefix = top.rstrip("/") + "/" if top.strip("/") else ""
    for batch in _batches({path: found[path].get("size") for path in sorted(found)}):
        # cat_ranges, since cat() would take a name with brackets in it for a pattern
        sizes = [MAX_BYTES + 1 if size is None else min(size, MAX_BYTES + 1) for size in batch.values()]
        filled = [(path, size) for path, size in zip(batch, sizes, strict=True) if size]
        contents = dict.fromkeys(batch, b"")
        if filled:
            paths, ends = zip(*filled, strict=True)
            read = files.cat_ranges(list(paths), [0] * len(paths), list(ends), on_error="return")
            contents.update(zip(paths, read, strict=True))
        for path, content in contents.items():
            name = path.removeprefix(prefix).lstrip("/")
            yield name, content if isinstance(content, bytes) else f"cannot be read: {_one_line(content)}"


def _batches(sizes: dict[str, int | None]) -> Iterator[dict[str, int | None]]:
    """Paths in groups that fit into memory together."""
    batch: dict[str, int | None] = {}
    held = 0
    for path, size in sizes.items():
        cost = min(MAX_BYTES if size is None else size, MAX_BYTES)
        if batch and (len(batch) == BATCH_FILES or held + cost > BATCH_BYTES):
            yield batch
            batch, held = {}, 0
        batch[path] = size
        held += cost
    if batch:
        yield batch


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
