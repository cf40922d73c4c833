"""What calibrate fits, on which images, and what it refuses."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densitywatch.batches.flags import fewest_to_flag
from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.reading import Images
from densitywatch.detector import detector
from densitywatch.detector.calibrate import WEIGHT_COPIES, calibrate, fitting_data
from densitywatch.detector.conformal import p_values
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member import without_prefix
from densitywatch.detector.tail_combination import tail_surprise
from densitywatch.errors import ParamsError
from densitywatch.outlier_benchmark.benchmark import benchmark
from densitywatch.params import Params
from tests.small_project import SIZE, bars, make_project, with_detector

ROOT = Path(__file__).parents[2]


def test_two_calibrations_write_the_same_bytes(project: tuple[Path, Params], tmp_path: Path) -> None:
    root, params = project
    again = tmp_path / "again"
    shutil.copytree(root, again)
    shutil.rmtree(again / "models" / "detector")
    calibrate(params, again)
    for file in (detector.ARRAYS, detector.FACTS):
        assert (again / "models" / "detector" / file).read_bytes() == (root / "models" / "detector" / file).read_bytes()


def test_p_values_come_from_calibration_images_and_nothing_is_fitted_on_them(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    root, params = project
    again = tmp_path / "again"
    shutil.copytree(root, again)
    np.save(again / "data" / "prepared" / "calibration.npy", bars(150, seed=99)[0])
    np.save(again / "data" / "prepared" / "test.npy", 255 - bars(120, seed=98)[0])
    np.save(again / "data" / "panel" / "mnist.npy", np.zeros((3, 1, 28, 28), np.uint8))
    calibrate(params, again)
    first, second = (detector.load(where / "models" / "detector") for where in (root, again))
    changed = {key for key in first.arrays if not np.array_equal(first.arrays[key], second.arrays[key])}
    assert changed == {"calibration.score", "pixelcnn.nll"}


def test_the_calibration_scores_are_what_the_detector_says_of_those_images(
    project: tuple[Path, Params], loaded: detector.Detector
) -> None:
    images = np.load(project[0] / "data" / "prepared" / "calibration.npy")
    scores = loaded.score(images).score
    assert np.allclose(np.sort(scores), loaded.calibration, rtol=1e-4, atol=1e-4)
    assert np.isclose(p_values(loaded.calibration, [np.inf])[0], 1 / (len(images) + 1))


def test_calibration_images_are_scored_some_at_a_time_and_the_detector_is_the_same(
    project: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = project
    again = tmp_path / "again"
    shutil.copytree(root, again)
    read = []

    class Counting(FeatureCache):
        def __init__(self, source: Images, *arguments: Any, **named: Any) -> None:
            super().__init__(source, *arguments, **named)
            read.append(len(source))

    monkeypatch.setattr("densitywatch.detector.calibrate.FeatureCache", Counting)
    monkeypatch.setattr("densitywatch.detector.calibrate.CALIBRATION_AT_ONCE", 50)
    calibrate(params, again)
    assert read[-3:] == [50, 50, 50]
    first, second = (detector.load(where / "models" / "detector") for where in (root, again))
    assert first.arrays.keys() == second.arrays.keys()
    for key, values in first.arrays.items():
        np.testing.assert_allclose(second.arrays[key], values, rtol=1e-5, err_msg=key)


def test_one_calibration_image_of_each_group_gives_the_p_values(
    project: tuple[Path, Params], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, params = project
    again = tmp_path / "again"
    shutil.copytree(root, again)
    prepared = again / "data" / "prepared"
    groups = np.random.default_rng(4).integers(0, 20, 150)
    assert not fitting_data(params, again)[0].grouped
    np.save(prepared / "calibration_groups.npy", groups)
    np.save(prepared / "validation_groups.npy", 20 + np.arange(len(np.load(prepared / "validation_labels.npy"))))
    assert fitting_data(params, again)[0].grouped
    facts = json.loads((prepared / "dataset.json").read_text())
    facts["groups"] = {"setting": "folder", "rule": "folder", "counts": {"calibration": 20}}
    (prepared / "dataset.json").write_text(json.dumps(facts))
    calibrate(params, again)
    grouped = detector.load(again / "models" / "detector")
    assert len(grouped.calibration) == len(grouped.arrays["pixelcnn.nll"]) == 20
    assert grouped.facts["data"]["groups"] == {"calibration": 20}
    assert "one image of each of 20 groups" in capsys.readouterr().err
    images = np.load(prepared / "calibration.npy")
    scores = grouped.score(images).score
    drawn = scores[one_of_each_group(groups, params.seed)]
    assert np.allclose(np.sort(drawn), grouped.calibration, rtol=1e-4, atol=1e-4)
    assert grouped.score(255 - images[:5]).p_value.min() >= 1 / 21 - 1e-12
    assert fewest_to_flag(100, 0.1, grouped.calibration) == 48  # 100 * (1 / 21) / 0.1


@pytest.mark.slow
def test_declared_transformations_add_their_judge(project: tuple[Path, Params], tmp_path: Path) -> None:
    root, params = project
    again = tmp_path / "again"
    shutil.copytree(root, again)
    declared = with_detector(params, declared=("flip",), declared_steps=25)
    calibrate(declared, again)
    told = detector.load(again / "models" / "detector")
    assert told.facts["members"][-1] == detector.DECLARED_MEMBER
    flipped = bars(60, seed=56)[0][..., ::-1].copy()
    plain = detector.load(root / "models" / "detector")
    assert np.median(told.score(flipped).p_value) <= np.median(plain.score(flipped).p_value)
    # the judge counts as often as the other members, together, count the same evidence
    assert told.judge_weight == plain.judge_weight >= 1.0
    members = told.score(flipped).members
    judge = tail_surprise(
        members[detector.DECLARED_MEMBER], without_prefix(f"tail.{detector.DECLARED_MEMBER}", told.arrays)
    )
    assert np.allclose(told.combine(members), plain.combine(members) + told.judge_weight * judge)


def test_a_member_that_needs_a_declaration_is_refused_without_one(project: tuple[Path, Params]) -> None:
    root, params = project
    with pytest.raises(ParamsError, match=r"needs detector\.declared"):
        calibrate(with_detector(params, members=("transformation_ratio",)), root)
    with pytest.raises(ParamsError, match="no score 'nonsense'"):
        calibrate(with_detector(params, members=("nonsense",)), root)


@pytest.mark.slow
def test_colour_images_are_detected_as_well(tmp_path: Path) -> None:
    params = make_project(tmp_path, ROOT / "params.yaml", channels=3)
    calibrate(params, tmp_path)
    loaded = detector.load(tmp_path / "models" / "detector")
    normal = loaded.score(bars(60, seed=57, channels=3)[0])
    foreign = loaded.score(np.random.default_rng(0).integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8))
    assert np.median(normal.p_value) > 0.3
    assert (foreign.p_value < 0.05).all()


@pytest.mark.slow
def test_a_detector_that_reads_two_models_is_calibrated_and_measured(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(project[0], again)
    changes = {
        "members": ("composition", "surprise_arrangement", "vae_kl"),
        "reads": ("pixelcnn", "vae"),
        "rivals_read": (),
        "folds": 1,
    }
    params = project[1].model_copy(update={"detector": project[1].detector.model_copy(update=changes)})
    unread = again / WEIGHT_COPIES / "detector" / "gone.safetensors"
    unread.parent.mkdir(parents=True)
    unread.touch()
    calibrate(params, again)
    assert not unread.exists()
    assert json.loads((again / "models" / "detector" / detector.FACTS).read_text())["models"] == ["pixelcnn", "vae"]
    assert benchmark(params, again)["auroc"]["uniform_noise"] > 0.9


def test_fitting_reads_train_and_validation_only_and_p_values_calibration_only() -> None:
    reading = {
        file.name: {
            node.args[1].value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open_split"
            and isinstance(node.args[1], ast.Constant)
        }
        for wing in ("detector", "outlier_benchmark")
        for file in (ROOT / "src" / "densitywatch" / wing).rglob("*.py")
    }
    assert {name: splits for name, splits in reading.items() if splits} == {
        "calibrate.py": {"train", "validation", "calibration"},
        "benchmark.py": {"test"},
        "no_class.py": {"calibration"},
    }
