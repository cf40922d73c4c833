"""What members read from images and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.gaussian_mixture import principal_axes
from densitywatch.detector.scores.pixels import nearest_neighbours
from densitywatch.errors import ModelError
from tests.small_project import bars


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs the model 'pixelcnn'"):
        FeatureCache(bars(2, 0)[0], Models(tmp_path)).nll("pixelcnn")


def test_scores_of_raw_pixels_see_at_most_32_a_side_and_ask_for_no_covariance_of_large_images() -> None:
    rng = np.random.default_rng(0)
    models = Models(loaded={})
    train, others = (
        FeatureCache(rng.integers(0, 256, (count, 3, 128, 128), dtype=np.uint8), models, size=128) for count in (70, 5)
    )
    assert train.flat_pixels.shape == (70, 3 * 32 * 32)
    axes = principal_axes(train.flat_pixels, 4, seed=1)
    fitted = {
        "mean": train.flat_pixels.mean(0),
        "axes": axes,
        "stored": (train.flat_pixels - train.flat_pixels.mean(0)) @ axes.T,
    }
    assert np.isfinite(nearest_neighbours.score(others, fitted)).all()
