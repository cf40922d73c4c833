"""A conditional model's header says how many training images each label had."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densitywatch.models.storage import read_header
from densitywatch.params import load_params
from densitywatch.training.train import label_counts, train_model
from tests.training.every_kind import make_project


def test_images_without_a_label_count_for_none() -> None:
    assert label_counts(np.array([0, 2, 2, -1]), ("shirt", "bag", "boot", "dress")) == [1, 0, 2, 0]


@pytest.mark.parametrize(("name", "has_counts"), [("conditional_pixelcnn", True), ("pixelcnn", False)])
def test_the_header_has_the_counts_of_the_training_labels(
    tmp_path: Path, name: str, has_counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any, **__: Any) -> None:
        return None

    unlogged = SimpleNamespace(run_id="none", log=silent, log_artifacts=silent)  # no store: that takes seconds
    monkeypatch.setattr("densitywatch.training.train.training_run", lambda *_, **__: nullcontext(unlogged))
    make_project(tmp_path, accelerator="cpu", devices=1)
    train_model(name, load_params(tmp_path / "params.yaml"), tmp_path)
    labels = np.load(tmp_path / "data" / "prepared" / "train_labels.npy")
    expected = np.bincount(labels, minlength=10).tolist() if has_counts else None
    assert read_header(tmp_path / "models" / name).get("label_counts") == expected
