"""The rows of a Parquet file as input files, read in a child process, which a crafted file may kill.

`rows` runs in that process (sandbox.py), `parquet_entries` here. A row's image is a binary cell or a struct with
`bytes`, as Hugging Face's datasets write it; a list of these is several images.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

from densitywatch.data.decoding.images import MAX_BYTES
from densitywatch.data.decoding.sandbox import Answer, Request, answers
from densitywatch.data.inputs.entries import TOO_LARGE, Entry, most_members, refused
from densitywatch.data.inputs.label_table import LABEL_COLUMNS
from densitywatch.data.inputs.unpacking import BOMB, HARMLESS, MAX_RATIO
from densitywatch.errors import DataError
from densitywatch.text import MAX_PATH, as_text

NAMES = ("path", "file_path", "filepath", "file_name", "filename", "name", "key", "id", "uri")
PICTURES = ("image", "img", "picture", "photo", "bytes", "image_bytes", "content", "data", "png", "jpg", "jpeg")
ROWS = 8
"""Rows unpacked at a time: a few cells of 64 MiB must fit into memory."""
LARGE_ROW = 4 << 20
BUFFER = 1 << 20
"""Bytes of a column that are read ahead; without this a whole row group's column would be in memory."""
MEMORY = 1 << 30
"""Bytes that reading may take, with the library itself (about 300 MiB of address space)."""
SECONDS = 10.0
"""CPU seconds until the next row."""
FOR_ROW, FOR_MIB = 0.002, 0.05
"""CPU seconds that each row and each MiB of the file add to SECONDS, for the whole file."""
MAX_IN_CELL = 1000
"""Most images in one cell of a list column."""


def parquet_entries(file: BinaryIO, prefix: str, *, labels: bool = False) -> Iterator[Entry]:
    """Every row's image, with its label where `labels` are asked for and there is a column of them.

    Raises DataError when the file cannot be read, or not any further."""
    reader = "densitywatch.data.inputs.parquet_rows:rows"
    for facts, data in answers(reader, {"labels": labels}, file=file, seconds=SECONDS, memory=MEMORY, together=True):
        read = refused(str(facts["reason"])) if "reason" in facts else _given(data)
        yield Entry(prefix + as_text(str(facts["path"])), read, independent=False, label=facts.get("label"))


def _given(data: bytes) -> Any:
    return lambda: data


def rows(request: Request) -> Iterator[Answer]:
    """In the child: one answer for each picture, with its path and its bytes or the reason for none."""
    # to be set before pyarrow is loaded: its other allocators reserve a GiB of address space, all that is allowed
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow.parquet as pq

    file = cast(BinaryIO, request.file)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    table = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
    count = table.metadata.num_rows
    if count > most_members(length):
        raise DataError(f"{count:,} rows in {length:,} bytes are more than images can be; not unpacked")
    picture, named = find_columns(table.schema_arrow)
    label_of = _labels(table.schema_arrow, picture, named) if request.facts.get("labels") else None
    wanted = [picture, *([named] if named else []), *([label_of[0]] if label_of else [])]
    # a value that repeats stays one copy, however many rows refer to it; pyarrow cannot do so in nested columns
    leaves = [table.schema.column(i) for i in range(len(table.schema))]
    once = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path in wanted]
    table = pq.ParquetFile(
        file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True, read_dictionary=once
    )
    started, number, given = time.process_time(), 0, 0
    for batch in table.iter_batches(batch_size=_rows_at_a_time(table.metadata), columns=wanted, use_threads=False):
        cells = batch.column(batch.schema.get_field_index(picture))
        labels = batch.column(batch.schema.get_field_index(named)) if named else None
        classes = batch.column(batch.schema.get_field_index(label_of[0])) if label_of else None
        for i in range(len(cells)):
            pictures = pictures_of(cells[i])
            label = name_of(labels[i]) if labels is not None else None
            for k, (inner, data) in enumerate(pictures):
                path = (inner if labels is None else label) or f"row {number}"
                path = path if len(pictures) == 1 else f"{path} [{k}]"
                facts = {"path": path}
                if label_of and classes is not None and (told := name_of(classes[i])) is not None:
                    facts["label"] = as_text(label_of[1].get(told, told))
                size = 0 if data is None else data.size
                given += size
                if given > HARMLESS and given > MAX_RATIO * length:
                    raise DataError(BOMB)
                if data is None:
                    yield Answer({**facts, "reason": "the cell holds no bytes"})
                elif size > MAX_BYTES:
                    yield Answer({**facts, "reason": TOO_LARGE})
                else:
                    yield Answer(facts, data.to_pybytes())
            number += 1
        may = SECONDS + FOR_ROW * number + FOR_MIB * (length + given) / (1 << 20)
        if time.process_time() - started > may:
            raise DataError(f"reading it takes more than {may:.0f} seconds of computing; save it again or leave it out")


def _rows_at_a_time(metadata: Any) -> int:
    """ROWS, or 1 where the file says that its rows are large."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return ROWS if largest < LARGE_ROW else 1


def pictures_of(cell: Any) -> list[tuple[str | None, Any]]:
    """The name and the bytes (a buffer, or None) of each picture in a cell."""
    import pyarrow as pa

    cell = _plain(cell)
    if not cell.is_valid:
        return [(None, None)]
    if isinstance(cell, pa.ListScalar):  # of every length and kind
        if pa.types.is_integer(cell.type.value_type):
            return [(None, _bytes_of_numbers(cell.values))]
        if len(cell.values) > MAX_IN_CELL:
            raise DataError(f"a cell holds {len(cell.values):,} images, more than {MAX_IN_CELL}; not unpacked")
        return [found for inner in cell.values for found in pictures_of(inner)] or [(None, None)]
    if isinstance(cell, pa.StructScalar):
        names = [field.name for field in cell.type]
        inner = _plain(cell["bytes"])
        path = name_of(cell["path"]) if names.count("path") == 1 else None
        return [(path, inner.as_buffer() if inner.is_valid else None)]
    return [(None, cell.as_buffer())]


def _plain(cell: Any) -> Any:
    """The cell itself behind a dictionary or an extension type."""
    import pyarrow as pa

    while isinstance(cell, pa.DictionaryScalar | pa.ExtensionScalar):
        cell = cell.value
        if cell is None:
            return pa.scalar(None, pa.binary())
    return cell


def _bytes_of_numbers(values: Any) -> Any:
    """A list of 8-bit numbers as a buffer of bytes, or None."""
    import pyarrow as pa

    if values.null_count or len(values) > MAX_BYTES:
        return None
    return pa.py_buffer(values.to_numpy(zero_copy_only=True).tobytes())


def name_of(cell: Any) -> str | None:
    """Any cell as text of limited length."""
    cell = _plain(cell)
    if not cell.is_valid:
        return None
    if hasattr(cell, "as_buffer"):
        raw = cell.as_buffer()
        start: bytes = raw.slice(0, min(raw.size, 4 * MAX_PATH)).to_pybytes()
        return start.decode("utf-8", "surrogateescape")
    return str(cell.as_py())[:MAX_PATH]


def find_columns(schema: Any) -> tuple[str, str | None]:
    """The column with the images, and the one with their names or None. Raises DataError where no column has images."""
    import pyarrow as pa

    found = _picture_column(schema)
    # a nested column is no name
    simple = [
        field.name
        for field in schema
        if not pa.types.is_nested(field.type) and field.name != found and schema.names.count(field.name) == 1
    ]
    return found, next((name for wanted in NAMES for name in simple if name.lower() == wanted), None)


def _labels(schema: Any, picture: str, named: str | None) -> tuple[str, dict[str, str]] | None:
    """The column of labels, and the names of its numbers where Hugging Face's datasets wrote them into the file."""
    import pyarrow as pa

    simple = {
        field.name.lower(): field.name
        for field in schema
        if not pa.types.is_nested(field.type)
        and field.name not in (picture, named)
        and schema.names.count(field.name) == 1
    }
    column = next((simple[name] for name in LABEL_COLUMNS if name in simple), None)
    if column is None:
        return None
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][column]["names"]
        return column, {str(number): str(name) for number, name in enumerate(names)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return column, {}


def _picture_column(schema: Any) -> str:
    fitting = [field.name for field in schema if _holds_pictures(field.type)]
    known = [name for wanted in PICTURES for name in fitting if name.lower() == wanted]
    for name in (*known, *(fitting if len(fitting) == 1 else ())):
        if schema.names.count(name) > 1:
            raise DataError(f"two of its columns are called `{as_text(name)[:100]}`; give each its own name")
        return str(name)
    shown = as_text(", ".join(name[:100] for name in cast(Sequence[str], schema.names[:20])))
    raise DataError(f"no column of image bytes (columns: {shown}); name it `image`")


def _holds_pictures(kind: Any, *, inside: bool = False) -> bool:
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_pictures(kind.storage_type, inside=inside)
    if types.is_dictionary(kind):
        return _holds_pictures(kind.value_type, inside=inside)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        small = types.is_uint8(kind.value_type) or types.is_int8(kind.value_type)
        return not inside and (small or _holds_pictures(kind.value_type, inside=True))
    if types.is_struct(kind):
        fields = [field for field in kind if field.name == "bytes"]
        return len(fields) == 1 and not types.is_struct(fields[0].type) and _holds_pictures(fields[0].type, inside=True)
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )
