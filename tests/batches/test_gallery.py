from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from densitywatch.batches import batch_report, gallery
from densitywatch.batches.gallery import heat_map, nearest, picture
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png


def test_the_nearest_training_images_are_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    train = rng.integers(0, 256, (50, 1, 6, 6), dtype=np.uint8)
    data = tmp_path / "prepared"
    data.mkdir()
    np.save(data / "train.npy", train)
    np.save(data / "train_labels.npy", np.zeros(50, np.int64))
    counts = {"train": 50, "validation": 0, "calibration": 0, "gate": 0, "test": 0}
    info = {"name": "x", "size": 6, "channels": 1, "class_names": [], "digest": "d", "counts": counts}
    (data / "dataset.json").write_text(json.dumps(info))
    images = np.concatenate([train[[7, 30]], rng.integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)])
    found = nearest(images, data)
    assert found is not None
    distance = ((images[:, None].astype(float) - train[None]) ** 2).sum((2, 3, 4))
    assert (found == train[np.argsort(distance, axis=1)[:, :3]]).all()
    assert (found[:2, 0] == train[[7, 30]]).all()
    assert nearest(images[:, :, :5, :5], data) is None
    assert nearest(images, tmp_path / "nowhere") is None


def test_pictures_are_exact_when_small_and_scaled_when_large() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    assert picture(image).startswith(b"\x89PNG")
    large = picture(np.zeros((3, 1000, 1000), np.uint8))
    assert large.startswith(b"\xff\xd8")
    assert len(large) < 20_000
    for values in (np.zeros((9, 9)), np.full((9, 9), np.nan), np.eye(9) * 1e30, -np.ones((9, 9))):
        assert heat_map(values).startswith(b"\x89PNG")


def test_the_gallery_holds_every_flagged_image_the_least_usual_first(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SHOWN", 15)
    monkeypatch.setattr(batch_report, "SHOWN", 15)
    fill(tmp_path / "batch", 20, bright=40)
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    rows = pq.read_table(tmp_path / "out" / "gallery.parquet").to_pylist()
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert sorted(row["row"] for row in rows) == list(np.flatnonzero(table.outlier))
    shown, rest = rows[:15], rows[15:]
    assert [row["path"] for row in shown] == [f"odd_{39 - i:04d}.png" for i in range(15)]
    assert all(row["why"] and row["map"] and row["picture"] for row in shown)
    assert all(row["picture"] and row["map"] is None and row["why"] is None for row in rest)
    assert "15 least usual of 40 flagged images" in (tmp_path / "out" / "report.html").read_text()


def test_of_a_batch_decided_in_parts_the_gallery_shows_the_flagged_images_before_less_usual_ones_of_other_parts(
    params: Params, tmp_path: Path
) -> None:
    detector = Brightness()
    detector.calibration = np.linspace(-200.0, 200.0, 999)
    batch = tmp_path / "batch"
    batch.mkdir()
    levels = [199, *[50] * 59, *[220] * 30, *[198] * 60, *[50] * 50]
    for number, level in enumerate(levels):
        (batch / f"{number:04d}.png").write_bytes(png(level, seed=number))
    score_source("batch", params, tmp_path, tmp_path / "out", detector, ScoreOptions(control="stream"))
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert not table.outlier[0]
    assert table.p_value[table.outlier].max() > table.p_value[0], "the first part asks for more"
    rows = pq.read_table(tmp_path / "out" / "gallery.parquet").to_pylist()
    assert sorted(row["row"] for row in rows) == list(np.flatnonzero(table.outlier))
    assert [row["p_value"] for row in rows] == sorted(table.p_value[table.outlier])
    assert all(row["why"] and row["map"] and row["picture"] for row in rows)
    assert (tmp_path / "out" / "report.html").is_file()
