"""The linear probe: what it can and cannot read, how it chooses, and when it is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from densitywatch.data.dataset import read_info
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.feature_network import pixel_curve
from densitywatch.evaluation.measures.linear_probe import linear_probe, raw_pixels
from densitywatch.evaluation.measures.logistic_regression import fit, probe_curve, score
from densitywatch.params import Params, ProbeParams
from tests.evaluation.conftest import write_info


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


class Pixels(torch.nn.Module):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def small_probe(params: Params) -> Params:
    probe = ProbeParams(labels=(50,), regularisation=(1e-2, 1e-1))
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"probe": probe})})


def test_the_probe_on_pixels_is_the_reference_that_the_classifier_stage_leaves(
    context_of: Callable[..., Context], params: Params, project: Path
) -> None:
    from densitywatch.data.dataset import open_split

    params = small_probe(params)
    context = context_of(Pixels(), params=params)
    result = linear_probe(context)
    assert result is not None
    prepared = project / "data" / "prepared"
    reference = pixel_curve(*(open_split(prepared, s) for s in ("train", "validation", "test")), params=params)
    assert result.metrics == {
        "linear_probe_accuracy_50": pytest.approx(reference[50]),
        "linear_probe_accuracy": pytest.approx(reference[200]),
        "linear_probe_labels": 200,
    }
    assert reference[200] > 0.8
    train, test = open_split(prepared, "train"), open_split(prepared, "test")
    plain = LogisticRegression(max_iter=1000).fit(train.images.reshape(200, -1) / 255, train.labels)
    assert reference[200] == pytest.approx(plain.score(test.images.reshape(48, -1) / 255, test.labels), abs=0.08)
    assert (context.out / "linear_probe.svg").read_text().startswith("<svg")
    assert (context.out / "linear_probe.csv").read_text().startswith("features,labels,accuracy\nstandin,50,")


def test_a_density_reads_the_test_images_once_for_its_likelihood_and_its_probe(
    context_of: Callable[..., Context], params: Params
) -> None:
    from densitywatch.evaluation.measures.likelihood import exact_likelihood
    from densitywatch.evaluation.measures.linear_probe import encoded
    from densitywatch.models.pixelcnn import PixelCNN, Settings

    torch.manual_seed(0)
    model = PixelCNN(Settings(channels=4, dilations=(1,)), channels=1, size=8, classes=0)
    context = context_of(model, params=params)
    with torch.no_grad():
        alone, labels = encoded(context, "test", None)
        assert exact_likelihood(context) is not None
        shared, same = encoded(context, "test", None)
        x = next(context.test_batches())[0]
        np.testing.assert_allclose(model.log_prob(x), model.log_prob_and_code(x)[0], rtol=1e-6)
    assert len(context.shared["test_codes"]) == 48
    np.testing.assert_allclose(shared, alone, atol=1e-6)
    np.testing.assert_array_equal(same, labels)


def test_the_curve_of_raw_pixels_stands_beside_the_models(
    context_of: Callable[..., Context], params: Params, tmp_path: Path
) -> None:
    (tmp_path / "raw_pixels.json").write_text('{"50": 0.5, "200": 0.75}')
    assert raw_pixels(tmp_path) == {50: 0.5, 200: 0.75}
    assert raw_pixels(tmp_path / "nowhere") == raw_pixels(None) == {}
    result = linear_probe(context_of(Pixels(), params=small_probe(params), classifier=tmp_path))
    assert result is not None
    assert "raw pixels 0.750" in result.figures[0].caption


def test_a_model_that_was_given_labels_and_one_without_features_are_not_probed(
    context_of: Callable[..., Context],
) -> None:
    told = Pixels()
    told.conditional = True
    assert linear_probe(context_of(told)) is None
    assert linear_probe(context_of(torch.nn.Identity())) is None


def test_without_labels_the_probe_is_left_out_and_it_is_said(context_of: Callable[..., Context], project: Path) -> None:
    write_info(project, class_names=[])
    result = linear_probe(context_of(Pixels(), info=read_info(project / "data" / "prepared")))
    assert result is not None
    assert result.metrics == {}
    assert "left out" in result.notes[0]
