"""`prepare`: from data/raw to an array and labels for each split, one manifest row an image, and dataset.json.

The images are decoded, grouped (data/groups) and put into splits (splits.py). Pixels and what is known of each
image are on disk meanwhile (image_table.py), so memory hardly grows with the images.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from densitywatch.arrays import Numbers, Pixels
from densitywatch.data.accepted import accepted_line, judged_counts, with_accepted
from densitywatch.data.dataset import SPLITS
from densitywatch.data.decoding.images import Picture
from densitywatch.data.fetch import RAW
from densitywatch.data.groups.choose import Grouping, grouped, put_in_order
from densitywatch.data.groups.likeness import Looks
from densitywatch.data.groups.rules import taken
from densitywatch.data.image_table import Image, Table, add_images, image_table, one_value
from densitywatch.data.inputs.joined import short_name
from densitywatch.data.raw import Raw, RawImage, open_raw
from densitywatch.data.reading import PART, images_within
from densitywatch.data.splits import assign, dropped_line, hash_of
from densitywatch.errors import DataError
from densitywatch.files import whole_folder
from densitywatch.params import DataParams, Params
from densitywatch.progress import say, track
from densitywatch.sizes import for_json, height_width

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PREPARED = Path("data/prepared")
BLOCK = 1024
ROWS = 4096
"""Rows of the manifest that are Python objects at a time."""
ROW_GROUP = 24 * ROWS
"""Rows of the manifest that are in memory before they are written."""
MUCH = 0.3
"""The share of an image that is not cut away without a word."""


def prepare(params: Params, root: Path) -> None:
    """Write `root`/data/prepared, whole or not at all. In memory are a block of pixels and some 30 bytes an image.

    Raises DataError when nothing was fetched, or too little of it is usable to fill the five splits.
    """
    data = params.data
    raw = with_accepted(open_raw(data, root / RAW), data, root)
    shape = (data.channels, *height_width(data.size))
    with whole_folder(root / PREPARED) as folder, image_table(folder / "images.sqlite") as table:
        table.executemany(
            "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?)", ((n, *its) for n, its in enumerate(raw.images()))
        )
        if data.limit is not None:
            choose(table, data.limit, params.seed)
        scratch = folder / "scratch"
        rejected = [*raw.rejected, *_decode_all(raw, table, scratch, shape, looks=data.source == "folder")]
        groups = _group(table, data)
        dropped = assign(table, data, params.seed, by_groups=groups.rule is not None)
        digest = _write_splits(folder, scratch, table, shape, grouped=groups.rule is not None)
        scratch.unlink()
        _write_manifest(folder / "manifest.parquet", table)
        counted = dict(table.execute("SELECT split, count(*) FROM placed GROUP BY split").fetchall())
        counts = {name: counted[name] for name in SPLITS}
        facts = {
            "name": dataset_name(data),
            "size": for_json(data.size),
            "channels": data.channels,
            "class_names": list(raw.class_names),
            "digest": digest,
            "counts": counts,
            "groups": _facts_of(groups, table),
            "seed": params.seed,
            "source_images": raw.count,
            "dropped": dropped,
            "rejected": rejected,
        }
        if judged := judged_counts(table):
            facts["judged"] = judged
        (folder / "dataset.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = list(_lines(groups, table, data))
    say(f"prepared {', '.join(f'{count:,} {name}' for name, count in counts.items())} images in {PREPARED}")
    for line in lines:
        say(line)
    if dropped:
        say(f"{dropped_line(dropped)} and were left out: see {PREPARED}/dataset.json")
    if rejected:
        first = f"the first is {rejected[0]['path']!r}: {rejected[0]['reason']}"
        say(f"files not usable or left out: {len(rejected):,}, all listed in {PREPARED}/dataset.json; {first}")


def _lines(groups: Grouping, table: Table, data: DataParams) -> Iterator[str]:
    """What the user is told of the groups, of accepted images and of what is cut away."""
    if data.group is not None:
        yield groups.words
    if groups.warning:
        yield f"warning: {groups.warning}"
    if groups.rule is not None:
        yield _calibration_line(table)
    if (line := accepted_line(table)) is not None:
        yield line
    if (line := cut_away_line(table, data)) is not None:
        yield f"warning: {line}"


def dataset_name(data: DataParams) -> str:
    """The source, or for a folder the last part of its address; those of several are joined by `-and-`."""
    return "-and-".join(filter(None, map(short_name, data.addresses))) or data.source


def choose(table: Table, limit: int, seed: int) -> None:
    """Leave at most `limit` images of each part in the table `found`: the labels take turns, chosen by hash."""
    table.create_function("hash_of", 1, lambda text: hash_of(seed, text), deterministic=True)
    table.execute(
        """DELETE FROM found WHERE number NOT IN (
            SELECT number FROM (
                SELECT number, row_number() OVER (PARTITION BY part ORDER BY turn, label, number) AS rank FROM (
                    SELECT number, part, label,
                        row_number() OVER (PARTITION BY part, label ORDER BY hash_of(path), number) AS turn
                    FROM found
                )
            ) WHERE rank <= ?
        )""",
        (limit,),
    )


def _group(table: Table, data: DataParams) -> Grouping:
    if data.source != "folder":
        return Grouping(data.group, None, "A built-in source has no groups.")
    groups = grouped(data.group, table)
    if data.calibration_time == "later":
        put_in_order(table, groups.rule)
    return groups


def _facts_of(groups: Grouping, table: Table) -> dict[str, Any]:
    """What dataset.json says of the groups; `counts`: groups by split, where a rule is in force."""
    counts: dict[str, int] = {}
    largest = 1
    if groups.rule is not None:
        counted = dict(table.execute("SELECT split, count(DISTINCT set_number) FROM placed GROUP BY split").fetchall())
        counts = {name: counted[name] for name in SPLITS}
        largest = one_value(table, "SELECT max(size) FROM (SELECT count(*) AS size FROM placed GROUP BY set_number)")
    return {
        "setting": groups.setting,
        "rule": groups.rule,
        "found": groups.words,
        "warning": groups.warning,
        "counts": counts,
        "largest": largest,
    }


def _calibration_line(table: Table) -> str:
    count = one_value(table, "SELECT count(DISTINCT set_number) FROM placed WHERE split = 'calibration'")
    return f"calibration counts {count:,} groups, lone images included: no p-value is below 1 / {count + 1:,}"


def cut_away_line(table: Table, data: DataParams) -> str | None:
    """One sentence where `resize: crop` cuts away MUCH of the images or more; None elsewhere."""
    if data.resize != "crop":
        return None
    height, width = height_width(data.size)
    kept = images = 0.0
    for wide, high, number in table.execute("SELECT width, height, count(*) FROM image GROUP BY width, height"):
        # the largest part of the wanted shape is kept
        part = min(wide, high * width / height) * min(high, wide * height / width)
        kept, images = kept + number * part / (wide * high), images + number
    share = 1.0 - kept / images
    if share < MUCH:
        return None
    sides = (_numbers(table, f"SELECT {side} FROM image") for side in ("height", "width"))  # noqa: S608 - two words
    shape = [round(float(np.median(side))) for side in sides]
    return (
        f"data.resize: crop cuts {share:.0%} of the images away on average, at their edges; set stretch or pad, or a"
        f" data.size of their shape, as {shape}"
    )


def _decode_all(
    raw: Raw, table: Table, scratch: Path, shape: tuple[int, int, int], *, looks: bool
) -> list[dict[str, str]]:
    """Decode every image of `found` into the scratch file, and the tables `image` and, where asked for, `look`.

    Returns path and reason of those that are not usable.
    """
    rejected: list[dict[str, str]] = []
    block: list[tuple[RawImage, Picture]] = []
    written = 0
    chosen = _numbers(table, "SELECT number FROM found ORDER BY number")
    rows = table.execute("SELECT path, part, label, group_name, source FROM found ORDER BY number")
    pictures = zip(map(RawImage._make, rows), raw.read(chosen), strict=True)
    # ordinary writes: on a full disk they raise an error, and a memory-mapped array would kill the process
    with scratch.open("wb") as file:
        for image, picture in track(pictures, "decoding images", len(chosen)):
            if isinstance(picture, DataError):
                rejected.append({"path": image.path, "reason": str(picture)})
                continue
            block.append((image, picture))
            if len(block) == block_of(shape):
                written = _flush(file, table, block, written, looks=looks)
        if block:
            written = _flush(file, table, block, written, looks=looks)
    if not written:
        raise DataError("no usable image was fetched; look at data/raw/rejected.json and correct data.address")
    return rejected


def _flush(file: BinaryIO, table: Table, block: list[tuple[RawImage, Picture]], written: int, *, looks: bool) -> int:
    """Write a block of images and what is known of them; returns how many are written by now."""
    images = np.stack([picture.pixels for _, picture in block])
    flat = images.reshape(len(images), -1)
    means = flat.mean(axis=1, dtype=np.float64)
    # within each channel, so that an image of one colour has a deviation of 0
    deviations = np.sqrt(images.var(axis=(2, 3), dtype=np.float64).mean(axis=1))
    rows: list[Image] = []
    for (image, seen), mean, std, low, high in zip(
        block, means, deviations, flat.min(axis=1), flat.max(axis=1), strict=True
    ):
        sha256 = hashlib.sha256(seen.pixels.data).hexdigest()
        known = (*image, sha256, seen.width, seen.height, seen.mode, taken(seen.taken))
        rows.append(Image(written + len(rows), *known, float(mean), float(std), int(low), int(high)))
    add_images(table, rows)
    if looks:
        Looks.of(images).write(table, written)
    file.write(images.data)
    block.clear()
    return written + len(images)


def _write_splits(folder: Path, scratch: Path, table: Table, shape: tuple[int, int, int], *, grouped: bool) -> str:
    """The .npy files of every split, gathered from the scratch file; returns the digest of all of them.

    `grouped`: write the number of each image's group too. Groups are numbered as they appear.
    """
    if grouped:
        table.execute("CREATE TABLE group_number (set_number INTEGER PRIMARY KEY, number INTEGER)")
        table.execute(
            """INSERT INTO group_number SELECT set_number, row_number() OVER (ORDER BY min(place)) - 1
            FROM placed GROUP BY set_number"""
        )
    digest = hashlib.sha256()
    for name in SPLITS:
        rows = _numbers(table, "SELECT number FROM placed WHERE split = ? ORDER BY place", name)
        digest.update(f"{name} {len(rows)} {shape}".encode())
        with (folder / f"{name}.npy").open("wb") as file, scratch.open("rb", buffering=0) as pixels:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
            np.lib.format.write_array_header_2_0(file, header)
            for start in range(0, len(rows), block_of(shape)):
                images = _read(pixels, rows[start : start + block_of(shape)], shape)
                digest.update(images.data)
                file.write(images.data)
        labels = _numbers(table, "SELECT label FROM placed WHERE split = ? ORDER BY place", name)
        digest.update(labels.data)
        np.save(folder / f"{name}_labels.npy", labels)
        if grouped:
            groups = _numbers(
                table,
                """SELECT group_number.number FROM placed JOIN group_number USING (set_number)
                WHERE split = ? ORDER BY place""",
                name,
            )
            digest.update(groups.data)
            np.save(folder / f"{name}_groups.npy", groups)
    return digest.hexdigest()


def _numbers(table: Table, query: str, *parameters: object) -> Numbers:
    """The one column of a query."""
    return np.fromiter((number for (number,) in table.execute(query, parameters)), dtype=np.int64)


def _read(pixels: FileIO, rows: Numbers, shape: tuple[int, int, int]) -> Pixels:
    """Images of the scratch file, (N, C, H, W). Ordinary reads: pages of a mapped file count as memory."""
    images = np.empty((len(rows), *shape), dtype=np.uint8)
    for image, row in zip(images, rows.tolist(), strict=True):
        pixels.seek(row * image.nbytes)
        pixels.readinto(image.data)
    return images


def block_of(shape: tuple[int, ...]) -> int:
    """Number of images that are written together: BLOCK, fewer of large ones."""
    return images_within(BLOCK, int(np.prod(shape)), PART)


def _write_manifest(path: Path, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, text = pa.int64(), pa.string()
    kinds = {"path": text, "split": text, "row": whole, "label": whole, "group": text, "width": whole, "height": whole}
    kinds |= {"mode": text, "mean": pa.float64(), "std": pa.float64(), "min": whole, "max": whole, "sha256": text}
    schema = pa.schema(list(kinds.items()))
    rows = table.execute(
        """SELECT placed.path, split, place - first, placed.label, placed.group_name,
            width, height, mode, mean, std, low, high, sha256
        FROM placed CROSS JOIN image USING (number)
        CROSS JOIN (SELECT split, min(place) AS first FROM placed GROUP BY split) USING (split) ORDER BY place"""
    )
    batches = _batches(rows, schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while _write_group(writer, batches, schema):
            pa.default_memory_pool().release_unused()  # or each group would be laid next to the one before


def _write_group(writer: pq.ParquetWriter, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write the next row group; returns the number of its rows."""
    import pyarrow as pa

    group = pa.Table.from_batches(islice(batches, ROW_GROUP // ROWS), schema).combine_chunks()
    if len(group):
        writer.write_table(group, ROW_GROUP)
    return len(group)


def _batches(rows: sqlite3.Cursor, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """ROWS rows of the manifest at a time."""
    import pyarrow as pa

    while found := rows.fetchmany(ROWS):
        yield pa.record_batch([list(column) for column in zip(*found, strict=True)], schema=schema)
