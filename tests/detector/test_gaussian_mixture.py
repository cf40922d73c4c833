"""The Gaussian mixture and its principal components against what is known."""

from __future__ import annotations

import numpy as np
from scipy import stats

from densitywatch.detector.gaussian_mixture import EXACT, fit_mixture, mixture_nll, principal_axes


def test_the_mixture_agrees_with_the_gaussian_density_that_it_is_when_it_has_one_component() -> None:

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 2.0]])
    fitted = fit_mixture(x, dimensions=3, components=1, seed=0, floor=1e-9)
    wanted = -stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x[:50])
    assert np.allclose(mixture_nll(x[:50], fitted), wanted, atol=1e-4)


def test_the_mixture_takes_two_identical_images() -> None:
    fitted = fit_mixture(np.zeros((2, 4)), dimensions=3, components=5, seed=0)
    assert np.isfinite(mixture_nll(np.ones((1, 4)), fitted)).all()


def test_principal_components_of_wide_data_span_what_the_exact_ones_do() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3)) @ rng.normal(size=(3, EXACT + 50)) * [[5.0]] + 0.01 * rng.normal(
        size=(200, EXACT + 50)
    )
    found, exact = principal_axes(x, 3, seed=0), np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3]
    assert np.allclose(found @ found.T, np.eye(3), atol=1e-6)
    assert np.linalg.svd(found @ exact.T)[1].min() > 0.999
    assert (principal_axes(x, 3, seed=0) == found).all()
