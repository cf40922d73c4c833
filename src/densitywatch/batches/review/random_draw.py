"""Images of a batch drawn at random, for a person to judge next to the flagged ones.

Flagged images alone are no fair sample: each is there because it looked unusual. A random draw from all scored images,
judged whole, is one. What is fine in it may become calibration images, and what is an outlier in it and was not
flagged tells what the detector misses.

The draw is kept in drawn.parquet next to the results, with its pictures. It is the beginning of one fixed order of the
batch's scored images. So asking again gives the same images, and asking for more adds to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densitywatch.batches import publishing
from densitywatch.batches.damage import damage_as_error
from densitywatch.batches.gallery import picture
from densitywatch.batches.results_folder import DRAWN, SCORES
from densitywatch.batches.review.judging import summary_of
from densitywatch.batches.verdicts import Key, Verdict
from densitywatch.data.decoding.images import decode_picture
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.errors import DataError
from densitywatch.files import whole_file
from densitywatch.sizes import read_size

MOST = 1000
"""Images that are drawn at most: a person looks at each."""

SCHEMA = pa.schema([("row", pa.int64()), ("path", pa.string()), ("sha256", pa.string()), ("picture", pa.binary())])
_CONTENT = b"content"


def draw(folder: Path, count: int, root: Path, seed: int) -> list[Key]:
    """Draw until `count` images are drawn in all, or every scored one; returns all that are drawn, in their order.

    Reads the new ones' originals from the batch's source. Raises DataError when `count` is out of range, the results
    are gone, or the source no longer has an image as it was scored.
    """
    if not 1 <= count <= MOST:
        raise DataError(f"1 to {MOST} images can be drawn at random (asked: {count})")
    summary, kept = summary_of(folder), _read(folder)
    content, identity = str(summary["content"]), summary["identity"]
    before = [] if kept is None else kept.to_pylist()
    if len(before) >= count:
        return [(row["path"], row["sha256"]) for row in before]
    rows = before + [
        {"row": row, "path": path, "sha256": digest}
        for row, path, digest in _in_order(folder, count, content, seed, {row["row"] for row in before})
    ]
    _add_pictures(rows[len(before) :], identity, root)
    try:
        with publishing.held(folder):
            if summary_of(folder)["content"] != content:
                raise DataError(f"{folder}: the batch was scored anew meanwhile; start the review anew")
            now = _read(folder)
            if now is not None and now.num_rows >= len(rows):  # another draw was faster and no shorter
                return [(row["path"], row["sha256"]) for row in _without_pictures(now)]
            with whole_file(folder / DRAWN, new_folder=False) as temporary:
                table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_CONTENT: content}))
                pq.write_table(table, temporary)
    except FileNotFoundError:
        raise DataError(f"{folder}: the results of this batch are not there any more; start the review anew") from None
    return [(row["path"], row["sha256"]) for row in rows]


def drawn(folder: Path) -> list[Key]:
    """The drawn images in their order; none where nothing was drawn.

    A draw of other files than the batch has now counts for nothing.
    """
    table = _read(folder)
    rows = [] if table is None else _without_pictures(table)
    return list(dict.fromkeys((row["path"], row["sha256"]) for row in rows))  # an archive may hold a file twice


def drawn_rows(folder: Path) -> dict[Key, dict[str, Any]]:
    """The drawn images in their order, each with its picture, p_value and reason. Raises DataError for damage."""
    table = _read(folder)
    if table is None:
        return {}
    with damage_as_error(folder):
        scores = pq.read_table(folder / SCORES, columns=["p_value", "reason"]).take(table.column("row")).to_pylist()
    return {(row["path"], row["sha256"]): row | of for row, of in zip(table.to_pylist(), scores, strict=True)}


def fair_sample(folder: Path, verdicts: dict[Key, Verdict]) -> frozenset[str]:
    """sha256 of the drawn images, once each of them has a verdict; before that, of none.

    A part of the draw that a person chose is no random sample.
    """
    keys = drawn(folder)
    return frozenset(digest for _, digest in keys) if all(key in verdicts for key in keys) else frozenset()


def _read(folder: Path) -> pa.Table | None:
    """drawn.parquet; None where there is none, or one of other files. Raises DataError when it is damaged."""
    try:
        with damage_as_error(folder):
            if not (folder / DRAWN).exists():
                return None
            table = pq.read_table(folder / DRAWN, schema=SCHEMA)
    except DataError:
        raise DataError(f"{folder / DRAWN}: damaged; remove it and draw again, the verdicts stay") from None
    said = (pq.read_schema(folder / DRAWN).metadata or {}).get(_CONTENT, b"")
    return table if said.decode("utf-8", "replace") == summary_of(folder)["content"] else None


def _without_pictures(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.select(["path", "sha256"]).to_pylist()
    return rows


def _in_order(
    folder: Path, count: int, content: str, seed: int, before: Collection[int] = ()
) -> list[tuple[int, str, str]]:
    """The first of the batch's scored images in the order of the draw, up to `count` with those `before`: (row, path,
    sha256) of the others. What is left of a random order without `before`, whatever seed drew these, is one too.
    """
    with damage_as_error(folder):
        status = pq.read_table(folder / SCORES, columns=["status"]).column("status").to_numpy(zero_copy_only=False)
        # the order depends on the batch's contents and the seed alone, so a longer draw begins with the shorter one
        generator = np.random.default_rng([seed, int(hashlib.sha256(content.encode()).hexdigest()[:16], 16)])
        order = generator.permutation(np.flatnonzero(status == "scored"))
        chosen = order[~np.isin(order, list(before))][: max(0, count - len(before))]
        names = pq.read_table(folder / SCORES, columns=["path", "sha256"]).take(pa.array(chosen))
        paths, digests = (names.column(name).to_pylist() for name in ("path", "sha256"))
    return [(int(row), path, digest) for row, path, digest in zip(chosen, paths, digests, strict=True)]


def _add_pictures(rows: list[dict[str, Any]], identity: dict[str, Any], root: Path) -> None:
    """Put `picture` into every row, from the batch's source."""
    source = str(identity["source"])
    wanted = {(row["path"], row["sha256"]): row for row in rows}
    paths, missing = {path for path, _ in wanted}, set(wanted)
    where = str(root / local_path(source)) if is_local(source) else source
    shape = {
        "size": read_size(identity["size"]),
        "channels": identity["channels"],
        "resize": identity.get("resize", "crop"),
    }
    for entry in entries(where, follow_links=bool(identity.get("follow_links"))) if missing else ():
        if entry.path not in paths:
            continue
        try:
            data = entry.read()
            key = (entry.path, hashlib.sha256(data).hexdigest())
            if key in missing:
                wanted[key]["picture"] = picture(decode_picture(data, **shape).pixels)
        except DataError:
            continue
        missing.discard(key)
        if not missing:
            break
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of the {len(wanted)} images drawn at random are not there any more as they were"
            " scored, so nothing was drawn; bring them back or score the batch again"
        )
