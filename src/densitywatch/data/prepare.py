"""`prepare`: from data/raw to an array and labels for each split, one manifest row an image, and dataset.json.

The images are decoded, grouped (data/groups) and put into splits (splits.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from densitywatch.data.accepted import accepted_line, judged_counts, with_accepted
from densitywatch.data.dataset import SPLITS, SplitName
from densitywatch.data.fetch import RAW
from densitywatch.data.groups.choose import Grouping, grouped
from densitywatch.data.groups.likeness import Looks
from densitywatch.data.groups.rules import Known
from densitywatch.data.inputs.joined import short_name
from densitywatch.data.raw import Raw, RawImage, open_raw
from densitywatch.data.reading import PART, images_within
from densitywatch.data.splits import Row, assign, dropped_line, hash_of
from densitywatch.data.training_only import without_mark
from densitywatch.errors import DataError
from densitywatch.files import whole_folder
from densitywatch.params import DataParams, Params
from densitywatch.progress import say, track
from densitywatch.sizes import for_json, height_width

PREPARED = Path("data/prepared")
BLOCK = 1024
MUCH = 0.3
"""The share of an image that is not cut away without a word."""


def prepare(params: Params, root: Path) -> None:
    """Write `root`/data/prepared, whole or not at all. In memory are a block of pixels, and a row for each image.

    Raises DataError when nothing was fetched, or too little of it is usable to fill the five splits.
    """
    raw = with_accepted(open_raw(params.data, root / RAW), params.data, root)
    chosen = choose(raw.images, params.data.limit, params.seed)
    shape = (params.data.channels, *height_width(params.data.size))
    with whole_folder(root / PREPARED) as folder:
        scratch = folder / "scratch"
        rows, rejected, looks = _decode_all(raw, chosen, scratch, shape)
        rejected = [*raw.rejected, *rejected]
        groups = _group(rows, looks if params.data.source == "folder" else None, params.data.group)
        splits, dropped = assign(rows, params.data, params.seed, by_groups=groups.rule is not None)
        digest = _write_splits(folder, scratch, splits, shape, grouped=groups.rule is not None)
        scratch.unlink()
        _write_manifest(folder / "manifest.parquet", splits)
        counts = {name: len(splits[name]) for name in SPLITS}
        facts = {
            "name": dataset_name(params.data),
            "size": for_json(params.data.size),
            "channels": params.data.channels,
            "class_names": list(raw.class_names),
            "digest": digest,
            "counts": counts,
            "groups": _facts_of(groups, splits),
            "seed": params.seed,
            "source_images": len(raw.images),
            "dropped": dropped,
            "rejected": rejected,
        }
        if judged := judged_counts(splits):
            facts["judged"] = judged
        (folder / "dataset.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"prepared {', '.join(f'{count:,} {name}' for name, count in counts.items())} images in {PREPARED}")
    if params.data.group is not None:
        say(groups.words)
    if groups.warning:
        say(f"warning: {groups.warning}")
    if groups.rule is not None:
        say(_calibration_line(splits))
    if (line := accepted_line(splits)) is not None:
        say(line)
    if (line := cut_away_line(rows, params.data)) is not None:
        say(f"warning: {line}")
    if dropped:
        say(f"{dropped_line(dropped)} and were left out: see {PREPARED}/dataset.json")
    if rejected:
        first = f"the first is {rejected[0]['path']!r}: {rejected[0]['reason']}"
        say(f"files not usable or left out: {len(rejected):,}, all listed in {PREPARED}/dataset.json; {first}")


def dataset_name(data: DataParams) -> str:
    """The source, or for a folder the last part of its address; those of several are joined by `-and-`."""
    return "-and-".join(filter(None, map(short_name, data.addresses))) or data.source


def choose(images: Sequence[RawImage], limit: int | None, seed: int) -> list[int]:
    """Indices, ascending, of at most `limit` images of each part: the labels take turns, chosen by hash."""
    if limit is None:
        return list(range(len(images)))
    by_part: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, image in enumerate(images):
        by_part[image.part][image.label].append(index)
    chosen: list[int] = []
    for labels in by_part.values():
        turns = []
        for label, indices in labels.items():
            indices.sort(key=lambda index: hash_of(seed, images[index].path))
            turns += [(turn, label, index) for turn, index in enumerate(indices)]
        chosen += [index for _, _, index in sorted(turns)[:limit]]
    return sorted(chosen)


def _group(rows: Sequence[Row], looks: Looks | None, setting: str | None) -> Grouping:
    """The groups by data.group, written into the rows."""
    known = [Known(without_mark(row.image.path), row.image.source, row.image.label, row.taken) for row in rows]
    groups = grouped(setting, known, looks)
    for row, name, order in zip(rows, groups.names, groups.order, strict=True):
        row.group, row.order = name or row.group, order
    return groups


def _facts_of(groups: Grouping, splits: dict[SplitName, list[Row]]) -> dict[str, Any]:
    """What dataset.json says of the groups; `counts`: groups by split, where a rule is in force."""
    counts = {name: len({row.group for row in rows}) for name, rows in splits.items()}
    return {
        "setting": groups.setting,
        "rule": groups.rule,
        "found": groups.words,
        "warning": groups.warning,
        "counts": counts if groups.rule is not None else {},
        "largest": max(Counter(row.group for rows in splits.values() for row in rows).values()) if groups.rule else 1,
    }


def _calibration_line(splits: dict[SplitName, list[Row]]) -> str:
    count = len({row.group for row in splits["calibration"]})
    return f"calibration counts {count:,} groups, lone images included: no p-value is below 1 / {count + 1:,}"


def cut_away_line(rows: Sequence[Row], data: DataParams) -> str | None:
    """One sentence where `resize: crop` cuts away MUCH of the images or more; None elsewhere."""
    height, width = height_width(data.size)
    # the largest part of the wanted shape is kept
    kept = [min(row.width, row.height * width / height) * min(row.height, row.width * height / width) for row in rows]
    share = 1.0 - float(np.mean([part / (row.width * row.height) for part, row in zip(kept, rows, strict=True)]))
    if data.resize != "crop" or share < MUCH:
        return None
    shape = [round(float(np.median([getattr(row, side) for row in rows]))) for side in ("height", "width")]
    return (
        f"data.resize: crop cuts {share:.0%} of the images away on average, at their edges; set stretch or pad, or a"
        f" data.size of their shape, as {shape}"
    )


def _decode_all(
    raw: Raw, chosen: Sequence[int], scratch: Path, shape: tuple[int, int, int]
) -> tuple[list[Row], list[dict[str, str]], Looks]:
    """Decode every chosen image into the scratch file.

    Returns rows and looks of the usable ones, and path and reason of the rest.
    """
    rows: list[Row] = []
    looks: list[Looks] = []
    rejected: list[dict[str, str]] = []
    block: list[npt.NDArray[np.uint8]] = []
    # ordinary writes: on a full disk they raise an error, and a memory-mapped array would kill the process
    with scratch.open("wb") as file:
        for index, picture in track(zip(chosen, raw.read(chosen), strict=True), "decoding images", len(chosen)):
            image = raw.images[index]
            if isinstance(picture, DataError):
                rejected.append({"path": image.path, "reason": str(picture)})
                continue
            pixels = picture.pixels
            sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
            rows.append(Row(image, len(rows), picture.width, picture.height, picture.mode, sha256, taken=picture.taken))
            block.append(pixels)
            if len(block) == block_of(pixels.shape):
                looks.append(_flush(file, block, rows))
        if block:
            looks.append(_flush(file, block, rows))
    if not rows:
        raise DataError("no usable image was fetched; look at data/raw/rejected.json and correct data.address")
    return rows, rejected, Looks.joined(looks)


def _flush(file: BinaryIO, block: list[npt.NDArray[np.uint8]], rows: list[Row]) -> Looks:
    """Write a block of images and fill in their statistics; returns what is compared of them."""
    images = np.stack(block)
    flat = images.reshape(len(images), -1)
    means = flat.mean(axis=1, dtype=np.float64)
    # within each channel, so that an image of one colour has a deviation of 0
    deviations = np.sqrt(images.var(axis=(2, 3), dtype=np.float64).mean(axis=1))
    for row, mean, std, low, high in zip(
        rows[-len(block) :], means, deviations, flat.min(axis=1), flat.max(axis=1), strict=True
    ):
        row.mean, row.std, row.min, row.max = float(mean), float(std), int(low), int(high)
    file.write(images.data)
    block.clear()
    return Looks.of(images)


def _write_splits(
    folder: Path, scratch: Path, splits: dict[SplitName, list[Row]], shape: tuple[int, int, int], *, grouped: bool
) -> str:
    """The .npy files of every split, gathered from the scratch file; returns the digest of all of them.

    `grouped`: write the number of each image's group too.
    """
    numbers: dict[str, int] = {}
    total = scratch.stat().st_size // int(np.prod(shape))
    pixels = np.memmap(scratch, dtype=np.uint8, mode="r", shape=(total, *shape))
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"{name} {len(rows)} {shape}".encode())
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
            np.lib.format.write_array_header_2_0(file, header)
            for block in _blocks([row.source for row in rows], block_of(shape)):
                images = pixels[block]
                digest.update(images.data)
                file.write(images.data)
        labels = np.array([row.image.label for row in rows], dtype=np.int64)
        digest.update(labels.tobytes())
        np.save(folder / f"{name}_labels.npy", labels)
        if grouped:
            groups = np.array([numbers.setdefault(row.group, len(numbers)) for row in rows], dtype=np.int64)
            digest.update(groups.tobytes())
            np.save(folder / f"{name}_groups.npy", groups)
    return digest.hexdigest()


def block_of(shape: tuple[int, ...]) -> int:
    """Number of images that are written together: BLOCK, fewer of large ones."""
    return images_within(BLOCK, int(np.prod(shape)), PART)


def _blocks(values: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _write_manifest(path: Path, splits: dict[SplitName, list[Row]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    placed = [(name, number, row) for name, rows in splits.items() for number, row in enumerate(rows)]
    columns = {
        "path": pa.array([row.image.path for _, _, row in placed], pa.string()),
        "split": pa.array([name for name, _, _ in placed], pa.string()),
        "row": pa.array([number for _, number, _ in placed], pa.int64()),
        "label": pa.array([row.image.label for _, _, row in placed], pa.int64()),
        "group": pa.array([row.group for _, _, row in placed], pa.string()),
    }
    kinds = {"width": pa.int64(), "height": pa.int64(), "mode": pa.string(), "mean": pa.float64(), "std": pa.float64()}
    for column, kind in {**kinds, "min": pa.int64(), "max": pa.int64(), "sha256": pa.string()}.items():
        columns[column] = pa.array([getattr(row, column) for _, _, row in placed], kind)
    pq.write_table(pa.table(columns), path, compression="zstd")
