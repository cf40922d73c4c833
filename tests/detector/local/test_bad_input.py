"""Photographs as they should not be: black, too few, and weights that somebody tampered with."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from densitywatch.arrays import Pixels
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.detector import Detector, load
from densitywatch.detector.local import lite0
from densitywatch.detector.member_table import MEMBERS
from densitywatch.errors import ModelError
from densitywatch.params import load_params

SIZE = 64
LOCAL = sorted(name for name, member in MEMBERS.items() if member.smallest > 1)


def calibrated(
    root: Path, project_root: Path, splits: dict[str, Pixels], members: tuple[str, ...], models: Path | None = None
) -> Detector:
    """A detector of these members that `calibrate` makes of these images; the models that they read are in `models`."""
    data = root / "data" / "prepared"
    data.mkdir(parents=True)
    for name, images in splits.items():
        np.save(data / f"{name}.npy", images)
        np.save(data / f"{name}_labels.npy", np.full(len(images), -1))
    counts = {name: len(images) for name, images in splits.items()}
    facts = {"name": "plates", "size": SIZE, "channels": 1, "class_names": [], "digest": "0" * 64, "counts": counts}
    (data / "dataset.json").write_text(json.dumps(facts))
    params = load_params(project_root / "params.yaml")
    reads = tuple(dict.fromkeys(name for member in members for name in MEMBERS[member].reads))
    for name in reads:
        assert models is not None
        shutil.copytree(models / name, root / "models" / name)
    params = params.model_copy(
        update={
            "models": {**params.models, **{name: params.models["pixelcnn"] for name in reads}},
            "data": params.data.model_copy(update={"size": SIZE, "channels": 1}),
            "detector": params.detector.model_copy(
                update={"members": members, "reads": reads, "size": SIZE, "false_alarm_rate": 0.1}
            ),
        }
    )
    return load(calibrate(params, root))


def noisy(count: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(90, 130, (count, 1, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.parametrize("name", LOCAL)
def test_black_images_make_a_detector_that_finds_a_spot_on_one(
    name: str, project_root: Path, tmp_path: Path, models_folder: Path
) -> None:
    counts = {"train": 12, "validation": 8, "calibration": 9, "gate": 2, "test": 2}
    black = {split: np.zeros((count, 1, SIZE, SIZE), np.uint8) for split, count in counts.items()}
    detector = calibrated(tmp_path, project_root, black, (name,), models_folder)
    assert np.isfinite(detector.calibration).all()
    images = black["test"].copy()
    images[1, :, 30:36, 30:36] = 200
    found = detector.score(images)
    assert np.isfinite(found.score).all()
    assert found.p_value.tolist() == [1.0, 0.1]


@pytest.mark.parametrize("name", LOCAL)
def test_five_images_make_a_detector_whose_limits_are_said(
    name: str, project_root: Path, tmp_path: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {split: noisy(1, i) for i, split in enumerate(("train", "validation", "calibration", "gate", "test"))}
    detector = calibrated(tmp_path, project_root, splits, (name,), models_folder)
    said = capsys.readouterr().err
    assert "fitted on 1 training and 1 validation images, which are few" in said
    assert "a false-alarm rate of 0.1 takes 9 calibration images and there are 1, so no p-value is as small" in said
    assert (detector.score(noisy(3, 9)).p_value >= 0.5).all()
    assert len(detector.score(noisy(0, 9))) == 0
    if not detector.has_places:
        return
    assert detector.place_p_values(noisy(0, 9)).shape == (0, 8, 8)
    with pytest.raises(ModelError, match=r"rate of 0\.1 takes at least 9 calibration images and there are 1; ask for"):
        detector.outlined(noisy(1, 9), 0.1)


class Code:
    """Unpickled, it would make the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.file), "w"))


def test_a_pickle_with_code_in_place_of_the_weights_is_refused_and_not_run(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, weights = tmp_path / "was_run", tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps({"_conv_stem.weight": Code(trap)}))
    monkeypatch.setattr("densitywatch.detector.local.sources.weights_file", lambda: weights)
    splits = {split: noisy(9, i) for i, split in enumerate(("train", "validation", "calibration", "gate", "test"))}
    with pytest.raises(ModelError, match=r"weights\.pth: not the published weights of EfficientNet-Lite0") as error:
        calibrated(tmp_path, project_root, splits, ("lite0_place",))
    assert "\n" not in str(error.value)
    assert not trap.exists()
    assert not (tmp_path / "models" / "detector").exists()
    with pytest.raises(ModelError, match="not the published weights"):
        lite0.read_weights(weights)
    assert not trap.exists()
