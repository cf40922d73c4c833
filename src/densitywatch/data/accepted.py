"""Images of drifted batches that were accepted into the dataset: `prepare` takes them like one more source.

    data/accepted/<batch>.parquet    the images of one batch; batches/accepting.py writes it, DVC keeps its versions

Most of them are for training alone: nobody knows of a chosen image that it is a fair sample of what arrives. Images of
a random draw that a person judged whole are one, of the stream as it is now. Once enough of them can be used they
calibrate, in the place of the old images (judged_draw.py): p-values rank a new image among calibration images, and they
are right when both come from one hat. A mixture of yesterday's images and today's would be neither stream. Before that
they are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densitywatch.arrays import Numbers
from densitywatch.data.dataset import SplitName
from densitywatch.data.decoding.images import Picture
from densitywatch.data.image_table import Table
from densitywatch.data.judged_draw import FEWEST, PART, part_of
from densitywatch.data.look import ACCEPTED
from densitywatch.data.raw import Raw, RawImage, decoded
from densitywatch.data.training_only import with_mark
from densitywatch.data.validation.manifest_suite import SOURCE_SHAPES
from densitywatch.errors import DataError
from densitywatch.params import DataParams

if TYPE_CHECKING:
    import pyarrow as pa

JUDGED: tuple[SplitName, ...] = ("calibration", "gate")
"""Splits that a judged draw may be in."""
SOURCE = "accepted"
ROWS = 500
"""Images in a row group of a file."""
COLUMNS = ("path", "sha256", "label", "fair", "drift", "alarm", "bytes")
LATER: dict[str, Any] = {"drift": 0, "alarm": ""}
"""Columns that files of earlier versions lack, and what is said of such a file: its drift was before all others."""


def schema() -> pa.Schema:
    """Of a file of accepted images.

    `label`: a class, or null. `fair`: of a random draw that a person judged whole. `drift`: which drift of the stream
    the image was accepted under, counted from 1. `alarm`: what that drift is known by. The last two are the same in the
    whole file.
    """
    import pyarrow as pa

    kinds = (pa.string(), pa.string(), pa.string(), pa.bool_(), pa.int64(), pa.string(), pa.binary())
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def accepted_files(root: Path) -> list[Path]:
    """The files of data/accepted, by name."""
    return sorted((root / ACCEPTED).glob("*.parquet"))


def accepted_rows(file: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """The rows of one file, with their bytes where they are asked for `whole`. Raises DataError when it is damaged."""
    import pyarrow.parquet as pq

    with _damage_named(file):
        there = set(pq.read_schema(file).names)
        asked = COLUMNS if whole else COLUMNS[:-1]
        columns = [name for name in asked if name in there or name not in LATER]
        rows: list[dict[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
        for row in rows:
            row |= {key: value for key, value in LATER.items() if row.get(key) is None}
        if any(not isinstance(row["path"], str) or not isinstance(row["sha256"], str) for row in rows):
            raise ValueError("an image without a name")
        if any(not isinstance(row["drift"], int) or not isinstance(row["alarm"], str) for row in rows):
            raise ValueError("an image of no drift")
    return rows


def with_accepted(raw: Raw, data: DataParams, root: Path) -> Raw:
    """`raw` and the accepted images of `root`. Those that cannot be used are rejected by name.

    In a dataset with labels every image needs one of its classes. Built-in sources take images of their own size and
    pixel format alone. The rows of one file are in memory at a time.
    """
    classes = {name: index for index, name in enumerate(raw.class_names)}
    usable: list[tuple[Path, Numbers]] = []
    rejected: list[dict[str, str]] = []
    for file in accepted_files(root):
        numbers: list[int] = []
        for number, row in enumerate(accepted_rows(file)):
            if classes and row["label"] not in classes:
                why = "no label" if row["label"] is None else f"its label {row['label']!r:.80} is no class"
                reason = f"{why}, and every image of this dataset needs one"
                rejected.append({"path": _path_of(file, row), "reason": reason})
            else:
                numbers.append(number)
        usable.append((file, np.array(numbers, dtype=np.int64)))

    def images() -> Iterator[RawImage]:
        yield from raw.images()
        for file, numbers in usable:
            rows = accepted_rows(file)
            for number in numbers:
                row, path = rows[number], _path_of(file, rows[number])
                place = (path, part_of(row["drift"])) if row["fair"] else (with_mark(path), SOURCE)
                yield RawImage(*place, classes[row["label"]] if classes else -1, source=SOURCE)

    def read(indices: Sequence[int] | Numbers) -> Iterator[Picture | DataError]:
        indices, start = np.asarray(indices, dtype=np.int64), raw.count
        yield from raw.read(indices[indices < start])
        for file, numbers in usable:
            here = indices[(start <= indices) & (indices < start + len(numbers))]
            yield from _pictures(file, numbers[here - start], data)
            start += len(numbers)

    count = raw.count + sum(len(numbers) for _, numbers in usable)
    return replace(raw, images=images, count=count, read=read, rejected=(*raw.rejected, *rejected))


def _path_of(file: Path, row: Mapping[str, Any]) -> str:
    return f"{SOURCE}/{file.stem}/{row['path']}"


def _pictures(file: Path, numbers: Numbers, data: DataParams) -> Iterator[Picture | DataError]:
    """The images at these rows of a file, ascending; a row group in memory at a time."""
    import pyarrow.parquet as pq

    start = 0
    with _damage_named(file):
        table = pq.ParquetFile(file)
    with table:
        for group in range(table.num_row_groups):
            with _damage_named(file):
                cells = table.read_row_group(group, columns=["bytes"]).column("bytes")
                inside = numbers[(start <= numbers) & (numbers < start + len(cells))] - start
                contents = [cells[row].as_py() or b"" for row in inside.tolist()]
            start += len(cells)
            for picture in decoded(contents, data):
                yield picture if isinstance(picture, DataError) else _of_the_source(picture, data.source)


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into a DataError that says how to get it back."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException):
        raise DataError(f"{file}: damaged; run `dvc checkout {ACCEPTED}.dvc`, or remove it") from None


def _of_the_source(picture: Picture, source: str) -> Picture | DataError:
    """The picture, or the reason why a built-in source has none like it."""
    shape = SOURCE_SHAPES.get(source)
    if shape is None or (picture.width, picture.height, picture.mode) == shape:
        return picture
    width, height, mode = shape
    return DataError(
        f"{picture.width} x {picture.height} pixels in format {picture.mode}; images of {source} have {width} x"
        f" {height} in format {mode}"
    )


def judged_counts(table: Table) -> dict[SplitName, int]:
    """Number of images of a judged draw in `calibration` and `gate`; empty where no draw calibrates."""
    counts = _accepted_counts(table)
    return {name: counts[name] for name in JUDGED if name in counts}


def _accepted_counts(table: Table) -> dict[SplitName, int]:
    """Number of accepted images by split, where there are any."""
    query = "SELECT split, count(*) FROM placed JOIN image USING (number) WHERE source = ? GROUP BY split"
    return dict(table.execute(query, (SOURCE,)).fetchall())


def accepted_line(table: Table) -> str | None:
    """One sentence about the accepted images in the splits; None where there are none."""
    counts = _accepted_counts(table)
    if not counts:
        return None
    waiting = table.execute(
        """SELECT count(DISTINCT coalesce(nullif(placed.group_name, ''), sha256)) FROM placed JOIN image USING (number)
        WHERE split = 'train' AND placed.part LIKE ? GROUP BY placed.part""",
        (f"{PART}%",),
    )
    most = max((count for (count,) in waiting), default=0)
    if counts.get("calibration"):
        calibrates = (
            f"{counts['calibration']:,} of a judged random draw are now the calibration images, and"
            f" {counts.get('gate', 0):,} are for the gate"
        )
        if most:
            calibrates += f"; judged images of another drift are trained on, {most:,} of {FEWEST} that it takes"
    else:
        calibrates = (
            f"calibration images are the old ones until {FEWEST} images of random draws of one drift are judged that"
            f" can be used, each group counted once ({most:,} so far), so p-values are those of the stream before the"
            " drift"
        )
    trained = counts.get("train", 0)
    return f"accepted images of drifted batches: {trained:,} are trained on; {calibrates}"
