"""Labels with rejection: a class-conditional density and Bayes' rule.

    p(y|x) = p(x|y) p(y) / sum_y' p(x|y') p(y')

gives an image's label and the probability of that label, its posterior. The prior p(y) is the labels' share of the
training images, or the same for all (inbox.label_prior). A label is doubtful for two different reasons:

* Another label explains the image about as well. Then the posterior is low.
* No label explains the image: it belongs to no class. The posterior can be high all the same, because it only compares
  labels. detector/label_ranks.py answers this question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from densitywatch.data.reading import Images, images_at_once, resized, size_of
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.context import Context, Figure, Metric, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import LabelDensity
from densitywatch.pages import charts
from densitywatch.progress import say

BATCH = 250
"""Images read at a time, fewer for large images."""
COVERAGES = (1.0, 0.99, 0.98, *(round(0.95 - 0.05 * i, 2) for i in range(18)))


@dataclass(frozen=True)
class LabelGuess:
    """What Bayes' rule says of N images."""

    label: np.ndarray
    """(N,) int64, the most probable label."""
    probability: np.ndarray
    """(N,) the posterior of that label."""
    log_odds: np.ndarray
    """(N,) nats, log p / (1 - p) of that posterior p. It still orders images by confidence when every p rounds to 1."""


def by_bayes(by_label: np.ndarray, prior: np.ndarray | None = None) -> LabelGuess:
    """The label of each image from log p(x|y), (N, classes) nats.

    `prior`: p(y), (classes,); a label of prior 0 is never given. None: all labels are equally likely.
    """
    if prior is not None:
        with np.errstate(divide="ignore"):
            by_label = by_label + np.log(prior)
    label = by_label.argmax(1)
    best = by_label.max(1)
    # log of the sum of p(x|y') p(y') over all other labels, computed from logarithms: p(x|y) itself is far too small
    others = np.where(np.arange(by_label.shape[1]) == label[:, None], -np.inf, by_label)
    with np.errstate(divide="ignore"):  # with one class there are no other labels: log 0
        # p / (1 - p) = p(x|y) p(y) / (sum of the others), since the posterior's denominator is the same in p and 1 - p
        log_odds = best - np.logaddexp.reduce(others, axis=1)
    return LabelGuess(label, 1.0 / (1.0 + np.exp(-log_odds)), log_odds)


def label_prior(model: object, choice: Literal["training", "uniform"]) -> np.ndarray | None:
    """p(y) of a conditional model, (classes,): the labels' share of its training images; None for the same for all.

    A model that was trained before 0.2 does not say how many images each label had. Then it is None, and a line says
    so. Raises ModelError when the model's header says something else than counts.
    """
    if choice == "uniform":
        return None
    header = getattr(model, "header", {})
    counts = header.get("label_counts")
    if counts is None:
        say("labels: this model does not say how often each label was trained on, so all count as equally likely")
        return None
    known = isinstance(counts, list) and len(counts) == len(header.get("class_names", counts))
    if not known or not all(type(count) is int and count >= 0 for count in counts) or not sum(counts):
        raise ModelError("the model's header has no count of training images for each label; train it again")
    return np.asarray(np.array(counts, dtype=np.float64) / sum(counts))


@torch.no_grad()
def nats_by_label(model: LabelDensity, images: Images, device: torch.device | str = "cpu") -> np.ndarray:
    """log p(x|y) of uint8 images (N, C, H, W) of any size under every label, (N, classes) nats in float64."""
    size = size_of(model, images.shape[-1])
    step = images_at_once(BATCH, size)
    parts = [
        model.log_prob_by_label(torch.from_numpy(resized(np.array(images[i : i + step]), size)).to(device))
        for i in range(0, len(images), step)
    ]
    return np.concatenate([part.double().cpu().numpy() for part in parts])


def accuracy_at(coverage: float, right: np.ndarray, confidence: np.ndarray) -> float:
    """The accuracy among the most confident images; coverage: the share of images that are kept."""
    kept = np.argsort(-confidence, kind="stable")[: max(1, round(coverage * len(right)))]
    return float(right[kept].mean())


def labels_with_rejection(context: Context) -> Result | None:
    """Accuracy by Bayes' rule, and accuracy over coverage when the least confident images get no label.

    Model: `log_prob_by_label(x) -> (B, classes)` nats; `exact_likelihood` has computed those of the test images.
    """
    by_label = context.shared.get("test_log_prob_by_label")
    if by_label is None:
        return None
    labels = context.split("test").labels[: len(by_label)]
    if (labels < 0).all():
        return Result({}, notes=["The test images have no labels, so labels with rejection are left out."])
    labelled_images = labels >= 0
    by_label, labels = by_label[labelled_images], labels[labelled_images]
    found = by_bayes(by_label, label_prior(context.model, context.params.inbox.label_prior))
    right = found.label == labels
    metrics: dict[str, Metric] = {
        "accuracy": float(right.mean()),
        "accuracy_at_90_coverage": accuracy_at(0.9, right, found.log_odds),
    }
    curve = [{"coverage": coverage, "accuracy": accuracy_at(coverage, right, found.log_odds)} for coverage in COVERAGES]
    chart = charts.lines(
        curve, x="coverage", y="accuracy", x_title="share of images that get a label", y_title="accuracy among them"
    )
    write_whole(context.out / "accuracy_coverage.svg", chart)
    figures = [
        Figure(
            "accuracy_coverage.svg",
            "Labels with rejection",
            f"{len(labels):,} test images, labelled by Bayes' rule: {metrics['accuracy']:.3f} are right, and"
            f" {metrics['accuracy_at_90_coverage']:.3f} when the least certain tenth goes without a label.",
            alt="Accuracy rises as the least certain images are left out",
        )
    ]
    return Result(metrics, figures)
