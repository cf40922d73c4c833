"""Images of drifted batches that were accepted into the dataset: `prepare` takes them like one more source.

    data/accepted/<batch>.parquet    the images of one batch; batches/accepting.py writes it, DVC keeps its versions

Most of them are for training alone: nobody knows of a chosen image that it is a fair sample of what arrives. Images of
a random draw that a person judged whole are one, of the stream as it is now. Once enough of them can be used they
calibrate, in the place of the old images (judged_draw.py): p-values rank a new image among calibration images, and they
are right when both come from one hat. A mixture of yesterday's images and today's would be neither stream. Before that
they are trained on.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densitywatch.data.dataset import SplitName
from densitywatch.data.decoding.images import Picture, decode_images
from densitywatch.data.judged_draw import FEWEST, is_judged, part_of
from densitywatch.data.look import ACCEPTED
from densitywatch.data.raw import Raw, RawImage
from densitywatch.data.splits import Row
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = set(pq.read_schema(file).names)
        asked = COLUMNS if whole else COLUMNS[:-1]
        columns = [name for name in asked if name in there or name not in LATER]
        rows: list[dict[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
        for row in rows:
            row |= {key: value for key, value in LATER.items() if row.get(key) is None}
        if any(not isinstance(row["path"], str) or not isinstance(row["sha256"], str) for row in rows):
            raise DataError("an image without a name")
        if any(not isinstance(row["drift"], int) or not isinstance(row["alarm"], str) for row in rows):
            raise DataError("an image of no drift")
    except (OSError, ValueError, LookupError, pa.ArrowException, DataError):
        raise DataError(f"{file}: damaged; run `dvc checkout {ACCEPTED}.dvc`, or remove it") from None
    return rows


def with_accepted(raw: Raw, data: DataParams, root: Path) -> Raw:
    """`raw` and the accepted images of `root`. Those that cannot be used are rejected by name.

    In a dataset with labels every image needs one of its classes. Built-in sources take images of their own size and
    pixel format alone.
    """
    files = accepted_files(root)
    listed = [(file, number, row) for file in files for number, row in enumerate(accepted_rows(file))]
    if not listed:
        return raw
    classes = {name: index for index, name in enumerate(raw.class_names)}
    images: list[RawImage] = []
    places: list[tuple[Path, int]] = []
    rejected: list[dict[str, str]] = []
    for file, number, row in listed:
        path = f"{SOURCE}/{file.stem}/{row['path']}"
        if classes and row["label"] not in classes:
            why = "no label" if row["label"] is None else f"its label {row['label']!r:.80} is no class"
            rejected.append({"path": path, "reason": f"{why}, and every image of this dataset needs one"})
            continue
        label = classes[row["label"]] if classes else -1
        place = (path, part_of(row["drift"])) if row["fair"] else (with_mark(path), SOURCE)
        images.append(RawImage(*place, label, source=SOURCE))
        places.append((file, number))
    before = len(raw.images)

    def read(indices: Sequence[int]) -> Iterator[Picture | DataError]:
        cut = bisect.bisect_left(indices, before)
        if cut:
            yield from raw.read(indices[:cut])
        yield from _pictures([places[index - before] for index in indices[cut:]], data)

    return replace(raw, images=[*raw.images, *images], read=read, rejected=(*raw.rejected, *rejected))


def _pictures(places: Sequence[tuple[Path, int]], data: DataParams) -> Iterator[Picture | DataError]:
    """The images at these rows of files, ascending; a row group in memory at a time."""
    import pyarrow.parquet as pq

    wanted: dict[Path, list[int]] = {}
    for file, number in places:
        wanted.setdefault(file, []).append(number)
    for file, numbers in wanted.items():
        chosen, start = set(numbers), 0
        with pq.ParquetFile(file) as table:
            for group in range(table.num_row_groups):
                cells = table.read_row_group(group, columns=["bytes"]).column("bytes").to_pylist()
                contents = [cell or b"" for row, cell in enumerate(cells, start) if row in chosen]
                start += len(cells)
                for picture in decode_images(
                    contents,
                    size=data.size,
                    channels=data.channels,
                    resize=data.resize,
                    max_pixels=data.max_pixels,
                ):
                    yield picture if isinstance(picture, DataError) else _of_the_source(picture, data.source)


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


def judged_counts(splits: Mapping[SplitName, Sequence[Row]]) -> dict[str, int]:
    """Number of images of a judged draw in `calibration` and `gate`; empty where no draw calibrates."""
    counts = {name: sum(row.image.source == SOURCE for row in splits[name]) for name in JUDGED}
    return {name: count for name, count in counts.items() if count}


def accepted_line(splits: Mapping[SplitName, Sequence[Row]]) -> str | None:
    """One sentence about the accepted images in the splits; None where there are none."""
    counts = Counter(name for name, rows in splits.items() for row in rows if row.image.source == SOURCE)
    if not counts:
        return None
    waiting: dict[str, set[str]] = {}
    for row in splits["train"]:
        if is_judged(row.image):
            waiting.setdefault(row.image.part, set()).add(row.group or row.sha256)
    most = max(map(len, waiting.values()), default=0)
    if counts["calibration"]:
        calibrates = (
            f"{counts['calibration']:,} of a judged random draw are now the calibration images, and"
            f" {counts['gate']:,} are for the gate"
        )
        if waiting:
            calibrates += f"; judged images of another drift are trained on, {most:,} of {FEWEST} that it takes"
    else:
        calibrates = (
            f"calibration images are the old ones until {FEWEST} images of random draws of one drift are judged that"
            f" can be used, each group counted once ({most:,} so far), so p-values are those of the stream before the"
            " drift"
        )
    return f"accepted images of drifted batches: {counts['train']:,} are trained on; {calibrates}"
