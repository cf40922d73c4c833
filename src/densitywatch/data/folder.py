"""`source: folder`: the user's own images, from a local folder or any fsspec address, into one Parquet file.

Nothing is trusted: names become text, never paths; links that lead out of the folder are not followed; a file that
cannot be decoded is listed in rejected.json with its reason. One file at a time, so memory stays flat.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    image, or has a class folder whose name is no label.
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
    parts, labels = parts_and_labels(names)
    (target / "rejected.json").write_text(json.dumps(rejected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    classes = len({label for label in labels if label is not None})
    own = "with train and test parts" if any(parts) else "without parts of its own"
    say(f"{len(names):,} images, {classes or 'no'} class folders, {own}; files not usable: {len(rejected):,}")


def parts_and_labels(names: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """The part (`train`, `test` or empty) and the label of each file name.

    Top folders that are exactly `train` and `test` are parts. Below that, images are labelled by their first folder
    when every one of them has one; when some stand outside of class folders, none has a label.

    Raises DataError for a class folder whose name cannot be a label.
    """
    split = [name.split("/") for name in names]
    has_parts = {pieces[0] if len(pieces) > 1 else "" for pieces in split} == {"train", "test"}
    parts = [pieces[0] if has_parts else "" for pieces in split]
    below = [pieces[1:] if has_parts else pieces for pieces in split]
    if not all(len(pieces) > 1 for pieces in below):
        return parts, [None] * len(names)
    labels = [pieces[0] for pieces in below]
    for label in dict.fromkeys(labels):
        if label.startswith(".") or len(label) > 100 or not label.isprintable() or "\\" in label or not label.strip():
            raise DataError(
                f"data.address: the class folder {label[:100]!r} has a name that cannot be a label; rename it "
                "(printable, at most 100 characters, no backslash, no dot in front)"
            )
    return parts, list(labels)


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
