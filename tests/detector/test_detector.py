"""The detector as it loads and scores, on a project that calibrates in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from densitywatch.detector import detector
from densitywatch.errors import ModelError
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params
from tests.small_project import SIZE, bars


def test_normal_images_get_even_p_values_and_foreign_ones_small_ones(loaded: detector.Detector) -> None:
    normal = loaded.score(bars(120, seed=50)[0])
    noise = loaded.score(np.random.default_rng(0).integers(0, 256, (20, 1, SIZE, SIZE), dtype=np.uint8))
    turned = loaded.score(np.ascontiguousarray(np.rot90(bars(40, seed=51)[0], 1, (-2, -1))))
    assert 0.35 < np.median(normal.p_value) < 0.65
    assert (normal.p_value <= 0.05).mean() < 0.15
    assert (noise.p_value <= 0.02).all()
    assert np.median(turned.p_value) < 0.05


def test_scores_do_not_depend_on_the_batch_they_come_in(loaded: detector.Detector) -> None:
    images, _ = bars(9, seed=52)
    whole = loaded.score(images)
    alone = [loaded.score(images[i : i + 1]) for i in range(9)]
    assert np.allclose(whole.score, [s.score[0] for s in alone], rtol=1e-3, atol=1e-3)
    assert set(whole.members) == set(loaded.facts["members"])


def test_an_empty_batch_has_empty_scores(loaded: detector.Detector) -> None:
    scores = loaded.score(np.zeros((0, 1, SIZE, SIZE), dtype=np.uint8))
    assert len(scores) == 0


def test_bits_per_dim_are_the_density_models_own(project: tuple[Path, Params], loaded: detector.Detector) -> None:

    images, _ = bars(4, seed=53)
    with torch.no_grad():
        nats = load_model_folder(project[0] / "models" / "pixelcnn").log_prob(torch.from_numpy(images)).numpy()
    assert np.allclose(loaded.score(images).bits_per_dim, -nats / np.log(2) / SIZE**2, rtol=1e-4)
    assert np.allclose(loaded.surprise_map(images).sum((1, 2)), -nats, rtol=1e-4)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((1, 1, SIZE, SIZE + 1), np.uint8),
        np.zeros((1, 1, SIZE, SIZE), np.float32),
        np.zeros((SIZE, SIZE), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused_in_one_sentence(images: np.ndarray, loaded: detector.Detector) -> None:
    with pytest.raises(ModelError, match=r"takes uint8 images \(B, 1, 14, 14\)"):
        loaded.score(images)


def test_the_models_that_came_with_the_detector_go_before_those_beside_it(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    packed = tmp_path / "registered"
    shutil.copytree(project[0] / "models" / "detector", packed)
    for name in json.loads((packed / detector.FACTS).read_text())["models"]:
        shutil.copytree(project[0] / "models" / name, packed / "members" / name)
    images, _ = bars(3, seed=55)
    here = detector.load(project[0] / "models" / "detector").score(images)
    assert np.array_equal(detector.load(packed).score(images).score, here.score)


def test_a_detector_without_its_model_says_which_one_is_missing(project: tuple[Path, Params], tmp_path: Path) -> None:
    shutil.copytree(project[0] / "models" / "detector", tmp_path / "alone")
    with pytest.raises(ModelError, match="needs the model 'pixelcnn'"):
        detector.load(tmp_path / "alone").score(bars(1, seed=0)[0])


def test_a_missing_a_truncated_and_a_foreign_detector_are_each_one_sentence(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no outlier detector here"):
        detector.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(project[0] / "models" / "detector", broken)
    whole = (broken / detector.ARRAYS).read_bytes()
    (broken / detector.ARRAYS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a whole detector"):
        detector.load(broken)
    (broken / detector.ARRAYS).write_bytes(whole)
    (broken / detector.FACTS).write_text("[]")
    with pytest.raises(ModelError, match="format"):
        detector.load(broken)
    (broken / detector.FACTS).write_text(f'{{"format": "{detector.FORMAT}"}}')
    with pytest.raises(ModelError, match="not a whole detector"):
        detector.load(broken)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"members": 5}, "members"),
        ({"members": []}, "members"),
        ({"members": ["no_such_score"]}, "no_such_score"),
        ({"size": "14"}, "size"),
        ({"size": None}, "size"),
        ({"size": 1.5}, "size"),
        ({"reading": []}, "reading"),
        ({"reading": 1 << 20}, "reading"),
        ({"channels": 0}, "channels"),
        ({"class_names": 5}, "class_names"),
        ({"weights": ["pixelcnn"]}, "weights"),
        ({"density": "../pixelcnn"}, "density"),
        ({"models": ["/etc/x"]}, "models"),
        ({"resize": "tear"}, "resize"),
        ({"false_alarm_rate": "0.01"}, "false_alarm_rate"),
        ({"false_alarm_rate": float("nan")}, "JSON cannot hold"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_detector_whose_facts_are_of_a_wrong_type_is_one_sentence(
    changes: dict[str, object], named: str, project: tuple[Path, Params], tmp_path: Path
) -> None:
    shutil.copytree(project[0] / "models" / "detector", tmp_path / "detector")
    facts = tmp_path / "detector" / detector.FACTS
    facts.write_text(json.dumps(json.loads(facts.read_text()) | changes))
    with pytest.raises(ModelError, match=named) as caught:
        detector.load(tmp_path / "detector")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calibration.score", np.zeros((2, 2))),
        ("calibration.score", np.zeros(0)),
        ("calibration.score", np.full(3, np.nan)),
        ("overlap", np.zeros(0)),
        ("tail.pixelcnn_nll.tail", np.zeros(5)),
        ("tail.pixelcnn_nll.knots", None),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(
    name: str, value: np.ndarray | None, project: tuple[Path, Params], tmp_path: Path
) -> None:
    shutil.copytree(project[0] / "models" / "detector", tmp_path / "detector")
    arrays = safetensors.numpy.load_file(tmp_path / "detector" / detector.ARRAYS)
    member = json.loads((tmp_path / "detector" / detector.FACTS).read_text())["members"][0]
    name = name.replace("pixelcnn_nll", member)
    assert name in arrays
    arrays |= {} if value is None else {name: value}
    if value is None:
        del arrays[name]
    safetensors.numpy.save_file(arrays, tmp_path / "detector" / detector.ARRAYS)
    with pytest.raises(ModelError, match="not a whole detector"):
        detector.load(tmp_path / "detector")


def test_what_a_member_misses_is_named_when_it_scores(project: tuple[Path, Params], tmp_path: Path) -> None:
    for name in ("detector", "pixelcnn", "vae"):
        shutil.copytree(project[0] / "models" / name, tmp_path / name)
    arrays = safetensors.numpy.load_file(tmp_path / "detector" / detector.ARRAYS)
    facts = json.loads((tmp_path / "detector" / detector.FACTS).read_text())
    fitted = [name for name in facts["members"] if any(key.startswith(f"{name}.") for key in arrays)]
    kept = {key: value for key, value in arrays.items() if not key.startswith(f"{fitted[0]}.")}
    safetensors.numpy.save_file(kept, tmp_path / "detector" / detector.ARRAYS)
    with pytest.raises(ModelError, match=f"member {fitted[0]} cannot score"):
        detector.load(tmp_path / "detector").score(bars(1, seed=0)[0])
