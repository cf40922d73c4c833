"""What the regression takes out of a score."""

from __future__ import annotations

import numpy as np

from densitywatch.detector.score_regression import fit_score_regression, standardised_residual
from densitywatch.outlier_benchmark.auroc import auroc


def test_what_is_bound_to_be_high_is_taken_out_and_what_is_not_stays() -> None:
    rng = np.random.default_rng(1)
    given = rng.normal(size=(3000, 4))
    noise = rng.normal(size=3000) * np.exp(0.3 * given[:, 1])
    fitted = fit_score_regression(given, 50 + 10 * given[:, 0] ** 2 + noise)
    fresh = rng.normal(size=(2000, 4))
    normal = standardised_residual(fresh, 50 + 10 * fresh[:, 0] ** 2 + rng.normal(size=2000), fitted)
    raised = standardised_residual(fresh, 53 + 10 * fresh[:, 0] ** 2 + rng.normal(size=2000), fitted)
    assert abs(np.corrcoef(normal, fresh[:, 0] ** 2)[0, 1]) < 0.6  # the ridge leaves a little; before, it is 0.99
    assert auroc(normal, raised) > 0.9


def test_no_correction_is_extrapolated_beyond_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(3000, 6))
    score = 20 + np.square(given).sum(1) + rng.normal(size=3000)
    fitted = fit_score_regression(given, score)
    direction = np.ones((1, 6)) / np.sqrt(6)
    near, far = direction * np.quantile(np.linalg.norm(given, axis=1), 0.999), direction * 1000
    # the same score gets the same residual: the expectation far out is that of the edge
    at_edge, beyond = (standardised_residual(x, np.array([60.0]), fitted)[0] for x in (near * 1.2, far))
    assert np.isclose(at_edge, beyond, rtol=0.05)
    assert beyond > 5
