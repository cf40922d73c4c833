"""The members of zip, tar and Parquet files as entries: read in memory, within limits, and never written to disk.

An archive comes from outside and may be built to hurt. A member's name is a label and no path; sizes are checked before
and while bytes are unpacked; what a broken archive still gives is used, and one more entry says where it broke off.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, cast

from densitywatch.data.entries import TOO_LARGE, Entry, SourceUnreachable, read_limited, refused
from densitywatch.data.images import MAX_BYTES
from densitywatch.errors import DataError
from densitywatch.text import as_text, one_line

ARCHIVE = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz|parquet)$", re.IGNORECASE)
MAX_RATIO = 200
"""Unpacked over packed size beyond which an archive is taken for a bomb; image formats leave little to squeeze."""
HARMLESS = 16 << 20
"""Unpacked sizes up to this one are no bomb at any ratio."""
PARQUET_ROWS = 8
"""Rows unpacked at a time: a bomb of repeated 64 MiB cells must fit into memory."""


_OUTSIDE = "its name leads out of the archive; not trusted"
_BOMB = "unpacks to far more than its packed size, as a bomb does; not unpacked"


def members(file: BinaryIO, name: str, prefix: str) -> Iterator[Entry]:
    """The entries of the archive `file`; each one's path is `prefix` + the member's name.

    An archive that cannot be read, or not to its end, has an entry `name` that says so; so has an empty one.
    """
    kind = cast("re.Match[str]", ARCHIVE.search(name)).group(1).lower()
    reader = {"zip": _zip, "parquet": _parquet}.get(kind, _tar)
    count = 0
    try:
        for count, entry in enumerate(reader(file, prefix), start=1):  # noqa: B007
            yield entry
    except SourceUnreachable:
        raise
    except Exception as error:  # a hostile archive can make its library raise anything
        reason = str(error) if isinstance(error, DataError) else f"broken ({one_line(error)})"
        where = f"the archive, after {count} members: " if count else "the archive: "
        yield Entry(name, refused(where + reason), independent=False)
        return
    if count == 0:
        yield Entry(name, refused("the archive holds no files"), independent=False)


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def _zip(file: BinaryIO, prefix: str) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield Entry(prefix + as_text(info.filename), _zip_member(archive, info), independent=False)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    if _leads_out(info.filename):
        return refused(_OUTSIDE)
    if info.external_attr >> 28 == 0o12:
        return refused("a symbolic link inside the archive; not followed")
    if info.flag_bits & 1:
        return refused("encrypted; there is no password to open it")
    if info.file_size > MAX_BYTES:
        return refused(TOO_LARGE)
    if info.file_size > HARMLESS and info.file_size > MAX_RATIO * info.compress_size:
        return refused(_BOMB)

    def read() -> bytes:
        try:
            with archive.open(info) as member:
                return read_limited(member)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"cannot be unpacked ({one_line(error)})") from None

    return read


def _tar(file: BinaryIO, prefix: str) -> Iterator[Entry]:
    with tarfile.open(fileobj=cast(BinaryIO, _Unpacked(file)), mode="r|") as archive:
        while (info := archive.next()) is not None:
            # tarfile remembers every member; a million of them must not fill the memory
            cast(Any, archive).members.clear()
            if not info.isdir():
                yield Entry(prefix + as_text(info.name), _tar_member(archive, info), independent=False)


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    if _leads_out(info.name):
        return refused(_OUTSIDE)
    if info.issym() or info.islnk():
        return refused("a link inside the archive; not followed")
    if not info.isreg() or info.issparse():
        return refused("not a regular file")
    if info.size > MAX_BYTES:
        return refused(TOO_LARGE)

    def read() -> bytes:
        with cast("IO[bytes]", archive.extractfile(info)) as member:
            data = read_limited(member)
        if len(data) < info.size:
            raise DataError("breaks off before its end")
        return data

    return read


class _Unpacked:
    """A tar's bytes, unpacked as they are read; raises DataError once they are far more than the packed ones."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.read(6)
        file.seek(0)
        self._packed = file
        self._count = 0
        if start.startswith(b"\x1f\x8b"):
            self._stream: IO[bytes] = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif start.startswith(b"BZh"):
            self._stream = cast("IO[bytes]", bz2.BZ2File(file))
        elif start.startswith(b"\xfd7zXZ\x00"):
            self._stream = cast("IO[bytes]", lzma.LZMAFile(file))  # noqa: SIM115 (closed with the archive's own file)
        else:
            self._stream = file

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        if self._count > HARMLESS and self._count > MAX_RATIO * self._packed.tell():
            raise DataError(_BOMB)
        return data


_NAMES = ("path", "file_path", "filepath", "file_name", "filename", "name", "key", "id", "uri")
_PICTURES = ("image", "img", "picture", "bytes", "image_bytes", "content", "data", "png", "jpg")


def _parquet(file: BinaryIO, prefix: str) -> Iterator[Entry]:
    """A row is an entry. The image is a binary column or a struct with `bytes`, as Hugging Face's datasets write it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    schema = table.schema_arrow
    column = _picture_column(schema)
    named = next((name for name in _NAMES if name in schema.names and name != column), None)
    inner = pa.types.is_struct(schema.field(column).type)
    row = 0
    for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[column, *([named] if named else [])]):
        for record in batch.to_pylist():
            value = record[column]
            label = record[named] if named else value.get("path") if inner and value else None
            path = f"{prefix}{label}" if label is not None else f"{prefix}row {row}"
            yield Entry(as_text(path), _parquet_cell(value["bytes"] if inner and value else value), independent=False)
            row += 1


def _picture_column(schema: Any) -> str:
    import pyarrow as pa

    def fits(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and fits(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    fitting = [field.name for field in schema if fits(field.type)]
    for name in (*_PICTURES, *(fitting if len(fitting) == 1 else ())):
        if name in fitting:
            return cast(str, name)
    found = as_text(", ".join(schema.names[:20]))
    raise DataError(f"no column of image bytes (columns: {found}); name it `image`")


def _parquet_cell(value: object) -> Callable[[], bytes]:
    if not isinstance(value, bytes):
        return refused("the cell holds no bytes")
    if len(value) > MAX_BYTES:
        return refused(TOO_LARGE)
    return lambda: value
