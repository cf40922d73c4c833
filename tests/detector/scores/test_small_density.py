"""The small density that a score trains for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densitywatch.arrays import Arrays
from densitywatch.detector.scores.small_density import fit_small_density, load_small_density
from tests.small_project import bars


def fitted(mutation: float = 0.0) -> Arrays:
    return fit_small_density(bars(40, 5)[0], channels=4, dilations=(1,), steps=2, mutation=mutation, seed=0)


def test_a_small_density_follows_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = fitted(0.15), fitted(0.15)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_its_network_comes_back_with_the_weights_that_were_fitted() -> None:
    arrays = fitted()
    model = load_small_density(arrays)
    assert not model.training
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), arrays[name])


def test_weights_of_another_network_are_refused() -> None:
    arrays = fitted()
    with pytest.raises(ValueError, match="do not fit its shape"):
        load_small_density(arrays | {"shape": arrays["shape"] + 1})
