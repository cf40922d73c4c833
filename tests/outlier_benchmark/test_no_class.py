"""Which images the class-conditional density says belong to no class."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from densitywatch.arrays import Pixels
from densitywatch.models.pixelcnn import PixelCNN, Settings
from densitywatch.models.storage import save_model
from densitywatch.outlier_benchmark import no_class as rejection
from densitywatch.params import Params
from tests.small_project import SIZE, bars, make_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Path]:
    return make_project(tmp_path, ROOT / "params.yaml", false_alarm_rate=0.1), tmp_path


def save_density(root: Path, *, classes: int) -> None:
    torch.manual_seed(0)
    model = PixelCNN(Settings(channels=4, dilations=(1,), conditional=True), channels=1, size=SIZE, classes=classes)
    names = ("upper", "lower")[:classes]
    save_model(model, root / "models" / rejection.LABEL_MODEL, kind="pixelcnn", class_names=names, about={})


class Halves:
    """Stands in for the density: label 0 where the upper half is brighter, else label 1."""

    conditional, classes, class_names, header = True, 2, ("upper", "lower"), {}

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        upper, lower = (part.double().mean((1, 2, 3)) for part in (x[:, :, :half], x[:, :, half:]))
        return torch.stack([upper, lower], 1)


class Brightness:
    """Stands in for the detector: the brighter, the more outlying."""

    def score(self, images: Pixels) -> SimpleNamespace:
        return SimpleNamespace(score=images.mean((1, 2, 3)))


def rates_of(params: Params, root: Path, **kinds: Pixels) -> dict[str, float]:
    detector: Any = Brightness()
    scores = {kind: detector.score(images).score for kind, images in kinds.items()}
    return rejection.no_class_rates(params, root, detector, kinds, scores)


def test_noise_belongs_to_no_class_and_all_normal_images_are_rejected_at_most_at_the_stated_rate(
    project: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, root = project
    save_density(root, classes=2)
    monkeypatch.setattr(rejection, "load_model_folder", lambda folder: Halves())
    noise = np.random.default_rng(0).integers(0, 256, (160, 1, SIZE, SIZE), dtype=np.uint8)
    normal = bars(1000, 7)[0]
    rates = rates_of(params, root, normal=normal, noise=noise)
    assert list(rates) == ["normal", "noise"]
    assert rates["noise"] == 1.0
    # 1,000 images, and two labels of about 75 calibration images whose own ranks vary
    assert 0.0 < rates["normal"] <= 0.1 + 3 * (0.1 * 0.9 * (1 / 1000 + 1 / 150)) ** 0.5
    assert rates["normal"] * 1000 == pytest.approx(round(rates["normal"] * 1000)), "every normal image counts"


def test_labels_with_too_few_calibration_images_are_named(
    project: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, root = project
    strict = params.model_copy(update={"detector": params.detector.model_copy(update={"false_alarm_rate": 0.001})})
    save_density(root, classes=2)
    monkeypatch.setattr(rejection, "load_model_folder", lambda folder: Halves())
    assert rates_of(strict, root, normal=bars(5, 7)[0]) == {"normal": 0.0}
    assert "at a rate of 0.1 in 100: upper (" in capsys.readouterr().err


def test_without_such_a_density_or_without_labels_there_is_nothing_to_say(project: tuple[Params, Path]) -> None:
    params, root = project
    assert rates_of(params, root, normal=bars(5, 7)[0]) == {}
    save_density(root, classes=0)
    assert rates_of(params, root, normal=bars(5, 7)[0]) == {}
