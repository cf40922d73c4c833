"""Bayes' rule over a class-conditional density: labels, how sure, and whether an image belongs to any class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.labels import accuracy_at, by_bayes, label_prior, labels_with_rejection
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params


def test_the_label_and_its_posterior_are_those_of_bayes_rule() -> None:
    by_label = np.log(np.array([[0.1, 0.3, 0.6], [0.5, 0.25, 0.25]])) - 2000.0  # likelihoods of images are tiny
    found = by_bayes(by_label)
    assert found.label.tolist() == [2, 0]
    assert found.probability == pytest.approx([0.6, 0.5])
    assert found.log_odds == pytest.approx([np.log(0.6 / 0.4), 0.0])


def test_confidence_still_orders_images_whose_posteriors_round_to_one() -> None:
    found = by_bayes(np.array([[0.0, -100.0], [0.0, -200.0]]))
    assert found.probability.tolist() == [1.0, 1.0]
    assert found.log_odds[1] > found.log_odds[0]


def test_a_single_class_is_certain() -> None:
    found = by_bayes(np.array([[-5.0], [-7.0]]))
    assert found.label.tolist() == [0, 0]
    assert found.probability.tolist() == [1.0, 1.0]


def test_accuracy_at_a_coverage_counts_the_most_confident_images() -> None:
    right = np.array([True, False, True, False])
    confidence = np.array([4.0, 1.0, 3.0, 2.0])
    assert accuracy_at(1.0, right, confidence) == 0.5
    assert accuracy_at(0.5, right, confidence) == 1.0
    assert accuracy_at(0.75, right, confidence) == pytest.approx(2 / 3)


def test_a_prior_enters_as_bayes_rule_says() -> None:
    likelihood, prior = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), np.array([0.7, 0.3, 0.0])
    found = by_bayes(np.log(likelihood) - 3000.0, prior)
    joint = likelihood * prior
    posterior = joint / joint.sum(1, keepdims=True)
    assert found.label.tolist() == [0, 0], "a label of prior 0 is never given"
    assert found.probability == pytest.approx(posterior.max(1))
    assert by_bayes(np.log(likelihood)).label.tolist() == [2, 0]


def test_the_prior_is_the_labels_share_of_the_training_images_or_the_same_for_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = SimpleNamespace(header={"class_names": ["shirt", "bag"], "label_counts": [30, 10]})
    prior = label_prior(model, "training")
    assert prior is not None
    assert prior.tolist() == [0.75, 0.25]
    assert label_prior(model, "uniform") is None
    assert capsys.readouterr().err == ""
    assert label_prior(SimpleNamespace(header={"class_names": ["shirt", "bag"]}), "training") is None
    assert "all count as equally likely" in capsys.readouterr().err


@pytest.mark.parametrize("counts", [[1, 2, 3], [1], [0, 0], [-1, 2], [1.5, 2], ["1", 2], [True, 2], "12", 3])
def test_a_header_with_something_else_than_counts_is_refused(counts: Any) -> None:
    model = SimpleNamespace(header={"class_names": ["shirt", "bag"], "label_counts": counts})
    with pytest.raises(ModelError, match="no count of training images for each label"):
        label_prior(model, "training")


def test_a_conditional_density_gets_accuracy_and_its_curve_without_reading_an_image(
    project: Path, context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Context, "batches")
    model: Any = load_model_folder(project / "models" / "by_label")
    random = np.random.default_rng(1)
    labels = np.load(project / "data" / "prepared" / "test_labels.npy")
    by_label = random.normal(0, 1, (len(labels), 10))
    by_label[np.arange(len(labels)), labels] += 5
    context = context_of(model, shared={"test_log_prob_by_label": by_label})
    result = labels_with_rejection(context)
    assert result is not None
    assert result.metrics["accuracy"] == pytest.approx((by_label.argmax(1) == labels).mean())
    assert result.metrics["accuracy_at_90_coverage"] >= result.metrics["accuracy"]
    assert (context.out / "accuracy_coverage.svg").read_text().startswith("<svg")


def test_the_setting_decides_which_prior_the_accuracy_is_of(
    project: Path, params: Params, context_of: Callable[..., Context]
) -> None:
    model: Any = load_model_folder(project / "models" / "by_label")
    model.header = {**model.header, "label_counts": [0, 0, 0, 5, 0, 0, 0, 0, 0, 0]}
    labels = np.load(project / "data" / "prepared" / "test_labels.npy")
    by_label = 5.0 * (np.arange(10) == labels[:, None])
    for choice, accuracy in (("training", (labels == 3).mean()), ("uniform", 1.0)):
        inbox = params.inbox.model_copy(update={"label_prior": choice})
        context = context_of(
            model, params=params.model_copy(update={"inbox": inbox}), shared={"test_log_prob_by_label": by_label}
        )
        result = labels_with_rejection(context)
        assert result is not None
        assert result.metrics["accuracy"] == pytest.approx(accuracy)


def test_a_density_without_labels_is_left_out(context_of: Callable[..., Context]) -> None:
    assert labels_with_rejection(context_of(object())) is None
