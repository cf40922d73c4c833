"""Data at one size, readers at another: everyone who hands images to a model brings them to its size."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densitywatch.data.encoding import png
from densitywatch.data.reading import resized
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.detector import load
from densitywatch.errors import DataError
from densitywatch.evaluation.report.comparison import compare
from densitywatch.models.pixelcnn import PixelCNN, Settings
from densitywatch.models.storage import load_model_folder, read_header, save_model
from densitywatch.params import Params
from densitywatch.registry.gate import gate
from densitywatch.registry.service import Service
from tests.small_project import SIZE, make_project

SMALL = 7
COLOURS = 3


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (6, COLOURS, SIZE, SIZE), dtype=np.uint8)


def save(folder: Path, *, size: int, data_size: int, conditional: bool = False) -> Path:
    torch.manual_seed(0)
    model: Any = PixelCNN(
        Settings(channels=4, dilations=(1,), conditional=conditional, context_channels=4),
        channels=COLOURS,
        size=size,
        classes=2,
    )
    model.data_size = data_size
    save_model(model, folder, kind="pixelcnn", class_names=("upper", "lower"), about={})
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> tuple[Path, Params]:
    """Data of 14 x 14 pixels whose PixelCNN sees 7 x 7, and a detector that looks at 10 x 10."""
    root = tmp_path_factory.mktemp("sizes")
    params = make_project(root, project_root / "params.yaml", channels=COLOURS, size=10)
    save(root / "models" / "pixelcnn", size=SMALL, data_size=SIZE)
    calibrate(params, root)
    return root, params


def test_a_file_says_the_datas_size_only_where_the_model_has_another(tmp_path: Path) -> None:
    assert read_header(save(tmp_path / "a", size=SMALL, data_size=SIZE))["data_size"] == SIZE
    assert "data_size" not in read_header(save(tmp_path / "b", size=SIZE, data_size=SIZE))


def test_the_detector_takes_images_of_the_datas_size_and_its_models_see_their_own(
    project: tuple[Path, Params], images: NDArray[np.uint8]
) -> None:
    detector = load(project[0] / "models" / "detector")
    assert (detector.size, detector.reading_size) == (SIZE, 10)
    scores = detector.score(images)
    assert np.isfinite(scores.score).all()
    assert detector.surprise_map(images).shape == (len(images), SMALL, SMALL)
    model: Any = load_model_folder(project[0] / "models" / "pixelcnn")
    with torch.no_grad():
        nats = model.log_prob(torch.from_numpy(resized(images, SMALL))).numpy()
    assert np.allclose(scores.bits_per_dim, -nats / (np.log(2) * COLOURS * SMALL**2), atol=1e-5)
    features = detector.features(images)
    assert (features.images == resized(images, 10)).all()


def test_a_served_model_answers_images_of_the_datas_size_as_its_own(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    service = Service(save(tmp_path, size=SMALL, data_size=SIZE), "crop")
    answers = service.answer(images.tolist())
    assert answers == service.answer([base64.b64encode(png(image)).decode() for image in images])
    assert answers == service.answer(resized(images, SMALL).tolist())
    assert base64.b64decode(service.answer({"samples": 1})[0]["image"]).startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"images have the shape \[3, 9, 9\] where the model takes \[3, 14, 14\]"):
        service.answer(np.zeros((1, COLOURS, 9, 9), np.uint8))


def test_the_gate_compares_only_models_that_see_images_at_one_size(project: tuple[Path, Params]) -> None:
    root, params = project
    params = params.model_copy(update={"gate": params.gate.model_copy(update={"floor": False})})
    small, large = (save(root / f"at_{size}", size=size, data_size=SIZE) for size in (SMALL, SIZE))
    verdict = gate("pixelcnn", small, small, params, root)
    assert verdict.passed
    assert verdict.candidate is not None
    assert verdict.candidate.measure == "bits/dim at 7 x 7"
    verdict = gate("pixelcnn", large, small, params, root)
    assert not verdict.passed
    assert "measured by bits/dim and the champion by bits/dim at 7 x 7" in verdict.reason


def test_labels_come_from_a_model_of_another_size(project: tuple[Path, Params], images: NDArray[np.uint8]) -> None:
    from densitywatch.batches.scorer import WithLabels

    detector = load(project[0] / "models" / "detector")
    model: Any = load_model_folder(save(project[0] / "by_label", size=SMALL, data_size=SIZE, conditional=True))
    scores = WithLabels(detector, model, "by_label").score(images)
    with torch.no_grad():
        nats = model.log_prob_by_label(torch.from_numpy(resized(images, SMALL))).numpy()
    assert (scores.label == nats.argmax(1)).all()


def test_figures_of_different_sizes_have_no_best_and_the_size_is_shown() -> None:
    def best(*sizes: int) -> list[bool]:
        metrics = {f"m{i}": {"bits_per_dim": 2.0 + i, "size": size} for i, size in enumerate(sizes)}
        (cells,) = [cells for row, cells in compare(metrics) if row.title == "bits/dim"]
        (shown,) = [cells for row, cells in compare(metrics) if row.title == "Sees images at"]
        assert [cell.text for cell in shown.values()] == [f"{size} x {size}" for size in sizes]
        return [cell.best for cell in cells.values()]

    assert best(28, 28) == [True, False]
    assert best(28, 32) == [False, False]
