"""The memory of `fetch`, `prepare`, `validate` and a batch's checks does not grow with the images."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.batches.checks import validate_batch
from densitywatch.data import dataset, folder, raw
from densitywatch.data import prepare as module
from densitywatch.data.decoding.images import Picture
from densitywatch.data.fetch import fetch
from densitywatch.data.groups import likeness
from densitywatch.data.prepare import prepare
from densitywatch.data.validation import expectations
from densitywatch.data.validation.validate import validate
from densitywatch.params import Params
from tests.data.conftest import MakeParams

SIZE = 8
FEW, MANY = 1500, 7500


def fetched(target: Path, count: int) -> None:
    """data/raw as `fetch` leaves it, but an image's file is its pixels."""
    target.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE * SIZE), dtype=np.uint8)
    names = [f"camera/{number:06d}.png" for number in range(count)]
    files = {"path": names, "bytes": [its.tobytes() for its in pixels]}
    pq.write_table(pa.table(files), target / "images.parquet", row_group_size=64, compression="none")
    entries = {"path": names, "row": range(count), "part": [""] * count, "label": ["a", "b", "c"] * (count // 3)}
    pq.write_table(pa.table({name: pa.array(column) for name, column in entries.items()}), target / "entries.parquet")
    (target / "rejected.json").write_text("[]")


def as_pixels(files: Sequence[bytes], **_: Any) -> list[Picture]:
    return [Picture(np.frombuffer(data, np.uint8).reshape(1, SIZE, SIZE), SIZE, SIZE, "L") for data in files]


def growth(run: Callable[[int], None]) -> float:
    """Bytes of peak memory that an image more takes."""
    peaks = []
    run(FEW)  # what it imports is no matter
    for count in (FEW, MANY):
        gc.collect()
        tracemalloc.start()
        run(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (MANY - FEW)


@pytest.mark.parametrize("group", [None, r"(\d\d)$"])
def test_prepare_takes_less_memory_for_an_image_more_than_its_digest(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    """Lists of rows took 450 bytes an image."""
    monkeypatch.setattr(raw, "decode_images", as_pixels)
    monkeypatch.setattr(raw, "MOST_LISTS", 1 << 10)  # room for the list of rejected files
    for place, name in ((raw, "BATCH"), (likeness, "BLOCK"), (module, "BLOCK"), (module, "ROWS")):
        monkeypatch.setattr(place, name, 256)  # blocks that both sizes fill
    params = make_params(source="folder", address="x", size=SIZE, group=group, calibration_time="later")
    for count in (FEW, MANY):
        fetched(tmp_path / f"{count}" / "data/raw", count)
    assert growth(lambda count: prepare(params, tmp_path / f"{count}")) < 64
    files = {path.name for path in (tmp_path / f"{MANY}" / "data/prepared").iterdir() if path.suffix != ".npy"}
    assert files == {"dataset.json", "manifest.parquet"}


def test_validate_takes_less_memory_for_an_image_more_than_its_digest(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table of pandas took 900 bytes an image."""
    monkeypatch.setattr(raw, "decode_images", as_pixels)
    monkeypatch.setattr(dataset, "MOST_LISTS", 1 << 14)  # room for dataset.json
    monkeypatch.setattr(expectations, "ROWS", 256)
    params = make_params(source="folder", address="x", size=SIZE, expectations={"min_images": 100})
    for count in (FEW, MANY):
        fetched(tmp_path / f"{count}" / "data/raw", count)
        prepare(params, tmp_path / f"{count}")
    assert growth(lambda count: validate(params, tmp_path / f"{count}")) < 64
    assert json.loads((tmp_path / f"{MANY}" / "metrics/data.json").read_text())["images"] == MANY


def test_the_checks_of_a_batch_take_less_memory_for_an_image_more_than_its_digest(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "ROWS", 256)
    for count in (FEW, MANY):
        (tmp_path / f"{count}").mkdir()
        columns = {
            "path": [f"{n}.png" for n in range(count)],
            "sha256": [f"{n:064x}" for n in range(count)],
            "status": ["scored"] * count,
            "reason": pa.array([None] * count, pa.string()),
            **{name: np.full(count, 0.5) for name in ("bits_per_dim", "score", "p_value")},
            "outlier": np.zeros(count, bool),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{count}" / "scores.parquet", row_group_size=256)
    assert growth(lambda count: _hold(tmp_path / f"{count}", count, make_params())) < 64


def _hold(folder: Path, count: int, params: Params) -> None:
    assert all(outcome.holds for outcome in validate_batch(folder, count, params))


def test_fetch_takes_less_memory_for_an_image_more_than_its_name(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of names and labels took 480 bytes an image."""
    monkeypatch.setattr(folder, "decode_images", as_pixels)
    monkeypatch.setattr(folder, "ROWS", 256)
    monkeypatch.setattr(folder, "ROW_GROUP", 1 << 12)
    for count in (FEW, MANY):
        top = tmp_path / f"{count}"
        top.mkdir()
        rows = [{"path": f"{n:06d}.png", "image": bytes(64), "label": f"{n % 3}"} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), top / "images.parquet", row_group_size=64)
    params = make_params(source="folder", address="images.parquet")
    assert growth(lambda count: fetch(params, tmp_path / f"{count}")) < 32
    assert {path.name for path in (tmp_path / f"{MANY}" / "data/raw").iterdir()} == {
        "images.parquet",
        "entries.parquet",
        "rejected.json",
    }
