"""`prepare`: from data/raw to an array and labels for each split, one manifest row an image, and dataset.json.

Nothing is drawn from a random generator: the place of an image follows from a hash of the seed and its pixels. So
neither the order nor the names of the files matter. Images with the same pixels stay in one split. Where the source has
parts, an image that is in several of them stays in the test part, or else in the validation part, since published
figures are about the test part; its copies elsewhere are left out and listed in dataset.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from densitywatch.data.dataset import SPLITS, SplitName
from densitywatch.data.fetch import RAW
from densitywatch.data.inputs.source import without_secrets
from densitywatch.data.raw import Raw, RawImage, open_raw
from densitywatch.data.reading import PART, images_within
from densitywatch.data.training_only import add_to_training, set_apart
from densitywatch.errors import DataError
from densitywatch.files import whole_folder
from densitywatch.params import DataParams, Params
from densitywatch.progress import say, track

PREPARED = Path("data/prepared")
BLOCK = 1024


@dataclass
class Row:
    """One manifest row; `source` is its row in the scratch file of decoded pixels."""

    image: RawImage
    source: int
    width: int
    height: int
    mode: str
    sha256: str
    mean: float = 0.0
    std: float = 0.0
    min: int = 0
    max: int = 0


def prepare(params: Params, root: Path) -> None:
    """Write `root`/data/prepared, whole or not at all. The memory used does not grow with the number of images.

    Raises DataError when nothing was fetched, or too little of it is usable to fill the five splits.
    """
    raw = open_raw(params.data, root / RAW)
    chosen = choose(raw.images, params.data.limit, params.seed)
    shape = (params.data.channels, params.data.size, params.data.size)
    with whole_folder(root / PREPARED) as folder:
        scratch = folder / "scratch"
        rows, rejected = _decode_all(raw, chosen, scratch, shape)
        rejected = [*raw.rejected, *rejected]
        splits, dropped = assign(rows, params.data, params.seed)
        digest = _write_splits(folder, scratch, splits, shape)
        scratch.unlink()
        _write_manifest(folder / "manifest.parquet", splits)
        counts = {name: len(splits[name]) for name in SPLITS}
        facts = {
            "name": dataset_name(params.data),
            "size": params.data.size,
            "channels": params.data.channels,
            "class_names": list(raw.class_names),
            "digest": digest,
            "counts": counts,
            "seed": params.seed,
            "source_images": len(raw.images),
            "dropped": dropped,
            "rejected": rejected,
        }
        (folder / "dataset.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"prepared {', '.join(f'{count:,} {name}' for name, count in counts.items())} images in {PREPARED}")
    if dropped:
        say(f"{dropped_line(dropped)} and were left out: see {PREPARED}/dataset.json")
    if rejected:
        first = f"the first is {rejected[0]['path']!r}: {rejected[0]['reason']}"
        say(f"files not usable or left out: {len(rejected):,}, all listed in {PREPARED}/dataset.json; {first}")


def dataset_name(data: DataParams) -> str:
    """The source, or for a folder the last part of its address in letters, digits, dots, dashes and underscores."""
    last = without_secrets(data.address or "").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "_", last).strip("._") or data.source


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
            indices.sort(key=lambda index: _hash(seed, images[index].path))
            turns += [(turn, label, index) for turn, index in enumerate(indices)]
        chosen += [index for _, _, index in sorted(turns)[:limit]]
    return sorted(chosen)


def assign(rows: Sequence[Row], data: DataParams, seed: int) -> tuple[dict[SplitName, list[Row]], list[dict[str, str]]]:
    """Every row in one split, or among the dropped (path, reason).

    A split's order mixes the labels evenly, so its first rows are a fair sample of the whole. Images that are for
    training alone (training_only.py) count in no share.
    """
    rows, marked = set_apart(rows)
    own: dict[SplitName, list[Row]] = {"test": [], "validation": []}
    kept: dict[str, str] = {}
    dropped: list[dict[str, str]] = []
    for name, part in own.items():
        members = [row for row in rows if row.image.part == name]
        dropped += [_dropped(row, kept) for row in members if row.sha256 in kept]
        part += [row for row in members if row.sha256 not in kept]
        kept |= {row.sha256: f"{row.image.path} of the {name} part" for row in reversed(part)}
    others = [row for row in rows if row.image.part not in own]
    dropped += [_dropped(row, kept) for row in others if row.sha256 in kept]
    rest = _mixed(_together([row for row in others if row.sha256 not in kept]), seed)
    shares: dict[SplitName, float] = {
        "test": data.test, "validation": data.validation, "calibration": data.calibration, "gate": data.gate
    }  # fmt: skip
    wanted = [(name, share) for name, share in shares.items() if not own.get(name)]
    splits: dict[SplitName, list[Row]] = {name: list(own.get(name, ())) for name in SPLITS}
    total, position = sum(len(group) for group in rest), 0
    for name, share in wanted:
        target = max(1, round(share * total))
        while position < len(rest) and len(splits[name]) < target:
            splits[name] += rest[position]
            position += 1
    splits["train"] = [row for group in rest[position:] for row in group]
    dropped += add_to_training(marked, splits["train"], {name: splits[name] for name in SPLITS if name != "train"})
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"{len(rows)} usable images ({len(rest)} that differ) are too few: "
            f"none is left for {', '.join(empty)}; add images"
        )
    return {name: [row for (row,) in _mixed([[row] for row in split], seed)] for name, split in splits.items()}, dropped


def _dropped(row: Row, kept: dict[str, str]) -> dict[str, str]:
    return {"path": row.image.path, "reason": f"the same pixels as {kept[row.sha256]}"}


def dropped_line(dropped: Sequence[dict[str, str]]) -> str:
    """One clause: how many images are also in the test part, and in any other."""
    parts = Counter(item["reason"].rpartition(" of the ")[2] for item in dropped)
    return " and ".join(f"{count} images are also in the {part}" for part, count in parts.items())


def _mixed(groups: Sequence[list[Row]], seed: int) -> list[list[Row]]:
    """The groups in an order in which every stretch has the labels in their overall shares.

    The order follows from the pixels (and, between equal images, from the paths), not from the order given.
    """
    by_label: dict[int, list[tuple[tuple[str, str], list[Row]]]] = defaultdict(list)
    for group in groups:
        key = min((_hash(seed, row.sha256), row.image.path) for row in group)
        by_label[min(row.image.label for row in group)].append((key, group))
    placed = [
        ((turn + 0.5) / len(members), key, group)
        for members in by_label.values()
        for turn, (key, group) in enumerate(sorted(members, key=lambda member: member[0]))
    ]
    return [group for _, _, group in sorted(placed, key=lambda item: item[:2])]


def _together(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows joined by equal pixels or by an equal group of the source (union-find)."""
    parent = list(range(len(rows)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        for key in (row.sha256, f"group {row.image.group}") if row.image.group else (row.sha256,):
            parent[find(index)] = find(first.setdefault(key, index))
    groups: dict[int, list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[find(index)].append(row)
    return list(groups.values())


def _decode_all(
    raw: Raw, chosen: Sequence[int], scratch: Path, shape: tuple[int, int, int]
) -> tuple[list[Row], list[dict[str, str]]]:
    """Decode every chosen image into the scratch file; rows for the usable ones, path and reason for the rest."""
    rows: list[Row] = []
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
            rows.append(Row(image, len(rows), picture.width, picture.height, picture.mode, sha256))
            block.append(pixels)
            if len(block) == block_of(pixels.shape):
                _flush(file, block, rows)
        if block:
            _flush(file, block, rows)
    if not rows:
        raise DataError("no usable image was fetched; look at data/raw/rejected.json and correct data.address")
    return rows, rejected


def _flush(file: BinaryIO, block: list[npt.NDArray[np.uint8]], rows: list[Row]) -> None:
    """Write a block of images and fill in their statistics."""
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


def _write_splits(folder: Path, scratch: Path, splits: dict[SplitName, list[Row]], shape: tuple[int, int, int]) -> str:
    """The .npy files of every split, gathered from the scratch file; returns the digest of all of them."""
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
    }
    kinds = {"width": pa.int64(), "height": pa.int64(), "mode": pa.string(), "mean": pa.float64(), "std": pa.float64()}
    for column, kind in {**kinds, "min": pa.int64(), "max": pa.int64(), "sha256": pa.string()}.items():
        columns[column] = pa.array([getattr(row, column) for _, _, row in placed], kind)
    pq.write_table(pa.table(columns), path, compression="zstd")


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
