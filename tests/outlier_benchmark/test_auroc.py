"""Measures of separation against scikit-learn's."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from densitywatch.outlier_benchmark.auroc import auroc, separation


def test_separation_agrees_with_scikit_learn_ties_included() -> None:

    rng = np.random.default_rng(0)
    normal, outlier = np.round(rng.normal(size=300), 1), np.round(rng.normal(size=200) + 1, 1)
    truth, scores = np.repeat([0, 1], [300, 200]), np.concatenate([normal, outlier])
    found = separation(normal, outlier, resamples=200)
    assert np.isclose(found["auroc"][0], roc_auc_score(truth, scores))
    assert np.isclose(found["aupr"][0], average_precision_score(truth, scores))
    for value, low, high in found.values():
        assert low <= value <= high
    assert 0.02 < found["auroc"][2] - found["auroc"][1] < 0.15


def test_separation_of_sets_that_do_not_overlap_is_perfect_and_nan_counts_as_outlying() -> None:
    found = separation(np.arange(100.0), np.array([1000.0, np.nan, np.inf]))
    assert found == {"auroc": [1.0] * 3, "aupr": [1.0] * 3, "fpr_at_95_tpr": [0.0] * 3, "tpr_at_1_fpr": [1.0] * 3}
    assert auroc(np.zeros(5), np.zeros(5)) == 0.5
