"""The local members as members: what they are fitted on, what they find, and what their map promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from densitywatch.arrays import Arrays, Pixels
from densitywatch.detector.calibrate import calibrate, fit_member, fit_members
from densitywatch.detector.conformal import check_reachable, images_for, place_p_values
from densitywatch.detector.detector import Detector, load
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.local import lite0, local_map, map_rarity, sources
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import MEMBERS, find_member
from densitywatch.errors import ModelError
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import load_params
from tests.small_project import with_detector

SIZE = 64
LOCAL = sorted(name for name, member in MEMBERS.items() if member.places is not None)
LARGE = sorted(name for name, member in MEMBERS.items() if member.smallest > 1)
"""All that need larger images than tests/detector/scores/test_every_score.py gives: the local ones and own_whole."""


def plates(count: int, seed: int, channels: int = 1) -> Pixels:
    """Noisy grey plates with a darker disc in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = np.hypot(y - SIZE / 2, x - SIZE / 2) < SIZE / 4
    level = rng.uniform(110, 130, (count, 1, 1, 1))
    noise = rng.normal(0, 4, (count, channels, SIZE, SIZE))
    return np.clip(level - 50 * disc + noise, 0, 255).astype(np.uint8)


def scratched(images: Pixels, by: int = 60) -> Pixels:
    """The same with a line of 10 pixels, two thousandths of the image, lighter by so many grey levels."""
    images = images.copy()
    images[:, :, 12, 40:50] = np.clip(images[:, :, 12, 40:50].astype(int) + by, 0, 255)
    return images


def fitting_data(channels: int = 1, seed: int = 0, *folders: Path) -> FittingData:
    """Plates; models are in the folders."""
    models = Models(*folders)

    def cache(count: int, of: int) -> FeatureCache:
        return FeatureCache(plates(count, of, channels), models, size=SIZE)

    return FittingData(
        train=cache(60, 10 * seed),
        sample=cache(20, 10 * seed + 1),
        all_train=plates(20, 10 * seed + 1, channels),
        validation=cache(40, 10 * seed + 2),
        seed=0,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
    )


def made(data: FittingData, names: tuple[str, ...], calibration: Pixels) -> Detector:
    """A detector of these members, calibrated on these images."""
    facts = {
        "size": SIZE,
        "channels": calibration.shape[1],
        "resize": "crop",
        "false_discovery_rate": 0.1,
        "false_alarm_rate": 0.05,
        "class_names": [],
        "density": None,
        "members": names,
    }
    arrays: Arrays = fit_members([find_member(name) for name in names], data)
    arrays["calibration.score"] = np.zeros(1)
    bare = Detector(facts, arrays, Models())
    features = bare.features(calibration)
    arrays["calibration.score"] = np.sort(bare.combine(bare.member_scores(features)))
    arrays["calibration.place_maximum"] = np.sort(bare.place_surprise(features).max((1, 2)))
    return Detector(facts, arrays, Models())


@pytest.fixture(scope="module")
def detector() -> Detector:
    return made(fitting_data(), ("own_place",), plates(99, seed=50))


@pytest.mark.parametrize("name", LOCAL)
def test_a_scratch_is_found_and_the_same_image_scores_the_same_in_any_batch(name: str, models_folder: Path) -> None:
    member, data = MEMBERS[name], fitting_data(1, 0, models_folder)
    assert member.fit is not None
    fitted = member.fit(data)
    images, models = plates(12, seed=60), Models(models_folder)
    score = member.score(FeatureCache(images, models, size=SIZE), fitted)
    again = np.concatenate(
        [member.score(FeatureCache(images[i : i + 5], models, size=SIZE), fitted) for i in range(0, 12, 5)]
    )
    np.testing.assert_allclose(score, again, rtol=1e-3, atol=1e-3)
    odd = member.score(FeatureCache(scratched(images), models, size=SIZE), fitted)
    assert np.median(odd) > score.max()


@pytest.mark.parametrize("name", LARGE)
def test_a_score_is_finite_the_same_in_any_batch_and_reads_the_models_that_it_names(
    name: str, models_folder: Path
) -> None:
    member, data = MEMBERS[name], fitting_data(1, 0, models_folder)
    assert member.fit is not None
    fitted, models = member.fit(data), Models(models_folder)
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, SIZE, SIZE), dtype=np.uint8)
    images = np.concatenate([np.zeros_like(noise), np.full_like(noise, 255), noise, plates(3, seed=61)])
    score = member.score(FeatureCache(images, models, size=SIZE), fitted)
    assert np.isfinite(score).all()
    again = np.concatenate(
        [member.score(FeatureCache(images[i : i + 4], models, size=SIZE), fitted) for i in range(0, len(images), 4)]
    )
    np.testing.assert_allclose(score, again, rtol=1e-3, atol=1e-3)
    assert set(models.used) == set(member.reads)
    assert member.score.__doc__, "a score names its source"


def test_colour_images_are_read_as_well() -> None:
    detector = made(fitting_data(channels=3), ("own_place",), plates(39, seed=51, channels=3))
    reddish = plates(6, seed=52, channels=3)
    reddish[:, 0, 20:30, 20:30] += 25
    assert (detector.score(reddish).p_value < 0.1).all()


def test_the_map_is_highest_where_the_scratch_is(detector: Detector) -> None:
    surprise = detector.place_surprise(detector.features(scratched(plates(8, seed=61))))
    assert surprise.shape == (8, 8, 8)
    highest = surprise.reshape(8, -1).argmax(1)
    rows, columns = np.unravel_index(highest, (8, 8))
    assert ((rows >= 0) & (rows <= 2)).all()
    assert ((columns >= 4) & (columns <= 6)).all()


def test_outlined_places_are_those_with_a_small_p_value(detector: Detector) -> None:
    images = np.concatenate([plates(4, seed=62), scratched(plates(4, seed=63))])
    p = detector.place_p_values(images)
    assert np.array_equal(detector.outlined(images, 0.05), p <= 0.05)
    assert detector.outlined(images, 0.05)[4:].any((1, 2)).all()
    assert p.min() >= 1 / 100
    assert p.max() <= 1


def test_a_rate_that_the_calibration_images_cannot_reach_is_refused_with_the_number_it_takes(
    detector: Detector,
) -> None:
    with pytest.raises(ModelError, match=r"rate of 0\.001 takes at least 999 calibration images and there are 99"):
        detector.outlined(plates(1, seed=1), 0.001)
    assert [images_for(level) for level in (0.5, 0.1, 0.05, 0.01, 0.005)] == [1, 9, 19, 99, 199]
    for level in (0.5, 0.1, 0.05, 0.01, 0.005):
        check_reachable(level, images_for(level))
        with pytest.raises(ModelError, match="ask for"):
            check_reachable(level, images_for(level) - 1)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_normal_image_has_an_outlined_place_with_at_most_the_level_however_places_depend(level: float) -> None:
    """Maps of 6 x 6 places that share most of their noise, in calibration sets of 39."""
    rng = np.random.default_rng(7)
    spread = rng.uniform(0.5, 2.0, (6, 6))  # some places vary more than others

    def maps(count: int) -> np.ndarray:
        return (rng.normal(size=(count, 1, 1)) + 0.5 * rng.normal(size=(count, 6, 6))) * spread

    trials = 4000
    outlined = sum(bool((place_p_values(np.sort(maps(39).max((1, 2))), maps(1)) <= level).any()) for _ in range(trials))
    assert abs(outlined / trials - level) <= 2.6 * np.sqrt(level * (1 - level) / trials)  # 99 %; 40 * level is whole


@pytest.mark.slow
def test_the_rates_hold_over_whole_fits_on_few_images() -> None:
    """30 detectors, each of 80 training, 40 validation and 39 calibration images of its own, on 40 fresh images each.

    Spreads that came from the calibration images would make far more false alarms than were asked for.
    """
    flagged, outlined = [], []
    for seed in range(30):
        detector = made(fitting_data(seed=10 + seed), ("own_place",), plates(39, seed=5000 + seed))
        fresh = plates(40, seed=6000 + seed)
        flagged.append(float((detector.score(fresh).p_value <= 0.1).mean()))
        outlined.append(float(detector.outlined(fresh, 0.1).any((1, 2)).mean()))
    for rates in (flagged, outlined):
        error = 3 * np.std(rates) / np.sqrt(len(rates))
        assert 0.1 - error <= np.mean(rates) <= 0.1 + error


def prepared(root: Path, calibration: int) -> None:
    """Prepared plates under `root`; `calibration` is the seed of those that rank."""
    data = root / "data" / "prepared"
    data.mkdir(parents=True)
    splits = {"train": (60, 80), "validation": (30, 81), "calibration": (39, calibration), "test": (4, 83)}
    for split, (count, seed) in splits.items():
        np.save(data / f"{split}.npy", plates(count, seed))
        np.save(data / f"{split}_labels.npy", np.full(count, -1))
    counts = {split: count for split, (count, _) in splits.items()}
    facts = {"name": "plates", "size": SIZE, "channels": 1, "class_names": [], "digest": "0" * 64, "counts": counts}
    (data / "dataset.json").write_text(json.dumps(facts))


def test_what_is_fitted_does_not_depend_on_calibration_images(project_root: Path, tmp_path: Path) -> None:
    members = ("own_place", "own_whole", "lite0_place", "lite0_whole")
    params = with_detector(load_params(project_root / "params.yaml"), members=members, size=SIZE)
    made = []
    for seed in (1, 2):
        root = tmp_path / str(seed)
        prepared(root, seed)
        made.append(load(calibrate(params, root)).arrays)
    one, other = made
    changed = {key for key in one if not np.array_equal(one[key], other[key])}
    assert changed == {"calibration.score", "calibration.place_maximum"}


def test_usual_places_keep_their_order_and_a_map_of_pixels_needs_it(detector: Detector) -> None:
    images = scratched(plates(12, seed=68), by=9)
    surprise = detector.place_surprise(detector.features(images))
    assert (surprise < 0).mean() > 0.5
    assert len(np.unique(surprise[surprise < 0])) > 0.9 * (surprise < 0).sum()
    marked = np.zeros((8, 8), bool)
    marked[1, 5:7] = True  # where the scratch is
    normal, defect = surprise[:, ~marked].ravel(), surprise[:, marked].ravel()
    assert auroc(normal, defect) > auroc(np.maximum(normal, 0), np.maximum(defect, 0)) + 0.02
    # neither p-values nor halves look at it
    scores = detector.score(images)
    assert scores.places is not None
    assert (scores.places >= 0).all()


def test_what_is_scored_and_then_mapped_is_read_once_and_never_mistaken_for_what_was_there_before(
    detector: Detector,
) -> None:
    images = plates(5, seed=69)
    features = detector.features(images)
    assert detector.features(images) is features
    assert detector.features(images.copy()) is not features
    before = detector.surprise_map(images)
    images[:, :, 12, 40:50] = 255  # the same array with other pixels
    np.testing.assert_array_equal(detector.surprise_map(images), detector.surprise_map(images.copy()))
    assert not np.array_equal(detector.surprise_map(images), before)


def test_a_colour_that_hardly_ever_changes_does_not_blind_a_density() -> None:
    """Grey pictures with three channels; two of the training images have a cast of six levels in a corner."""

    def grey(count: int, seed: int) -> Pixels:
        return np.repeat(plates(count, seed), 3, 1)

    train = grey(160, 1)
    train[140:142, 0, 20:40, 20:40] += 6
    parts = [FeatureCache(images, Models(), size=SIZE) for images in (train, grey(20, 2), grey(40, 3))]
    data = replace(fitting_data(channels=3), train=parts[0], sample=parts[1], validation=parts[2])
    fitted = local_map.fit_local(data, sources.OWN_ALONE, "place")
    good, bad = (
        local_map.local_score(FeatureCache(images, Models(), size=SIZE), sources.OWN_ALONE, fitted)
        for images in (grey(20, 5), scratched(grey(20, 6), by=25))
    )
    assert auroc(good, bad) > 0.95


@pytest.mark.parametrize(("name", "source"), [("own_place", sources.OWN), ("lite0_place", sources.LITE0)])
def test_validation_images_are_fitted_on_and_show_what_new_images_show(name: str, source: sources.Source) -> None:
    if source.missing():
        pytest.skip("no weights of EfficientNet-Lite0 here")
    data = fitting_data()
    fitted = fit_member(find_member(name), data)
    kept = local_map.local_map(data.validation, source, fitted).std()
    seen, new = (
        local_map.local_map(FeatureCache(plates(40, seed), Models(), size=SIZE), source, fitted).std()
        for seed in (2, 7)
    )
    # an image that was fitted on is nearer to the means of its places; left out of them it is as far as a new one
    assert kept == pytest.approx(new, rel=0.05 if source is sources.OWN else 0.2)
    assert seen < 0.7 * kept


@pytest.mark.parametrize("grouped", [False, True])
def test_where_places_share_a_gaussian_or_images_a_scene_validation_images_only_shape_the_map(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr(local_map, "CELLS", 4)
    data = replace(fitting_data(), grouped=grouped)
    fitted = fit_member(find_member("own_place"), data)
    kept, again = (
        local_map.local_map(cache, sources.OWN, fitted)
        for cache in (data.validation, FeatureCache(plates(40, 2), Models(), size=SIZE))
    )
    np.testing.assert_allclose(kept, again, atol=1e-4)


def test_black_images_score_finitely_and_a_spot_on_one_is_found() -> None:
    black = np.zeros((40, 1, SIZE, SIZE), np.uint8)
    data = fitting_data()
    cache = FeatureCache(black, Models(), size=SIZE)
    fitted = find_member("own_place").fit(replace(data, train=cache, sample=cache, validation=cache))  # type: ignore[misc]
    spot = black[:2].copy()
    spot[:, :, 30:34, 30:34] = 200
    score = find_member("own_place").score(FeatureCache(np.concatenate([black[:1], spot]), Models(), size=SIZE), fitted)
    assert np.isfinite(score).all()
    assert (score[1:] > score[0]).all()


def test_images_too_small_for_places_are_refused() -> None:
    small = FeatureCache(np.zeros((9, 1, 28, 28), np.uint8), Models(), size=28)
    data = replace(fitting_data(), train=small, sample=small, validation=small)
    with pytest.raises(
        ModelError, match=r"own_place wants images of at least 64 pixels a side and detector\.size is 28"
    ):
        fit_member(find_member("own_place"), data)


@pytest.mark.parametrize("name", ["own_whole", "lite0_whole"])
def test_an_image_that_is_darker_everywhere_is_found_as_a_whole(name: str) -> None:
    data = fitting_data()
    fitted = fit_member(find_member(name), data)
    images = plates(20, seed=65)
    plain, dark, rough = (
        find_member(name).score(FeatureCache(x, Models(), size=SIZE), fitted)
        for x in (images, (images * 0.8).astype(np.uint8), images ^ 4)
    )
    assert np.median(dark) > plain.max()
    assert np.median(rough) > plain.max()


def test_neighbours_share_a_gaussian_on_a_fine_grid_and_nothing_moves() -> None:
    import torch

    features = torch.arange(2 * 70 * 70, dtype=torch.float32).reshape(2, 70, 70, 1)
    cells = local_map.to_cells(features)
    assert cells.shape == (2 * 9, 24 * 24, 1)  # 70 places a side: squares of 3 x 3 share a Gaussian
    back = local_map.from_cells(cells[..., 0], (2, 70, 70))
    torch.testing.assert_close(back, features[..., 0])


def test_a_map_that_is_higher_everywhere_says_the_same() -> None:
    import torch

    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 9, 9)))
    higher = maps + torch.tensor([0.0, 5.0, -2.0])[:, None, None]
    torch.testing.assert_close(local_map.less_median(higher), local_map.less_median(maps))
    assert (local_map.less_median(maps).flatten(1).median(1).values == 0).all()


def test_rough_images_do_not_hide_a_scratch_on_a_smooth_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 2 to 12 grey levels; the rough ones are farther from the mean at every place."""
    rng = np.random.default_rng(5)

    def plates_of_all_kinds(count: int) -> Pixels:
        noise = rng.normal(size=(count, 1, SIZE, SIZE)) * rng.uniform(2, 12, (count, 1, 1, 1))
        return np.clip(120 + noise, 0, 255).astype(np.uint8)

    parts = [FeatureCache(plates_of_all_kinds(count), Models(), size=SIZE) for count in (60, 20, 40)]
    train, sample, validation = parts
    data = replace(fitting_data(), train=train, sample=sample, validation=validation)
    good = plates_of_all_kinds(60)
    bad = scratched(np.clip(120 + rng.normal(0, 3, (60, 1, SIZE, SIZE)), 0, 255).astype(np.uint8), by=16)

    def found() -> float:
        fresh = replace(data, validation=FeatureCache(validation.source, Models(), size=SIZE))
        fitted = fit_member(find_member("own_place"), fresh)
        scores = [find_member("own_place").score(FeatureCache(x, Models(), size=SIZE), fitted) for x in (good, bad)]
        return auroc(*scores)

    assert found() > 0.9
    monkeypatch.setattr(local_map, "less_median", lambda maps: maps)
    assert found() < 0.7


def checkered(count: int, seed: int) -> Pixels:
    """64 squares, each light or dark: in every picture the upper half and the lower half show the same."""
    rng = np.random.default_rng(seed)
    half = rng.choice([-15, 15], (count, 1, 4, 8))
    squares = np.kron(np.concatenate([half, half], 2), np.ones((SIZE // 8, SIZE // 8), int))
    return np.clip(120 + squares + rng.normal(0, 4, squares.shape), 0, 255).astype(np.uint8)


def test_what_is_usual_in_another_picture_is_found_in_this_one() -> None:
    caches = [FeatureCache(checkered(count, count), Models(), size=SIZE) for count in (320, 40, 60)]
    data = replace(fitting_data(), train=caches[0], sample=caches[1], validation=caches[2])
    good, bad = checkered(40, 7), checkered(40, 8)
    for number, image in enumerate(bad):  # one square is dark where its counterpart is light, or light where it is dark
        y, x = np.divmod(number, 8)
        square = (slice(None), slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
        image[square] = 240 - image[square]

    def found(source: sources.Source) -> float:
        fresh = replace(data, validation=FeatureCache(caches[2].source, Models(), size=SIZE))
        fitted = local_map.fit_local(fresh, source, "place")
        # the code is among what was fitted: a detector that was calibrated without one scores as it did
        scores = [local_map.local_score(FeatureCache(x, Models(), size=SIZE), sources.OWN, fitted) for x in (good, bad)]
        return auroc(*scores)

    assert found(sources.OWN) > 0.8
    assert found(replace(sources.OWN, of_picture=None)) < 0.7


@pytest.mark.parametrize("name", ["own_place", "lite0_place"])
def test_a_detector_whose_maps_were_not_taken_less_their_median_is_refused(name: str) -> None:
    made_now = made(fitting_data(), (name,), plates(19, seed=50))
    arrays = {key.replace("above_median", "standard"): value for key, value in made_now.arrays.items()}
    if name == "lite0_place":  # its places were four times as many
        for key in (f"{name}.place.mean", f"{name}.place.whitening"):
            arrays[key] = np.repeat(arrays[key], 4, 0)
    with pytest.raises(ModelError, match=rf"{name} cannot score .* calibrate it again"):
        Detector(made_now.facts, arrays, Models()).score(plates(2, seed=1))


def test_the_mean_of_the_top_is_over_one_place_in_a_hundred() -> None:
    maps = np.arange(1024, dtype=np.float64).reshape(1, 32, 32)
    largest, top = map_rarity.statistics(maps)
    assert largest[0] == 1023
    assert top[0] == np.arange(1014, 1024).mean()


def test_the_map_of_a_report_is_that_of_the_local_members_and_words_name_the_half(detector: Detector) -> None:
    images = scratched(plates(6, seed=64))  # the scratch is in the upper half, to the right
    np.testing.assert_array_equal(
        detector.surprise_map(images), detector.place_surprise(detector.features(images)).astype(np.float32)
    )
    scores = detector.score(images)
    assert scores.places is not None
    assert (scores.places[:, 0] > scores.places[:, 1]).all()
    assert "a small part of it is not as it is at that place in normal images" in detector.explain(scores, 0).lower()


def test_calibrate_makes_a_detector_of_photographs_and_says_which_rate_is_out_of_reach(
    project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path, calibration=82)
    params = with_detector(load_params(project_root / "params.yaml"), members=("own_place",), size=SIZE)
    calibrate(params, tmp_path)
    assert "a false-alarm rate of 0.01 takes 99 calibration images and there are 39" in capsys.readouterr().err
    loaded = load(tmp_path / "models" / "detector")
    assert loaded.place_maxima is not None
    assert len(loaded.place_maxima) == 39
    images = np.load(tmp_path / "data" / "prepared" / "calibration.npy")
    largest = np.sort(loaded.surprise_map(images).max((1, 2)))
    np.testing.assert_allclose(largest, loaded.place_maxima, rtol=1e-4, atol=1e-4)
    assert loaded.outlined(scratched(plates(3, seed=90)), 0.05).any((1, 2)).all()


def test_the_network_reads_an_image_once_for_all_of_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_maps = [], lite0.lite0_maps

    def counted(images: Tensor, weights: Arrays) -> list[Tensor]:
        read.append(len(images))
        return read_maps(images, weights)

    monkeypatch.setattr(sources, "lite0_maps", counted)
    detector = made(fitting_data(), ("lite0_place", "lite0_whole"), plates(19, seed=53))
    # 80 training images, once for the principal components and once for the rest; 40 for validation, 19 to rank
    assert sum(read) == 2 * 80 + 40 + 19
    read.clear()
    images = plates(6, seed=66)
    detector.score(images)
    detector.place_p_values(images)
    assert sum(read) == 6


def test_maps_of_different_strides_are_one_map() -> None:
    detector = made(fitting_data(), ("own_place", "lite0_place"), plates(19, seed=54))
    features = detector.features(scratched(plates(3, seed=67)))
    own, pretrained = (
        member.places(features, detector.fitted(member.name)) for member in detector.members if member.places
    )
    assert own.shape == pretrained.shape == (3, 8, 8)
    np.testing.assert_array_equal(detector.place_surprise(features), np.maximum(own, pretrained))


def test_between_places_a_map_is_interpolated_and_exceeds_no_place() -> None:
    coarse = np.random.default_rng(3).normal(size=(2, 4, 5))
    fine = map_rarity.interpolated(coarse, 2.0)
    assert fine.shape == (2, 8, 10)
    np.testing.assert_allclose(fine[:, 0, 0], coarse[:, 0, 0])  # a corner has no neighbours beyond
    np.testing.assert_allclose(fine[:, 1, 0], 0.75 * coarse[:, 0, 0] + 0.25 * coarse[:, 1, 0])
    assert (fine.max((1, 2)) <= coarse.max((1, 2))).all()
    np.testing.assert_array_equal(map_rarity.interpolated(coarse, 1.0), coarse)
