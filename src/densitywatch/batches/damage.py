"""Damage to the tables of a results folder, as an error of one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2
import pyarrow as pa
from PIL import Image

from densitywatch.errors import DataError
from densitywatch.text import one_line


@contextmanager
def damage_as_error(folder: Path) -> Iterator[None]:
    """Turn errors about a table that is missing, cut off or of other columns, or a picture in it, into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or folder}: not there any more; score the batch again") from None
    except (
        pa.ArrowException,
        LookupError,
        TypeError,
        ValueError,
        OSError,
        jinja2.UndefinedError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{folder}: its tables are damaged ({one_line(error)}); remove scores.parquet and score the batch again"
        ) from None
