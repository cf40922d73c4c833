"""Bayes' rule over a class-conditional density: labels, how sure, and whether an image belongs to any class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.labels import accuracy_at, belonging_p_values, by_bayes, labels_with_rejection
from densitywatch.models.storage import load_model_folder


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


def test_p_values_hold_their_promise_for_images_of_known_classes_and_are_small_for_strange_ones() -> None:
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(0, 3, n)
        by_label = random.normal(-1000, 30, (n, 3))
        by_label[np.arange(n), labels] += 200
        return by_label, labels

    p_values = np.concatenate([belonging_p_values(draw(500)[0], *draw(900)) for _ in range(40)])
    for level in (0.02, 0.05, 0.2):
        assert (p_values <= level).mean() <= level * 1.05
    assert p_values.max() <= 1.0
    known, known_labels = draw(900)
    too_plain, too_odd = np.full((1, 3), -300.0), np.full((1, 3), -2000.0)
    assert belonging_p_values(too_plain, known, known_labels)[0] < 0.01
    assert belonging_p_values(too_odd, known, known_labels)[0] < 0.01


def test_a_conditional_density_gets_accuracy_its_curve_and_the_share_without_a_class(
    project: Path, context_of: Callable[..., Context]
) -> None:
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
    assert 0.0 <= result.metrics["no_class_rate"] <= 1.0
    assert (context.out / "accuracy_coverage.svg").read_text().startswith("<svg")


def test_a_density_without_labels_is_left_out(context_of: Callable[..., Context]) -> None:
    assert labels_with_rejection(context_of(object())) is None
