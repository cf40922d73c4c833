"""Statistics of images without a network."""

from __future__ import annotations

import numpy as np

from densitywatch.detector.image_statistics import composition_statistics, gradient_histograms, webp_nats
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
