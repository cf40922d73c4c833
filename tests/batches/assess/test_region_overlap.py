"""AUROC of pixels and PRO against cases that are computed by hand, and against Bergmann's definition step by step."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from densitywatch.arrays import Floats
from densitywatch.batches.assess import region_overlap
from densitywatch.batches.assess.region_overlap import marks_of, pixel_auroc, thresholds
from densitywatch.outlier_benchmark.auroc import auroc

MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=np.bool_)
"""A region of four pixels, one of a single pixel, and ten normal pixels."""


def of(values: Floats, masks: list[np.ndarray | None]) -> region_overlap.Marks:
    return marks_of(values, masks, thresholds(values))


def test_a_map_that_is_the_mask_has_an_overlap_and_an_auroc_of_1() -> None:
    found = of(MASK[None].astype(float), [MASK])
    assert found.regions == 2
    assert pixel_auroc(found) == 1.0
    assert region_overlap.region_overlap(found) == 1.0


def test_a_map_that_finds_one_of_two_regions_has_half_of_the_overlap_whatever_their_sizes() -> None:
    large, small = MASK.copy(), MASK.copy()
    large[2, 4], small[:2] = False, False
    # the other region is as unusual as the normal pixels: from (0, 1/2) the curve runs straight to (1, 1)
    wanted = (0.5 + (0.5 + 0.5 * 0.3)) / 2
    for seen in (large, small):
        assert region_overlap.region_overlap(of(seen[None].astype(float), [MASK])) == pytest.approx(wanted)
    assert pixel_auroc(of(large[None].astype(float), [MASK])) == pytest.approx((4 * 1.0 + 1 * 0.5) / 5)
    assert pixel_auroc(of(small[None].astype(float), [MASK])) == pytest.approx((1 * 1.0 + 4 * 0.5) / 5)


def test_a_constant_map_is_chance() -> None:
    found = of(np.zeros((1, 3, 5)), [MASK])
    assert pixel_auroc(found) == 0.5
    assert region_overlap.region_overlap(found) == pytest.approx(0.15)  # the mean of 0 to 0.3 on the diagonal


def test_only_false_positives_up_to_30_percent_count() -> None:
    # three of ten normal pixels lie above both regions: nothing is found until then
    values = MASK * 1.0
    values[0, 2:5] = 2.0
    found = of(values[None], [MASK])
    assert region_overlap.region_overlap(found) == 0.0
    assert pixel_auroc(found) == pytest.approx(0.7)


def test_good_images_count_as_normal_pixels() -> None:
    good = np.full((3, 5), 2.0)
    found = of(np.stack([good, MASK * 1.0]), [None, MASK])
    assert found.normal.sum() == 25
    assert pixel_auroc(found) == pytest.approx(10 / 25)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert of(np.zeros((1, 3, 3)), [np.eye(3, dtype=np.bool_)]).regions == 1


def test_without_a_marked_pixel_there_is_no_figure() -> None:
    found = of(np.zeros((1, 3, 5)), [np.zeros((3, 5), dtype=np.bool_)])
    assert pixel_auroc(found) is None
    assert region_overlap.region_overlap(found) is None


def by_definition(values: Floats, masks: np.ndarray, upto: float) -> float:
    """PRO as Bergmann et al. write it: threshold by threshold, region by region."""
    x, y = [0.0], [0.0]
    for threshold in np.unique(values)[::-1]:
        seen = values >= threshold
        overlaps = []
        for mask, image in zip(masks, seen, strict=True):
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [image[regions == number].mean() for number in range(1, count + 1)]
        x.append(float(seen[~masks].mean()))
        y.append(float(np.mean(overlaps)))
    end = next(i for i, share in enumerate(x) if share >= upto)
    part = (upto - x[end - 1]) / (x[end] - x[end - 1])
    last = y[end - 1] + part * (y[end] - y[end - 1])
    return float(np.trapezoid([*y[:end], last], [*x[:end], upto]) / upto)


@pytest.mark.parametrize("seed", range(5))
def test_one_pass_over_weighted_pixels_equals_the_definition_and_the_auroc_of_all_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(6, 24, 24)), (0, 2, 2)) > 0.2
    values = np.round(rng.normal(size=masks.shape) + 0.7 * masks, 1)  # with ties
    found = of(values, list(masks))
    assert region_overlap.region_overlap(found) == pytest.approx(by_definition(values, masks, 0.3))
    assert pixel_auroc(found) == pytest.approx(auroc(values[~masks], values[masks]))


def test_thresholds_that_are_too_many_are_thinned_and_hardly_change_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(9)
    masks = ndimage.gaussian_filter(rng.normal(size=(4, 64, 64)), (0, 3, 3)) > 0.15
    values = rng.normal(size=masks.shape) + masks
    exact = of(values, list(masks))
    monkeypatch.setattr(region_overlap, "THRESHOLDS", 1000)
    thinned = of(values, list(masks))
    assert len(exact.normal) == values.size
    assert len(thinned.normal) == 1000
    assert pixel_auroc(thinned) == pytest.approx(pixel_auroc(exact), abs=1e-3)
    assert region_overlap.region_overlap(thinned) == pytest.approx(region_overlap.region_overlap(exact), abs=3e-3)


def test_marks_of_two_folders_add_up() -> None:
    values = np.stack([MASK * 1.0, MASK * 0.5])
    steps = thresholds(values)
    both = marks_of(values[:1], [MASK], steps) + marks_of(values[1:], [MASK], steps)
    together = marks_of(values, [MASK, MASK], steps)
    np.testing.assert_allclose(both.overlap, together.overlap)
    assert both.regions == together.regions == 4


def test_a_map_is_enlarged_to_the_size_of_the_mask_and_keeps_its_ends() -> None:
    small = np.array([[[0.0, 1.0], [2.0, 3.0]]], np.float32)
    large = region_overlap.enlarged(small, 8)
    assert large.shape == (1, 8, 8)
    assert (large.min(), large.max()) == (0.0, 3.0)
    assert large.mean() == pytest.approx(1.5)
