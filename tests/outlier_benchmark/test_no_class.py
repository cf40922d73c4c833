"""Which images the class-conditional density says belong to no class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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


class Brightness:
    """Stands in for the density: every label likes images dark."""

    conditional = True

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        return -x.double().mean((1, 2, 3)).unsqueeze(1).expand(-1, 2)


def test_noise_belongs_to_no_class_and_normal_images_are_rejected_at_most_at_the_stated_rate(
    project: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, root = project
    save_density(root, classes=2)
    monkeypatch.setattr(rejection, "load_model_folder", lambda folder: Brightness())
    noise = np.random.default_rng(0).integers(0, 256, (60, 1, SIZE, SIZE), dtype=np.uint8)
    rates = rejection.no_class_rates(params, root, {"normal": bars(200, 7)[0], "noise": noise})
    assert list(rates) == ["normal", "noise"]
    assert rates["noise"] == 1.0
    assert rates["normal"] <= 0.1 + 3 * (0.1 * 0.9 / 150) ** 0.5  # 150 calibration images


def test_without_such_a_density_or_without_labels_there_is_nothing_to_say(project: tuple[Params, Path]) -> None:
    params, root = project
    kinds = {"normal": bars(5, 7)[0]}
    assert rejection.no_class_rates(params, root, kinds) == {}
    save_density(root, classes=0)
    assert rejection.no_class_rates(params, root, kinds) == {}
