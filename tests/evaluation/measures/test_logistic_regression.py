"""The fit minimises what it names, and the validation images choose its regularisation."""

from __future__ import annotations

import numpy as np
import torch

from densitywatch.evaluation.measures.logistic_regression import fit, probe_curve, score
from densitywatch.params import ProbeParams


def blobs(n: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around three corners, and fifty features that say nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    told = np.eye(3)[labels] * 3 + noise * rng.standard_normal((n, 3))
    return np.concatenate([told, rng.standard_normal((n, 50))], 1).astype(np.float32), labels


def test_the_fit_minimises_the_loss_that_it_names() -> None:
    features, labels = blobs(200, 0, 2.0)
    weight = 0.05
    fitted = fit(features, labels, weight)

    def loss(coefficients: np.ndarray, intercept: np.ndarray) -> float:
        logits = torch.from_numpy(features @ coefficients.T + intercept)
        cross_entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        return float(cross_entropy) + 0.5 * weight * float((coefficients**2).sum())

    best = loss(fitted.coef_, fitted.intercept_)
    rng = np.random.default_rng(1)
    for _ in range(20):
        step = 0.02 * rng.standard_normal(fitted.coef_.shape)
        assert loss(fitted.coef_ + step, fitted.intercept_) > best


def test_the_regularisation_is_chosen_on_the_validation_images_and_more_labels_help() -> None:
    train, validation, test = blobs(2000, 0, 1.5), blobs(400, 1, 1.5), blobs(2000, 2, 1.5)
    settings = ProbeParams(labels=(30, 300), regularisation=(1e-6, 1e-2, 1.0))
    curve = probe_curve(train, validation, test, settings)
    assert list(curve) == [30, 300, 2000]
    assert curve[30] < curve[300] < curve[2000] + 0.01
    for weight in (1e-6, 1e-2, 1.0):
        alone = probe_curve(train, validation, validation, ProbeParams(labels=(30,), regularisation=(weight,)))
        chosen = probe_curve(train, validation, validation, settings)
        assert chosen[30] >= alone[30]


def test_a_feature_that_never_changes_does_no_harm() -> None:
    train, test = blobs(300, 0, 0.5), blobs(300, 1, 0.5)
    train[0][:, 10], test[0][:, 10] = 5.0, 5.0
    curve = probe_curve(train, test, test, ProbeParams(labels=(), regularisation=(1e-2,)))
    assert curve[300] > 0.9


def test_one_class_alone_is_guessed_always() -> None:
    features = np.zeros((5, 2), dtype=np.float32)
    assert score(fit(features, np.full(5, 3), 1.0), (features, np.full(5, 3))) == 1.0
