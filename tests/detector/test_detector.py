"""The detector from calibration to plain words, on a project that calibrates in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from densitywatch.detector import calibrate as stage
from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.conformal import p_values
from densitywatch.detector.member import without_prefix
from densitywatch.detector.tail_combination import tail_surprise
from densitywatch.errors import ModelError, ParamsError
from densitywatch.models.storage import load_model_folder
from densitywatch.outlier_benchmark.benchmark import benchmark
from densitywatch.params import Params
from tests.small_project import SIZE, bars, make_project, with_detector

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("detector")
    params = make_project(root, ROOT / "params.yaml")
    calibrate(params, root)
    return root, params


@pytest.fixture(scope="module")
def loaded(project: tuple[Path, Params]) -> detector.Detector:
    return detector.load(project[0] / "models" / "detector")


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
    import torch

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


def test_an_explanation_names_what_spoke_where_and_how_rare_it_is(loaded: detector.Detector) -> None:
    images, _ = bars(3, seed=54)
    images[0] = 0
    images[1, 0, :, SIZE // 2 :] = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE // 2))
    scores = loaded.score(images)
    plain, busy, normal = (loaded.explain(scores, i) for i in range(3))
    assert "plainer" in plain
    assert "right half" in busy
    assert "busier" in busy
    assert "normal image" in normal
    for text in (plain, busy, normal):
        assert text[0].isupper()
        assert text.endswith(".")


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
    (broken / detector.FACTS).write_text('{"format": "1"}')
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


def test_colour_images_are_detected_as_well(tmp_path: Path) -> None:
    params = make_project(tmp_path, ROOT / "params.yaml", channels=3)
    calibrate(params, tmp_path)
    loaded = detector.load(tmp_path / "models" / "detector")
    normal = loaded.score(bars(60, seed=57, channels=3)[0])
    foreign = loaded.score(np.random.default_rng(0).integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8))
    assert np.median(normal.p_value) > 0.3
    assert (foreign.p_value < 0.05).all()


def test_a_detector_that_reads_two_models_is_calibrated_and_measured(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(project[0], again)
    changes = {"members": ("composition", "vae_kl"), "reads": ("pixelcnn", "vae"), "rivals_read": (), "folds": 1}
    params = project[1].model_copy(update={"detector": project[1].detector.model_copy(update=changes)})
    unread = again / stage.WEIGHT_COPIES / "detector" / "gone.safetensors"
    unread.parent.mkdir(parents=True)
    unread.touch()
    calibrate(params, again)
    assert not unread.exists()
    assert json.loads((again / "models" / "detector" / detector.FACTS).read_text())["models"] == ["pixelcnn", "vae"]
    assert benchmark(params, again)["auroc"]["uniform_noise"] > 0.9
