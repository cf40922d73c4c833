"""A batch in chunks: read, decoded and scored together, one small Parquet file each, so that a killed job goes on.

A chunk is params.detector.batch_size consecutive entries, fewer where pictures are large (CHUNK_BYTES). It is scored
as one piece and its file appears whole. A job that starts again reads and decodes every file, but scores only the
chunks that are missing or whose contents changed. Memory holds one chunk and a short read-ahead, whatever the size of
the batch.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from densitywatch.batches.photos import photo_again, photo_of
from densitywatch.batches.scorer import BatchScores, Scorer, has_places
from densitywatch.data.decoding.images import Picture, decode_picture
from densitywatch.data.inputs.entries import Entry, SourceUnreachable
from densitywatch.data.reading import images_within
from densitywatch.errors import DataError
from densitywatch.sizes import height_width, in_pixels
from densitywatch.text import one_line

Item = TypeVar("Item")

READERS = 4
READ_AHEAD = 32
CHUNK_BYTES = 256 << 20
"""Bytes of a chunk's images, at most; while they are put together they are in memory twice."""
WORST_OF_CHUNK = 12
"""Pictures kept of every chunk even when none may be flagged: the report shows the least usual images."""

RESULTS = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("bits_per_dim", pa.float64()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("label", pa.string()),
        ("label_probability", pa.float64()),
        ("label_p_value", pa.float64()),
    ]
)
PICTURE = pa.field("pixels", pa.binary())
OF_PIXELS = [
    PICTURE,
    pa.field("photo", pa.binary()),
    pa.field("brightness", pa.float64()),
    pa.field("sharpness", pa.float64()),
]
"""Columns of a chunk that are not published: kept images, as the detector sees them and for the report, and two means
over pixels of every decoded image."""
NO_SCORE = "the detector gives it no finite score"
PHOTOS_OF_CHUNK = 100
"""Pictures for the report that are kept of every chunk; the report shows as many in all."""


def _no_photo() -> None:
    return None


@dataclass(frozen=True)
class Loaded:
    """An entry after reading: an image that the detector takes, or the reason why there is none."""

    path: str
    sha256: str | None
    image: NDArray[np.uint8] | None
    reason: str | None
    """Why there is no image; or, with an image, what was changed to fit the detector."""
    original: tuple[int, int] | None = None
    """Width and height of the file's picture."""
    photo: Callable[[], bytes | None] = _no_photo
    """Gives the picture closer to its own resolution, where the report has a use for it."""


def files_in_chunk(most: int, detector: Scorer) -> int:
    """Files in a chunk: `most`, or fewer, so that their pixels take at most CHUNK_BYTES."""
    return images_within(most, detector.channels * math.prod(height_width(detector.size)), CHUNK_BYTES)


def load(entry: Entry, detector: Scorer) -> Loaded:
    """Read, hash and decode one entry; any error becomes its reason."""
    digest = None
    try:
        data = entry.read()
        digest = hashlib.sha256(data).hexdigest()
        seen = decode_picture(data, size=detector.size, channels=detector.channels, resize=detector.resize)  # type: ignore[arg-type]
        photo = _photo(entry, data, digest, seen, detector) if has_places(detector) else _no_photo
    except SourceUnreachable:
        raise
    except DataError as error:
        return Loaded(entry.path, digest, None, str(error))
    except Exception as error:  # an error that nobody foresaw must not cost the batch
        return Loaded(entry.path, digest, None, f"cannot be read ({one_line(error)})")
    changes = []
    if (seen.height, seen.width) != height_width(detector.size):
        changes.append(f"{seen.width} x {seen.height} pixels to {in_pixels(detector.size)} ({detector.resize})")
    wanted = "L" if detector.channels == 1 else "RGB"
    if seen.mode != wanted:
        changes.append(f"{seen.mode} to {'grey' if wanted == 'L' else 'RGB'}")
    changed = f"changed to fit: {', '.join(changes)}" if changes else None
    return Loaded(entry.path, digest, seen.pixels, changed, (seen.width, seen.height), photo)


def _photo(entry: Entry, data: bytes, digest: str, seen: Picture, detector: Scorer) -> Callable[[], bytes | None]:
    """What gives the report's picture of an entry: by reading it again, or made now where it can be read only once."""
    facts: dict[str, Any] = {"channels": detector.channels, "resize": detector.resize}
    if entry.independent:
        return partial(photo_again, entry, digest, seen, **facts)
    made = photo_of(data, seen, **facts)
    return lambda: made


def load_ahead(entries: Iterable[Entry], detector: Scorer) -> Iterator[Loaded]:
    """`load` for every entry, in order, a few ahead of the caller."""
    waiting: deque[Future[Loaded]] = deque()
    # decoding sets warning filters, which all threads share: this block restores them
    with warnings.catch_warnings(), ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            for entry in entries:
                if entry.independent:
                    waiting.append(pool.submit(load, entry, detector))
                else:
                    done: Future[Loaded] = Future()
                    done.set_result(load(entry, detector))
                    waiting.append(done)
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size`; the last may be shorter. No items give no list."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def score_chunk(chunk: list[Loaded], detector: Scorer) -> pa.Table:
    """One row for each entry (schema RESULTS). An image that gets no finite score is quarantined."""
    rows: list[dict[str, Any]] = [
        {"path": item.path, "sha256": item.sha256, "status": "quarantined", "reason": item.reason} for item in chunk
    ]
    where = [i for i, item in enumerate(chunk) if item.image is not None]
    if where:
        scores: BatchScores = detector.score(np.stack([image for item in chunk if (image := item.image) is not None]))
        for k, i in enumerate(where):
            if not (np.isfinite(scores.score[k]) and np.isfinite(scores.p_value[k])):
                rows[i]["reason"] = NO_SCORE
                continue
            rows[i] |= {
                "status": "scored",
                "bits_per_dim": _finite(scores.bits_per_dim[k]),
                "score": float(scores.score[k]),
                "p_value": float(scores.p_value[k]),
            }
            if scores.label is not None and scores.label_probability is not None:
                number = int(scores.label[k])
                known = 0 <= number < len(detector.class_names)
                rows[i]["label"] = detector.class_names[number] if known else None
                rows[i]["label_probability"] = _finite(scores.label_probability[k])
                if scores.label_p_value is not None:
                    rows[i]["label_p_value"] = _finite(scores.label_p_value[k])
    return pa.Table.from_pylist(rows, schema=RESULTS)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def fits(table: pa.Table, chunk: list[Loaded]) -> bool:
    """Whether an earlier chunk is of the same files, read the same way.

    A file that could not be read then and is an image now, as after a reader that died, does not fit.
    """
    if table.num_rows != len(chunk):
        return False
    before = zip(*(table.column(name).to_pylist() for name in ("path", "sha256", "status", "reason")), strict=True)
    for (path, digest, status, reason), item in zip(before, chunk, strict=True):
        unscored = status == "quarantined"
        if (path, digest) != (item.path, item.sha256) or (item.image is None and not unscored):
            return False
        if reason != (NO_SCORE if unscored and item.image is not None else item.reason):
            return False
    return True


def with_pictures(table: pa.Table, chunk: list[Loaded], threshold: float) -> pa.Table:
    """`table` with the columns OF_PIXELS.

    `pixels`: the decoded images that may be flagged, or shown as the least usual; `photo` of these the PHOTOS_OF_CHUNK
    least usual. `brightness`: the mean of an image's pixels, from 0 to 1. `sharpness`: the mean difference of
    neighbouring pixels, from 0 to 1.
    """
    p, score = (
        np.asarray(table.column(name).fill_null(np.inf).to_numpy(zero_copy_only=False)) for name in ("p_value", "score")
    )
    order = np.lexsort((np.arange(len(p)), -score, p))
    keep = {int(i) for i in order[:WORST_OF_CHUNK]} | {int(i) for i in np.flatnonzero(p <= threshold)}
    pixels = [
        item.image.tobytes() if i in keep and item.image is not None and np.isfinite(p[i]) else None
        for i, item in enumerate(chunk)
    ]
    photos = {int(i) for i in order[:PHOTOS_OF_CHUNK]} & keep
    values = (
        pixels,
        [item.photo() if i in photos and pixels[i] is not None else None for i, item in enumerate(chunk)],
        [None if item.image is None else float(item.image.mean()) / 255 for item in chunk],
        [None if item.image is None else sharpness(item.image) for item in chunk],
    )
    for field, value in zip(OF_PIXELS, values, strict=True):
        table = table.append_column(field, pa.array(value, field.type))
    return table


def sharpness(image: NDArray[np.uint8]) -> float:
    """The mean absolute difference of pixels next to each other in an image (C, H, W), from 0 to 1."""
    values = image.astype(np.int16)
    steps = [np.abs(np.diff(values, axis=axis)) for axis in (-1, -2)]
    return float(sum(int(step.sum()) for step in steps)) / (255 * max(1, sum(step.size for step in steps)))


def read_chunk(path: Path) -> pa.Table | None:
    """A chunk that an earlier job wrote; None when there is none that is whole."""
    try:
        table = pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException):
        return None
    ours = table.schema.names == [*RESULTS.names, *(field.name for field in OF_PIXELS)]
    ours = ours and all(table.schema.field(field.name).equals(field) for field in OF_PIXELS)
    return table if ours and is_whole(table) else None


def is_whole(table: pa.Table) -> bool:
    """Whether a table that was read back has the columns of RESULTS, and in every row a score or a reason for none."""
    if not all(name in table.column_names for name in RESULTS.names):
        return False
    if table.select(RESULTS.names).schema.types != RESULTS.types:
        return False
    try:
        table.validate(full=True)  # texts that are no UTF-8 are an error only when they are read
    except pa.ArrowInvalid:
        return False
    scored = np.asarray(pc.equal(table.column("status"), "scored").fill_null(False))
    others = np.asarray(pc.equal(table.column("status"), "quarantined").fill_null(False))
    score, p_value = (
        np.asarray(table.column(name).fill_null(np.nan).to_numpy(zero_copy_only=False)) for name in ("score", "p_value")
    )
    valid = np.isfinite(score) & (p_value > 0) & (p_value <= 1)
    reason = np.asarray(table.column("reason").is_valid())
    return bool((scored & valid | others & reason & np.isnan(p_value)).all())


def write_chunk(path: Path, table: pa.Table) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)


def chunk_file(work: Path, number: int) -> Path:
    """Where a scored chunk waits in the folder `work`."""
    return work / f"{number:08d}.parquet"


def chunk_table(
    chunk: list[Loaded],
    detector: Scorer,
    threshold: float,
    *,
    waiting: pa.Table | None,
    published: Callable[[], pa.Table | None],
) -> tuple[pa.Table | None, int]:
    """A chunk's scores and pictures, and the number of its files that were scored now.

    No table where `waiting`, which an earlier job left, is of the same files. `published` gives the chunk in results
    that were published before, or None.
    """
    if waiting is not None and fits(waiting, chunk):
        return None, 0
    before = published()
    if before is not None and fits(before, chunk):
        return with_pictures(before.select(RESULTS.names), chunk, threshold), 0
    return with_pictures(score_chunk(chunk, detector), chunk, threshold), len(chunk)


def score_in_chunks(
    entries: Iterable[Entry],
    detector: Scorer,
    work: Path,
    *,
    size: int,
    threshold: float,
    published: Callable[[int], pa.Table | None],
) -> Iterator[tuple[int, int]]:
    """Write work/NNNNNNNN.parquet for every chunk; yields (its files, those of them that were scored now).

    `threshold`: images with a p-value up to it may be flagged, so their pixels are kept. `published(number)` is the
    chunk in results that were published before, or None.
    """
    for number, chunk in enumerate(in_chunks(load_ahead(entries, detector), size)):
        path = chunk_file(work, number)
        table, scored = chunk_table(
            chunk, detector, threshold, waiting=read_chunk(path), published=partial(published, number)
        )
        if table is not None:
            write_chunk(path, table)
        yield len(chunk), scored
