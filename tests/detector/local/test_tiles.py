"""Tiles: each place once, the same features as the whole picture, small defects in large pictures, and the rates."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densitywatch.arrays import Arrays, Pixels
from densitywatch.detector.calibrate import calibrate, fit_members
from densitywatch.detector.detector import Detector, load
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.local.local_map import sharing
from densitywatch.detector.local.map_rarity import enlarged
from densitywatch.detector.local.sources import OWN
from densitywatch.detector.local.tiles import owned, read_in_tiles, starts
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import find_member
from densitywatch.errors import ModelError, ParamsError
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import Params, load_params

CONTRAST = 90
"""Grey levels by which a scratch is brighter."""


def textured(count: int, seed: int, shape: tuple[int, int]) -> Pixels:
    """Coarse grain of random strength on a grey ground, as of cast metal, (count, 1, H, W)."""
    rng = np.random.default_rng(seed)
    height, width = shape
    fine = rng.normal(0, 1, (count, 1, height, width)).astype(np.float32)
    grain = F.avg_pool2d(F.pad(torch.from_numpy(fine), (1, 1, 1, 1), mode="replicate"), 3, 1).numpy()
    level, strength = rng.uniform(100, 140, (count, 1, 1, 1)), rng.uniform(20, 30, (count, 1, 1, 1))
    return np.clip(level + strength * grain, 0, 255).astype(np.uint8)


def scratched(images: Pixels, seed: int) -> tuple[Pixels, list[tuple[int, int]]]:
    """Each with a bright line of 8 pixels, one wide, somewhere, and where: (top, left)."""
    rng, images = np.random.default_rng(seed), images.copy()
    places = []
    for image in images:
        top, left = (int(rng.integers(16, side - 24)) for side in image.shape[1:])
        part = image[:, top : top + 8, left]
        part[:] = np.clip(part.astype(int) + CONTRAST, 0, 255)
        places.append((top, left))
    return images, places


def made(
    counts: tuple[int, int, int],
    seed: int,
    shape: tuple[int, int],
    size: int,
    tiles: int | None,
    members: tuple[str, ...] = ("own_place",),
) -> Detector:
    """A detector fitted on `counts` training, validation and calibration images that are read at `size` and, with
    `tiles`, in tiles."""
    train, validation, calibration = (textured(count, 10 * seed + i, shape) for i, count in enumerate(counts))
    models = Models()
    quarter = len(train) // 4
    data = FittingData(
        train=FeatureCache(train[quarter:], models, size=size),
        sample=FeatureCache(train[:quarter], models, size=size),
        all_train=train,
        validation=FeatureCache(validation, models, size=size),
        seed=0,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
        tiles=tiles,
    )
    facts = {
        "size": list(shape),
        "reading": size,
        "channels": 1,
        "resize": "stretch",
        "false_discovery_rate": 0.1,
        "false_alarm_rate": 0.05,
        "class_names": [],
        "density": None,
        "members": members,
    }
    arrays: Arrays = fit_members([find_member(name) for name in members], data)
    bare = Detector(facts, arrays | {"calibration.score": np.zeros(1)}, models)
    features = bare.features(calibration)
    arrays["calibration.score"] = np.sort(bare.combine(bare.member_scores(features)))
    arrays["calibration.place_maximum"] = np.sort(bare.place_surprise(features).max((1, 2)))
    return Detector(facts, arrays, models)


@pytest.mark.parametrize("length", [1, 5, 8, 9, 31, 63, 250, 1250])
@pytest.mark.parametrize("tile", [8, 32])
def test_tiles_give_each_place_once_and_overlap_by_a_quarter(length: int, tile: int) -> None:
    parts = owned(length, tile)
    places = [place for _, first, last in parts for place in range(first, last)]
    assert places == list(range(length))
    assert all(start <= first and last <= min(length, start + tile) for start, first, last in parts)
    first = starts(length, tile)
    assert all(b - a <= 0.75 * tile for a, b in pairwise(first))
    assert first[-1] + tile == length or length <= tile


@pytest.mark.parametrize("shape", [(64, 64), (40, 300), (203, 71), (64, 1000)])
def test_a_picture_of_any_shape_comes_together_from_its_tiles(shape: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sides: list[tuple[int, int]] = []

    def means(part: torch.Tensor) -> torch.Tensor:
        sides.append((part.shape[2], part.shape[3]))
        return F.avg_pool2d(part.float(), 8)

    found = read_in_tiles(images, 64, 8, means)
    filled = F.pad(images.float(), (0, -shape[1] % 8, 0, -shape[0] % 8), mode="replicate")
    torch.testing.assert_close(found, F.avg_pool2d(filled, 8))
    assert max(max(side) for side in sides) <= 64  # what is read at once does not grow with the picture


def test_features_in_tiles_are_those_of_the_whole_picture() -> None:
    images = torch.from_numpy(textured(1, 3, (256, 640)))
    whole = OWN.read(images, {})
    in_tiles = read_in_tiles(images, 256, 8, lambda part: OWN.read(part, {}))
    assert in_tiles.shape == whole.shape == (1, 252, 32, 80)
    apart = (in_tiles - whole).abs().mean((0, 1, 2))
    assert float(apart.max()) < 0.05  # near the seams the coarsest filters see the tile's edge
    assert float(apart.median()) < 1e-3


def test_squares_of_places_share_a_gaussian_when_there_are_more_than_1024() -> None:
    assert sharing(32, 32) == 1
    assert sharing(63, 250) == 4
    assert sharing(13, 1250) == 5


def test_a_coarse_map_loses_no_value_on_a_finer_grid() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 5, 7))
    fine = enlarged(maps, (12, 7))
    assert fine.shape == (3, 12, 7)
    for one, other in zip(maps, fine, strict=True):
        assert set(one.ravel()) == set(other.ravel())


def test_a_scratch_of_8_pixels_in_a_large_picture_is_found_with_tiles_and_not_without() -> None:
    shape = (200, 800)
    good, (bad, places) = textured(12, 90, shape), scratched(textured(12, 91, shape), 92)
    found: dict[int | None, float] = {}
    for tiles in (256, None):
        detector = made((16, 12, 1), 1, shape, 64, tiles)
        features = detector.features(bad)
        normal, odd = (detector.combine(detector.member_scores(each)) for each in (detector.features(good), features))
        found[tiles] = auroc(normal, odd)
        if tiles is not None:  # the map has a place for every 8 x 8 pixels of the picture
            surprise = detector.place_surprise(features)
            assert surprise.shape == (12, 25, 100)
            for each, (top, left) in zip(surprise, places, strict=True):
                row, column = np.unravel_index(each.argmax(), each.shape)
                assert abs(8 * int(row) + 4 - top - 4) <= 16
                assert abs(8 * int(column) + 4 - left) <= 16
    assert found[256] >= 0.95
    assert found[None] <= 0.7


@pytest.mark.slow
def test_the_rates_hold_with_tiles() -> None:
    """Twelve detectors, each fitted and calibrated on images of its own, on 40 fresh pictures each.

    The largest place of any tile is ranked among the largest places of calibration pictures.
    """
    flagged, outlined = [], []
    for seed in range(12):
        detector = made((24, 16, 39), 100 * seed, (64, 136), 64, 64)
        fresh = textured(40, 9000 + seed, (64, 136))
        flagged.append(float((detector.score(fresh).p_value <= 0.1).mean()))
        outlined.append(float(detector.outlined(fresh, 0.1).any((1, 2)).mean()))
    for rates in (flagged, outlined):
        error = 3 * np.std(rates) / np.sqrt(len(rates))
        assert 0.1 - error <= np.mean(rates) <= 0.1 + error


@pytest.mark.parametrize("tiles", [64, None])
def test_maps_of_every_source_have_a_place_for_8_pixels_and_the_same_one(tiles: int | None) -> None:
    """Features at stride 16 have a row and a column more where the sides are no multiples of 16."""
    shape = (104, 136)
    detector = made((12, 8, 9), 7, shape, 72, tiles, ("own_place", "lite0_place"))
    features = detector.features(textured(2, 60, shape))
    own, pretrained = (m.places(features, detector.fitted(m.name)) for m in detector.members if m.places)
    assert own.shape == pretrained.shape == ((2, 13, 17) if tiles else (2, 9, 9))
    np.testing.assert_array_equal(detector.place_surprise(features), np.maximum(own, pretrained))


def prepared(root: Path, shape: tuple[int, int], counts: dict[str, int]) -> None:
    """A prepared dataset of textured pictures under `root`."""
    data = root / "data" / "prepared"
    data.mkdir(parents=True)
    for seed, (split, count) in enumerate(counts.items()):
        np.save(data / f"{split}.npy", textured(count, 80 + seed, shape))
        np.save(data / f"{split}_labels.npy", np.full(count, -1))
    facts = {
        "name": "castings",
        "size": list(shape),
        "channels": 1,
        "class_names": [],
        "digest": "0" * 64,
        "counts": counts,
    }
    (data / "dataset.json").write_text(json.dumps(facts))


def wide(project_root: Path, **detector: object) -> Params:
    """The default params for pictures of 64 x 200."""
    params = load_params(project_root / "params.yaml")
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"size": (64, 200), "resize": "stretch"}),
            "detector": params.detector.model_copy(update={"members": ("own_place",), "size": 64, **detector}),
        }
    )


def test_calibrate_makes_a_detector_with_tiles_that_is_whole_when_loaded(project_root: Path, tmp_path: Path) -> None:
    prepared(tmp_path, (64, 200), {"train": 40, "validation": 20, "calibration": 19, "gate": 4, "test": 4})
    calibrate(wide(project_root, tiles=64), tmp_path)
    detector = load(tmp_path / "models" / "detector")
    assert detector.size == (64, 200)
    calibration = np.load(tmp_path / "data/prepared/calibration.npy")
    assert detector.surprise_map(calibration).shape == (19, 8, 25)
    assert detector.place_maxima is not None
    largest = np.sort(detector.surprise_map(calibration).max((1, 2)))
    np.testing.assert_allclose(largest, detector.place_maxima, rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match=r"takes uint8 images \(B, 1, 64, 200\), not uint8 \(1, 1, 64, 64\)"):
        detector.score(np.zeros((1, 1, 64, 64), np.uint8))


def test_a_detector_without_places_refuses_tiles(project_root: Path, tmp_path: Path) -> None:
    prepared(tmp_path, (64, 200), {"train": 8, "validation": 4, "calibration": 4, "gate": 4, "test": 4})
    with pytest.raises(ParamsError, match=r"detector\.tiles: no member of the detector reads tiles; name one"):
        calibrate(wide(project_root, tiles=64, members=("composition",)), tmp_path)
