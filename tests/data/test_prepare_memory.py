"""The memory of `prepare` does not grow with the images: what is known of them lies on disk."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.data import prepare as module
from densitywatch.data import raw
from densitywatch.data.decoding.images import Picture
from densitywatch.data.groups import likeness
from densitywatch.data.prepare import prepare
from tests.data.conftest import MakeParams

SIZE = 8
FEW, MANY = 1500, 7500


def fetched(folder: Path, count: int) -> None:
    """data/raw as `fetch` leaves it, but an image's file is its pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE * SIZE), dtype=np.uint8)
    names = [f"camera/{number:06d}.png" for number in range(count)]
    files = {"path": names, "bytes": [its.tobytes() for its in pixels]}
    pq.write_table(pa.table(files), folder / "images.parquet", row_group_size=64, compression="none")
    entries = {"path": names, "row": range(count), "part": [""] * count, "label": ["a", "b", "c"] * (count // 3)}
    pq.write_table(pa.table({name: pa.array(column) for name, column in entries.items()}), folder / "entries.parquet")
    (folder / "rejected.json").write_text("[]")


def as_pixels(files: Sequence[bytes], **_: Any) -> list[Picture]:
    return [Picture(np.frombuffer(data, np.uint8).reshape(1, SIZE, SIZE), SIZE, SIZE, "L") for data in files]


@pytest.mark.parametrize("group", [None, r"(\d\d)$"])
def test_an_image_more_takes_less_memory_than_its_name_and_digest(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    """Lists of rows took 450 bytes an image."""
    monkeypatch.setattr(raw, "decode_images", as_pixels)
    monkeypatch.setattr(raw, "MOST_LISTS", 1 << 10)  # room for the list of rejected files
    for place, name in ((raw, "BATCH"), (likeness, "BLOCK"), (module, "BLOCK"), (module, "ROWS")):
        monkeypatch.setattr(place, name, 256)  # blocks that both sizes fill
    peaks = []
    for count in (FEW, FEW, MANY):  # what the first one imports is no matter
        root = tmp_path / f"{len(peaks)}"
        fetched(root / "data/raw", count)
        params = make_params(source="folder", address="x", size=SIZE, group=group, calibration_time="later")
        tracemalloc.start()
        prepare(params, root)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        names = sorted(path.name for path in (root / "data/prepared").glob("*.*") if path.suffix != ".npy")
        assert names == ["dataset.json", "manifest.parquet"]
    assert (peaks[2] - peaks[1]) / (MANY - FEW) < 80
