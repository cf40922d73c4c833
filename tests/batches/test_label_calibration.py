"""p-values of labels in a batch: from which calibration images, kept where, and what is said when there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from densitywatch.batches.label_calibration import LABEL_SCORES
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.evaluation.measures.labels import nats_by_label
from densitywatch.models import pixelcnn
from densitywatch.models.storage import load_model_folder, save_model
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill

DIGEST = "d" * 64
NAMES = ("shirt", "bag", "boot")
IMAGES = 130


class Calibrated(Brightness):
    """Made from the dataset DIGEST."""

    def __init__(self, digest: str = DIGEST) -> None:
        super().__init__()
        self.facts = {"data": {"digest": digest}}


Score = Callable[..., tuple[dict[str, Any], pd.DataFrame]]


@pytest.fixture
def score(params: Params, tmp_path: Path) -> Score:
    """Score one batch with a labelling model that was made from the dataset DIGEST; returns summary and rows."""
    prepared = tmp_path / "data" / "prepared"
    prepared.mkdir(parents=True)
    levels = np.random.default_rng(0).uniform(5, 95, IMAGES)
    images = np.broadcast_to(levels[:, None, None, None], (IMAGES, 1, 28, 28)).astype(np.uint8)
    np.save(prepared / "calibration.npy", images)
    np.save(prepared / "calibration_labels.npy", np.zeros(IMAGES, np.int64))
    counts = dict.fromkeys(("train", "validation", "calibration", "gate", "test"), 1)
    facts = {"name": "x", "size": 28, "channels": 1, "class_names": NAMES, "digest": DIGEST, "counts": counts}
    (prepared / "dataset.json").write_text(json.dumps(facts))
    torch.manual_seed(0)
    settings = pixelcnn.Settings(channels=4, dilations=(1,), conditional=True)
    model = pixelcnn.PixelCNN(settings, channels=1, size=28, classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    about = {"data_digest": DIGEST, "label_counts": [10, 10, 10]}
    save_model(model, tmp_path / "models" / "labeller", kind="pixelcnn", class_names=NAMES, about=about)
    fill(tmp_path / "batch", 20, bright=3)

    def run(detector: Any, used: Params = params) -> tuple[dict[str, Any], pd.DataFrame]:
        out = tmp_path / "out"
        summary = score_source("batch", used, tmp_path, out, detector, ScoreOptions(label_model="models/labeller"))
        return summary, pd.read_parquet(out / "scores.parquet")

    return run


def test_a_p_value_is_the_rank_among_calibration_images_with_the_same_given_label(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = Calibrated()
    summary, rows = score(detector)
    model: Any = load_model_folder(tmp_path / "models" / "labeller")
    images = np.load(tmp_path / "data" / "prepared" / "calibration.npy")
    given = np.array(NAMES)[nats_by_label(model, images).argmax(1)]
    levels = images.mean((1, 2, 3))
    for row in rows.itertuples():
        own = levels[given == row.label]
        assert row.label_p_value == pytest.approx((1 + (own >= row.score).sum()) / (len(own) + 1))
    assert summary["no_class"] == (rows.label_p_value <= detector.false_alarm_rate).sum()
    few = [name for name in NAMES if (given == name).sum() < 99]
    assert few
    assert all(f"{name} ({(given == name).sum()})" in summary["labels_too_small"] for name in few)
    assert summary["labels_too_small"] in capsys.readouterr().err


def test_the_calibration_images_are_scored_once_and_again_when_the_file_is_damaged(
    score: Score, tmp_path: Path
) -> None:
    first, _ = score(Calibrated())
    later = Calibrated()
    assert score(later)[0] == first
    assert later.seen == 0, "neither the calibration images nor the batch"
    (kept,) = (tmp_path / LABEL_SCORES).iterdir()
    kept.write_bytes(b"damaged")
    assert score(later)[0] == first
    assert later.seen == IMAGES


def test_one_image_of_each_group_counts(score: Score, tmp_path: Path) -> None:
    np.save(tmp_path / "data" / "prepared" / "calibration_groups.npy", np.arange(IMAGES) // 5)
    detector = Calibrated()
    score(detector)
    (kept,) = (tmp_path / LABEL_SCORES).iterdir()
    levels = np.load(tmp_path / "data" / "prepared" / "calibration.npy").mean((1, 2, 3)).reshape(-1, 5)
    scores = safetensors.numpy.load_file(kept)["score"]
    assert len(scores) == IMAGES // 5
    assert all(value in group for value, group in zip(scores, levels, strict=True))


def test_other_settings_and_other_calibration_images_make_the_batch_anew(score: Score, params: Params) -> None:
    def with_(**changes: Any) -> Params:
        block, key = changes.pop("block"), changes
        return params.model_copy(update={block: getattr(params, block).model_copy(update=key)})

    first = score(Calibrated())[0]["identity"]["detector"]
    fewer = score(Calibrated(), with_(block="evaluate", label_images=60))[0]["identity"]["detector"]
    uniform = score(Calibrated(), with_(block="inbox", label_prior="uniform"))[0]["identity"]["detector"]
    assert len({first, fewer, uniform}) == 3


def test_without_the_dataset_of_both_there_are_labels_and_no_p_values(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, rows = score(Calibrated("another"))
    assert set(rows.label) <= set(NAMES)
    assert rows.label_p_value.isna().all()
    assert "no_class" not in summary
    assert "labels get no p-values: data/prepared is not the dataset" in capsys.readouterr().err
