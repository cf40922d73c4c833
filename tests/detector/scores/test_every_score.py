"""Every score by the same demands."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.detector.calibrate import fit_member, fitting_data
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import MEMBERS, find_member
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params
from tests.small_project import bars

SMALL = sorted(name for name, member in MEMBERS.items() if member.smallest == 1)
"""Those that read images as small as bars; the others have demands of their own in tests/detector/local."""


@pytest.fixture(scope="module")
def fitted_members(declared_project: tuple[Path, Params]) -> Callable[[str], tuple[dict[str, Any], Models]]:
    """Each member fitted once, and the models that it has read, which no other member reads."""

    @cache
    def fitted(name: str) -> tuple[dict[str, Any], Models]:
        what, models = fitting_data(declared_project[1], declared_project[0])
        return fit_member(find_member(name), what), models

    return fitted


@pytest.mark.parametrize("name", SMALL)
def test_every_score_gives_one_finite_number_an_image_and_the_same_one_in_any_batch(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    images, _ = bars(12, seed=77)
    whole = member.score(FeatureCache(images, models), fitted)
    assert whole.shape == (12,)
    assert np.isfinite(whole).all()
    parts = np.concatenate([member.score(FeatureCache(images[i : i + 5], models), fitted) for i in range(0, 12, 5)])
    assert np.allclose(whole, parts, rtol=1e-3, atol=2e-3)
    assert member.score.__doc__, "a score names its source"
    assert any(year in str(member.score.__doc__) for year in ("19", "20")) or name in {
        "pixel_mixture",
        "pixel_arrangement",
        "surprise_arrangement",
        "transformation_ratio",
    }


@pytest.mark.parametrize("name", SMALL)
def test_a_member_reads_the_models_that_it_names_and_no_others(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    member.score(FeatureCache(bars(3, seed=56)[0], models), fitted)
    assert set(models.used) == set(member.reads)


@pytest.mark.parametrize("name", SMALL)
def test_every_score_survives_flat_and_noisy_images(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, 14, 14), dtype=np.uint8)
    images = np.concatenate([np.zeros_like(noise), np.full_like(noise, 255), noise])
    assert np.isfinite(member.score(FeatureCache(images, models), fitted)).all()


def test_members_read_the_model_that_lies_in_the_folder(given: tuple[FittingData, Models]) -> None:
    what, models = given
    images = what.validation.images[:5]
    model = load_model_folder(models.folders[0] / "pixelcnn")
    with torch.no_grad():
        wanted = -model.log_prob(torch.from_numpy(images)).numpy()
    assert np.allclose(find_member("pixelcnn_nll").score(FeatureCache(images, models), {}), wanted, rtol=1e-5)
