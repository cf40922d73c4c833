"""Statistics of images without a network."""

from __future__ import annotations

import numpy as np
import pytest

from densitywatch.detector.image_statistics import cell_sums, composition_statistics, gradient_histograms, webp_nats
from tests.small_project import bars


def test_composition_hardly_knows_where_things_lie_and_gradients_do() -> None:
    images, _ = bars(50, 3)
    moved = images[..., ::-1].copy()
    spread = composition_statistics(images).std(0) + 1e-6
    assert (np.abs(composition_statistics(moved) - composition_statistics(images)) / spread).mean() < 0.3
    gradients = gradient_histograms(images)
    assert np.abs(gradient_histograms(moved) - gradients).mean() > 0.3 * gradients.std()


def test_features_take_small_and_colour_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 5), dtype=np.uint8)
    assert np.isfinite(composition_statistics(images)).all()
    assert np.isfinite(gradient_histograms(images)).all()
    assert (webp_nats(images) > 0).all()


@pytest.mark.parametrize("size", [5, 20, 28, 31, 32, 40, 48])
def test_cells_cover_the_whole_image_in_equal_parts(size: int) -> None:
    grid = min(7, size)
    np.testing.assert_allclose(cell_sums(np.ones((2, size, size), np.float32), grid), (size / grid) ** 2, rtol=1e-5)
    maps = np.random.default_rng(0).random((3, size, size)).astype(np.float32)
    np.testing.assert_allclose(cell_sums(maps, grid).sum((1, 2)), maps.sum((1, 2)), rtol=1e-5)


def test_a_pixel_on_the_edge_of_two_cells_counts_for_both_by_its_shares() -> None:
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 2, 0] = 8.0  # two cells of 2.5 rows each: half of row 2 lies in either
    np.testing.assert_allclose(cell_sums(maps, 2)[0], [[4.0, 0.0], [4.0, 0.0]])


def test_cells_that_fit_are_plain_blocks() -> None:
    maps = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(cell_sums(maps, 7), maps.reshape(3, 7, 4, 7, 4).sum((2, 4)), rtol=1e-5)


@pytest.mark.parametrize("size", [20, 32, 40, 48])
def test_an_edge_in_any_corner_is_in_the_histograms(size: int) -> None:
    for row in (2, size - 3):
        for column in (2, size - 3):
            images = np.zeros((1, 1, size, size), np.uint8)
            images[0, 0, row, column] = 255
            # the four neighbours of a bright pixel have a gradient of length 1
            assert np.square(gradient_histograms(images)).sum() == pytest.approx(4.0, rel=1e-5)


def test_histograms_are_those_of_a_plain_count() -> None:
    image = np.random.default_rng(0).integers(0, 256, (14, 14)).astype(np.uint8)
    x, expected = image / 255.0, np.zeros((7, 7, 8))
    for i in range(14):
        for j in range(14):
            across = x[i, j + 1] - x[i, j - 1] if 0 < j < 13 else 0.0
            down = x[i + 1, j] - x[i - 1, j] if 0 < i < 13 else 0.0
            angle = (np.arctan2(down, across) / (2 * np.pi) + 0.5) * 8
            k, share, length = int(angle // 1), angle % 1, np.hypot(across, down)
            expected[i // 2, j // 2, k % 8] += (1 - share) * length
            expected[i // 2, j // 2, (k + 1) % 8] += share * length
    np.testing.assert_allclose(gradient_histograms(image[None, None])[0], np.sqrt(expected).ravel(), atol=1e-4)
