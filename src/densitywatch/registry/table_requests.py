"""Requests to a served model that are tables, CSV or Parquet: one column, called image, of image files in base64.

A few hundred bytes of Parquet can unpack to gigabytes, and a line of commas is a table of millions of columns. So
Parquet is read in a child process, and of CSV nothing but one column. Registered versions import `texts_of_csv` and
`texts_of_parquet` from this file, so these names stay.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator

from densitywatch.data.decoding.sandbox import Answer, Request, answers
from densitywatch.errors import DataError

ONE_COLUMN = "a table needs one column, called image"
PARQUET = "application/vnd.apache.parquet"
MEMORY = 1 << 30
"""Bytes that reading Parquet may take, with the library itself (about 300 MiB of address space)."""
SECONDS = 10.0


def texts_of_csv(data: bytes, most: int) -> list[str]:
    """The column of a CSV table in UTF-8. Raises DataError for another table, or one of more than `most` rows."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("the request cannot be read as text/csv; send JSON") from None
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # an image in base64 is long
    lines = io.StringIO(text, newline="")
    found: list[str] = []
    try:
        # a line that is too wide is not taken apart: a table of one column has at most one comma in quotes
        for number, cells in enumerate(csv.reader(_narrow(lines))):
            if len(cells) > 1 or (number == 0 and cells not in (["image"], ["0"])):
                raise DataError(ONE_COLUMN)
            if number and cells:
                found.append(cells[0])
            if len(found) > most:
                raise DataError(f"more than the {most} images of one request; send several")
    except csv.Error:
        raise DataError("the request cannot be read as text/csv; send JSON") from None
    if not text.strip():
        raise DataError(ONE_COLUMN)
    return found


def _narrow(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.count(",") > 8:
            raise DataError(ONE_COLUMN)
        yield line


def texts_of_parquet(data: bytes, most: int, letters: int) -> list[str]:
    """The column of a Parquet table. Raises DataError for another one, one of more than `most` rows or `letters` bytes,
    and for one that takes too much memory or time to read."""
    limits = {"most": most, "letters": letters}
    reader = "densitywatch.registry.table_requests:cells"
    found = answers(reader, limits, blobs=[data], seconds=SECONDS, memory=MEMORY, together=True)
    return [answer.data.decode("utf-8", "replace") for answer in found]


def cells(request: Request) -> Iterator[Answer]:
    """In the child: one answer for each cell."""
    # to be set before pyarrow is loaded: its other allocators reserve a GiB of address space, all that is allowed
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow as pa
    import pyarrow.parquet as pq

    most, letters = int(request.facts["most"]), int(request.facts["letters"])
    try:
        told = pq.ParquetFile(io.BytesIO(request.blobs[0]))
        names, kinds, rows = told.schema_arrow.names, told.schema_arrow.types, told.metadata.num_rows
    except Exception:  # whatever pyarrow raises on bytes that are no Parquet
        raise DataError(f"the request cannot be read as {PARQUET}; send JSON") from None
    if names != ["image"]:
        raise DataError(ONE_COLUMN)
    if rows > most:
        raise DataError(f"{rows} images are more than the {most} of one request; send several")
    inner = kinds[0].value_type if pa.types.is_dictionary(kinds[0]) else kinds[0]
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise DataError(f"the column image is of the type {str(inner)[:50]} and not text; send base64")
    given = 0
    whole = pq.ParquetFile(io.BytesIO(request.blobs[0]), read_dictionary=["image"])  # text that repeats stays one copy
    for batch in whole.iter_batches(batch_size=1, use_threads=False):
        for cell in batch.column(0):
            cell = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
            if cell is None or not cell.is_valid:
                raise DataError("a cell of the column image is empty; send base64")
            text = cell.as_buffer().to_pybytes()
            given += len(text)
            if given > letters:
                raise DataError(f"the table has more than {letters >> 20} MiB of text; send fewer images at once")
            yield Answer({}, text)
