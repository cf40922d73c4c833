"""Declared transformations and the judge that is trained to tell them."""

from __future__ import annotations

import numpy as np
import torch

from densitywatch.detector.scores.transformations import (
    TRANSFORMATIONS,
    fit_transformation_judge,
    load_transformation_judge,
    transformed,
)
from densitywatch.outlier_benchmark.auroc import auroc
from tests.small_project import bars


def test_declared_words_stand_for_the_transformations_they_name() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)[..., :3]
    flips = transformed(x, ("flip",))
    assert (flips[0] == x[..., ::-1]).all()
    assert (flips[1] == x[..., ::-1, :]).all()
    assert len(transformed(x, ("flip", "rotate", "invert"))) == 6
    assert (transformed(x, ("invert",))[0] == 255 - x).all()


def test_every_declared_word_holds_the_inverse_of_each_of_its_transformations() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 1, 5, 5), dtype=np.uint8)
    for word in TRANSFORMATIONS:
        for changed in transformed(x, (word,)):
            assert any((back == x).all() for back in transformed(changed, (word,))), word


def test_the_judge_learns_to_tell_an_image_from_its_declared_transformation() -> None:
    images, _ = bars(300, 5)
    model = load_transformation_judge(fit_transformation_judge(images, ("flip",), steps=40, seed=0))
    fresh, _ = bars(100, 6)
    with torch.no_grad():
        normal, flipped = (model(torch.from_numpy(x.copy())).numpy() for x in (fresh, fresh[..., ::-1]))
    assert auroc(normal, flipped) > 0.95


def test_the_odds_of_an_image_and_of_its_inversion_are_opposite() -> None:
    images, _ = bars(80, 5)
    model = load_transformation_judge(fit_transformation_judge(images, ("invert",), steps=3, seed=0))
    with torch.no_grad():
        odds, inverted = (model(torch.from_numpy(x)).numpy() for x in (images, 255 - images))
    assert np.allclose(odds, -inverted, atol=1e-5)


def test_the_judge_follows_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    images, _ = bars(80, 5)
    before = torch.get_rng_state()
    first, second = (fit_transformation_judge(images, ("flip", "rotate"), steps=3, seed=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert load_transformation_judge(first).declared == ("flip", "rotate")
