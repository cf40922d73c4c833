"""The pictures of a batch: the flagged images, where they are surprising, why, and the nearest training images.

gallery.parquet keeps them with the batch, so the report and the review need neither the source nor the models. The
rows begin with the least usual image. When few images are flagged, the least usual of the others are among them. The
first SHOWN rows have all columns. Flagged images after them have a picture only, in the batch's order.

Of a detector that says where an image is unusual, these rows also have a p-value for every place, and the picture
closer to its own resolution.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from densitywatch.arrays import Pixels
from densitywatch.batches.levels import strength
from densitywatch.batches.results_folder import GALLERY, SCORES
from densitywatch.batches.scorer import Scorer, has_places
from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.encoding import as_pillow, png
from densitywatch.data.reading import at_size, reading_size, resized
from densitywatch.errors import DataError, ModelError
from densitywatch.pages import pictures
from densitywatch.sizes import height_width

SHOWN = 100
"""Rows with all columns, at most."""
AT_LEAST = 12
"""Rows even when fewer images are flagged."""
NEIGHBOURS = 3
LARGEST = 192
"""Pixels a side of a picture, at most; larger images are scaled down and saved as JPEG."""

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("bits_per_dim", pa.float64()),
        ("outlier", pa.bool_()),
        ("reason", pa.string()),
        ("picture", pa.binary()),
        ("map", pa.binary()),
        ("neighbours", pa.list_(pa.binary())),
        ("why", pa.string()),
        ("photo", pa.binary()),
        ("place_p", pa.list_(pa.list_(pa.float64()))),
        ("place_images", pa.int64()),
    ]
)
_FROM_SCORES = ("path", "sha256", "score", "p_value", "bits_per_dim", "reason")


def write_gallery(work: Path, fresh: Path, detector: Scorer, root: Path) -> None:
    """fresh/gallery.parquet from the chunks in `work` and the flags in fresh/scores.parquet."""
    flags = pq.read_table(fresh / SCORES, columns=["outlier"]).column("outlier").to_numpy(zero_copy_only=False)
    # a batch that is decided in parts may leave an image of one part that is less usual than a flagged one of another
    candidates = ((not row["outlier"], *_rank(row)) for row in _pictured(work, flags, pixels=False))
    wanted = max(AT_LEAST, min(SHOWN, int(flags.sum())))
    chosen = {row for *_, row in heapq.nsmallest(wanted, candidates)}
    shown: list[dict[str, Any]] = sorted((row for row in _pictured(work, flags) if row["row"] in chosen), key=_rank)
    shape = (detector.channels, *height_width(detector.size))
    if shown:
        images = np.stack([np.frombuffer(row["pixels"], np.uint8).reshape(shape) for row in shown])
        for row, image in zip(shown, images, strict=True):
            row["picture"] = picture(image)
        _explain(shown, images, detector, root)
    with pq.ParquetWriter(fresh / GALLERY, SCHEMA) as writer:
        writer.write_table(_table(shown))
        rest: list[dict[str, Any]] = []
        for row in _pictured(work, flags):
            if row["outlier"] and row["row"] not in chosen:
                row["picture"], row["photo"] = picture(np.frombuffer(row["pixels"], np.uint8).reshape(shape)), None
                rest.append(row)
                if len(rest) == SHOWN:
                    writer.write_table(_table(rest))
                    rest = []
        if rest:
            writer.write_table(_table(rest))


def _pictured(work: Path, flags: NDArray[np.bool_], *, pixels: bool = True) -> Iterator[dict[str, Any]]:
    """The rows whose pixels were kept, in the batch's order."""
    start = 0
    columns = [*_FROM_SCORES, "pixels", *(["photo"] if pixels else [])]
    for part in sorted(work.glob("*.parquet")):
        table = pq.read_table(part, columns=columns)
        where = np.flatnonzero(np.asarray(table.column("pixels").is_valid()))
        kept = table.take(pa.array(where))
        if not pixels:
            kept = kept.drop_columns(["pixels"])
        for i, row in zip(where, kept.to_pylist(), strict=True):
            yield {**row, "row": start + int(i), "outlier": bool(flags[start + i])}
        start += table.num_rows


def _rank(row: dict[str, Any]) -> tuple[float, float, int]:
    """What rows are in the order of: the least usual first."""
    return row["p_value"], -row["score"], row["row"]


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], schema=SCHEMA)


def _explain(rows: list[dict[str, Any]], images: Pixels, detector: Scorer, root: Path) -> None:
    scores = detector.score(images)
    maps = _place_maps(rows, images, detector) if has_places(detector) else _surprise_maps(images, detector)
    neighbours = nearest(images, root / "data" / "prepared")
    for i, row in enumerate(rows):
        row["why"] = detector.explain(scores, i)
        row["map"] = maps[i] if maps else None
        row["neighbours"] = [picture(image) for image in neighbours[i]] if neighbours is not None else None


def _surprise_maps(images: Pixels, detector: Scorer) -> list[bytes]:
    """A coloured PNG for each image; none for a detector without an exact density."""
    try:
        return [heat_map(surprise) for surprise in detector.surprise_map(images)]
    except ModelError:
        return []


def _place_maps(rows: list[dict[str, Any]], images: Pixels, detector: Any) -> list[bytes]:
    """Fill in the p-values of the places; return coloured pictures (PNG): black where p is 1, bright where lowest."""
    count = len(detector.place_maxima)
    p = detector.place_p_values(images)
    for row, places in zip(rows, p, strict=True):
        row["place_p"], row["place_images"] = places.tolist(), count
        row["photo"] = row["photo"] or row["picture"]
    return [picture(image) for image in pictures.heat(strength(p, count), 1.0)]


def nearest(images: Pixels, data: Path) -> Pixels | None:
    """The training images (N, K, C, H, W) nearest to each of `images` in pixel values, nearest first; K is NEIGHBOURS.

    Large images are compared at 32 pixels a side. None when this machine has no prepared data of the images' shape.
    """
    try:
        info, train = read_info(data), open_split(data, "train").images
    except DataError:
        return None
    if (info.channels, *height_width(info.size)) != images.shape[1:] or len(train) == 0:
        return None
    size = reading_size(None, info.size)
    small, smaller = at_size(train, size), resized(images, size)
    flat = smaller.reshape(len(images), -1).astype(np.float32)
    best = np.full((len(images), NEIGHBOURS), np.inf)
    index = np.zeros((len(images), NEIGHBOURS), dtype=np.int64)
    step = max(1, (32 << 20) // (4 * flat.shape[1]))  # 32 MiB of training images at a time
    for start in range(0, len(train), step):
        part = np.asarray(small[start : start + step]).reshape(-1, flat.shape[1]).astype(np.float32)
        # |a - b|^2 less |a|^2, which is the same for all b: it orders them alike
        distance = (part**2).sum(1)[None] - 2.0 * flat @ part.T
        both = np.concatenate([best, distance], axis=1)
        numbers = np.concatenate([index, np.broadcast_to(np.arange(start, start + len(part)), distance.shape)], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :NEIGHBOURS]
        best, index = np.take_along_axis(both, order, 1), np.take_along_axis(numbers, order, 1)
    found = min(NEIGHBOURS, len(train))
    return np.asarray(train[index[:, :found].reshape(-1)]).reshape(len(images), found, *images.shape[1:])


def contact_sheet(folder: Path, most: int = 24, columns: int = 6, side: int = 84) -> bytes | None:
    """One PNG of a batch's least usual images, worst first, flagged ones framed in red; None where there are none."""
    first = next(pq.ParquetFile(folder / GALLERY).iter_batches(most, columns=["picture", "outlier"]), None)
    rows = [row for row in first.to_pylist() if row["picture"]] if first is not None else []
    if not rows:
        return None
    cell = side + 12
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (min(columns, len(rows)) * cell, lines * cell), "white")
    for i, row in enumerate(rows):
        corner = (i % columns * cell, i // columns * cell)
        if row["outlier"]:
            sheet.paste("#c62828", (corner[0] + 3, corner[1] + 3, corner[0] + cell - 3, corner[1] + cell - 3))
        with Image.open(io.BytesIO(row["picture"]), formats=("PNG", "JPEG")) as drawn:
            shown = ImageOps.contain(drawn.convert("RGB"), (side, side), Image.Resampling.NEAREST)
        left, top = (side - shown.width) // 2, (side - shown.height) // 2
        sheet.paste(shown, (corner[0] + 6 + left, corner[1] + 6 + top))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def picture(image: Pixels, largest: int = LARGEST) -> bytes:
    """A (C, H, W) image as PNG, or as JPEG of `largest` pixels a side when it is larger."""
    if max(image.shape[1:]) <= largest:
        return png(image)
    drawn, file = as_pillow(image), io.BytesIO()
    drawn.thumbnail((largest, largest))
    drawn.save(file, "JPEG", quality=85)
    return file.getvalue()


def heat_map(surprise: NDArray[Any]) -> bytes:
    """A (H, W) map of nats as a coloured PNG: dark where the image is as expected, bright where it is not.

    Negative values (none for a discrete density) and values that are not finite are dark. Each map has its own scale.
    """
    values = np.nan_to_num(np.asarray(surprise, np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    return picture(pictures.heat(values[None], pictures.own_top(values))[0])
