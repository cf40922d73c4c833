"""What a batch is compared with: some of the latest batches, and some of their images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.arrays import Floats
from densitywatch.batches import past_batches
from densitywatch.batches.past_batches import BATCHES, IMAGES, LOOKED_AT, drift_from_past
from densitywatch.batches.results_folder import SCORES, SUMMARY
from densitywatch.batches.score_batch import score_source
from densitywatch.detector import conformal
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


@pytest.fixture
def batch(params: Params, tmp_path: Path) -> Path:
    """The results of a batch that was scored."""
    fill(tmp_path / "batch", 5)
    return Path(score_source("batch", params, tmp_path, None, Brightness())["folder"])


def detector_of(batch: Path) -> str:
    return str(json.loads((batch / SUMMARY).read_text())["identity"]["detector"])


def put_before(batch: Path, number: int, *, alarm: bool, since: int = 0) -> None:
    """Copies of a batch next to it, each older than the one before it; `since`: the number of the first."""
    summary = json.loads((batch / SUMMARY).read_text()) | {"drift_alarm": alarm}
    for age in range(since, since + number):
        folder = batch.with_name(f"before-{age}")
        folder.mkdir()
        shutil.copy(batch / SCORES, folder)
        (folder / SUMMARY).write_text(json.dumps(summary))
        os.utime(folder / SUMMARY, (10**9 - age, 10**9 - age))


def test_under_an_alarm_only_the_latest_summaries_are_opened(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_before(batch, LOOKED_AT + 30, alarm=True)
    opened = []
    read = past_batches.read_summary
    monkeypatch.setattr(past_batches, "read_summary", lambda folder: opened.append(folder) or read(folder))
    assert drift_from_past(batch, detector_of(batch))["past_batches"] == 0
    assert len(opened) == LOOKED_AT


def test_batches_before_an_alarm_are_compared_with_as_far_as_it_is_looked(batch: Path) -> None:
    put_before(batch, LOOKED_AT - 3, alarm=True)
    put_before(batch, 30, alarm=False, since=LOOKED_AT - 3)
    assert drift_from_past(batch, detector_of(batch))["past_batches"] == 3
    for age in range(LOOKED_AT - 3):
        shutil.rmtree(batch.with_name(f"before-{age}"))
    assert drift_from_past(batch, detector_of(batch))["past_batches"] == BATCHES


def test_no_more_images_of_a_past_batch_count_than_it_says(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_before(batch, 1, alarm=False)
    compared: list[Floats] = []
    drift = conformal.drift
    monkeypatch.setattr(conformal, "drift", lambda ours, past: compared.append(past) or drift(ours, past))
    for images, taken in ((IMAGES - 1, IMAGES - 1), (IMAGES, IMAGES), (2 * IMAGES - 1, IMAGES), (2 * IMAGES + 1, 1334)):
        p = np.arange(1, images + 1) / images
        pq.write_table(pa.table({"p_value": p}), batch.with_name("before-0") / SCORES)
        drift_from_past(batch, detector_of(batch))
        assert len(compared.pop()) == taken
