"""The few numbers that tell what a picture shows as a whole."""

from __future__ import annotations

import numpy as np
import torch

from densitywatch.detector.local import picture_code


def maps(count: int, kinds: int = 3, side: int = 16) -> torch.Tensor:
    """Maps of five features that are mixtures of a few patterns, with noise."""
    patterns = np.random.default_rng(9).normal(size=(kinds, 5, side, side))
    rng = np.random.default_rng(count)
    mixed = np.einsum("bk,kdhw->bdhw", rng.normal(size=(count, kinds)), patterns)
    return torch.tensor(mixed + rng.normal(size=mixed.shape) * 0.01).float()


def test_codes_of_training_images_have_variance_1_and_no_correlation() -> None:
    x = maps(200)
    fitted = picture_code.fit_code(picture_code.part_means(x).numpy())
    codes = picture_code.code_of(x, fitted).double().numpy()
    assert codes.shape[1] == 3, "what hardly changes is no part of the code"
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(codes, rowvar=False, bias=True), np.eye(3), atol=1e-3)


def test_a_code_tells_the_mixture_of_a_new_picture() -> None:
    train, new = maps(200), maps(30)
    fitted = picture_code.fit_code(picture_code.part_means(train).numpy())
    means, codes = picture_code.part_means(new).numpy(), picture_code.code_of(new, fitted).numpy()
    guessed, *_ = np.linalg.lstsq(np.c_[codes, np.ones(len(codes))], means, rcond=None)
    left = means - np.c_[codes, np.ones(len(codes))] @ guessed
    assert left.var() < 1e-3 * means.var()


def test_there_is_a_number_for_every_eighth_image_and_64_at_most() -> None:
    def noise(count: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(count, 320)).astype(np.float32)

    for count, numbers in ((16, 2), (100, 12), (1000, 64)):
        assert picture_code.fit_code(noise(count))["axes"].shape == (320, numbers)
    assert picture_code.fit_code(noise(7)) == {}


def test_equal_pictures_have_no_code() -> None:
    assert picture_code.fit_code(np.ones((80, 40), np.float32)) == {}


def test_a_small_picture_has_fewer_parts() -> None:
    assert picture_code.part_means(maps(2, side=4)).shape == (2, 5 * 16)
