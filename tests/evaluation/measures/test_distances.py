"""Distances against closed forms and sets made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densitywatch.evaluation.measures.distances import (
    frechet_distance,
    frechet_of_counts,
    kernel_distance,
    manifold_figures,
    nearest_distances,
)


def test_the_frechet_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 200_000, 3, generator=generator, dtype=torch.float64)
    scale_a, scale_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 2.0, 1.0])
    shift = torch.tensor([1.0, -2.0, 0.0])
    # diagonal covariances: |difference of means|^2 + sum of (difference of deviations)^2
    expected = float((shift**2).sum() + ((scale_a - scale_b) ** 2).sum())
    assert frechet_distance(draws[0] * scale_a, draws[1] * scale_b + shift) == pytest.approx(expected, rel=0.01)


def test_the_distance_of_counts_is_that_of_the_rows_repeated_so_often() -> None:
    a, b = torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 100
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    rows = [torch.from_numpy(np.repeat(np.arange(40), row.astype(int))) for row in counts]
    repeated = [frechet_distance(a[taken], b[taken]) for taken in rows]
    assert frechet_of_counts(a, b)(counts) == pytest.approx(repeated, rel=1e-6, abs=1e-9)


def test_both_distances_of_a_set_from_itself_are_about_zero_and_of_disjoint_sets_are_not() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)
    assert kernel_distance(features, features, subset_size=250) == pytest.approx(0.0, abs=0.1)
    assert frechet_distance(features, features + 3) == pytest.approx(72.0, rel=1e-4)
    assert kernel_distance(features, features + 3, subset_size=250) > 1.0


def test_precision_falls_for_wild_samples_and_recall_for_samples_that_lack_variety() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(600, 2, generator=generator)
    alike = manifold_figures(real, torch.randn(600, 2, generator=generator), 5)
    assert all(value > 0.8 for value in alike.values())
    assert alike["density"] == pytest.approx(1.0, abs=0.15)
    wild = manifold_figures(real, torch.randn(600, 2, generator=generator) * 20, 5)
    assert wild["precision"] < 0.2
    assert wild["density"] < 0.2
    dull = manifold_figures(real, torch.randn(600, 2, generator=generator) * 0.05, 5)
    assert dull["precision"] > 0.9
    assert dull["recall"] < 0.1
    assert dull["coverage"] < 0.2


def test_the_manifold_figures_of_a_small_set_are_those_counted_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # with k = 1 the balls' radii are 1, 1, 2, 7
    generated = torch.tensor([[0.5], [6.0], [30.0]])  # 5.5, 5.5, 24
    figures = manifold_figures(real, generated, 1)
    assert figures["precision"] == pytest.approx(2 / 3)  # 0.5 in two balls, 6.0 in the last one's, 30 in none
    assert figures["recall"] == pytest.approx(1.0)  # 0, 1, 3 near 0.5; 10 near 6
    assert figures["density"] == pytest.approx((2 + 1 + 0) / 3)
    assert figures["coverage"] == pytest.approx(3 / 4)  # nothing came near 3


def test_nearest_distances_are_those_of_a_full_search() -> None:
    a, b = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    values, indices = nearest_distances(a, b, 2)
    full = (a[:, None] - b[None]).norm(dim=2)
    assert torch.allclose(values, full.sort(1).values[:, :2], atol=1e-4)
    assert torch.equal(indices[:, 0], full.argmin(1))
