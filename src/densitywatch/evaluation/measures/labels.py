"""Labels with rejection: a class-conditional density and Bayes' rule.

    p(y|x) = p(x|y) p(y) / sum_y' p(x|y') p(y')
           = p(x|y) / sum_y' p(x|y')                  when all labels are equally likely

gives an image's label and the probability of that label, its posterior. A label is doubtful for two different reasons:

* Another label explains the image about as well. Then the posterior is low.
* No label explains the image: it belongs to no class. The posterior can be high all the same, because it only compares
  labels. So each label gets a p-value: the rank of p(x|y) among calibration images of that label. An image belongs to
  no class when the p-values of all labels are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from densitywatch.data.dataset import Split, open_split
from densitywatch.data.reading import Images, Rows, images_at_once, resized, size_of
from densitywatch.evaluation.measures.context import Context, Figure, Metric, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import LabelDensity
from densitywatch.pages import charts

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


def by_bayes(by_label: np.ndarray) -> LabelGuess:
    """The label of each image from log p(x|y), (N, classes) nats, for equally likely labels."""
    label = by_label.argmax(1)
    best = by_label.max(1)
    # log of the sum of p(x|y') over all other labels, computed from logarithms: p(x|y) itself is far too small
    others = np.where(np.arange(by_label.shape[1]) == label[:, None], -np.inf, by_label)
    with np.errstate(divide="ignore"):  # with one class there are no other labels: log 0
        # p / (1 - p) = p(x|y) / (sum of the others), since the posterior's denominator is the same in p and 1 - p
        log_odds = best - np.logaddexp.reduce(others, axis=1)
    return LabelGuess(label, 1.0 / (1.0 + np.exp(-log_odds)), log_odds)


def belonging_p_values(by_label: np.ndarray, known: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p-values (N,) of "this image belongs to some class"; small is outlying.

    by_label: log p(x|y) of the images, (N, classes). known: the same of calibration images, (M, classes). labels: their
    true labels (M,). The p-value for a label is two-sided: an image can be too unlikely for its class or, like a plain
    grey one, too likely. The p-value for any class is the largest of them. It is valid over draws of the calibration
    images: whatever the model, at most a share `a` of the images of a known class have a p-value of `a` or less.
    """
    p_values = np.zeros(len(by_label))
    for label in np.unique(labels):
        own = np.sort(known[labels == label, label])  # log p(x|label) of the label's own calibration images
        below = np.searchsorted(own, by_label[:, label], side="right")
        above = len(own) - np.searchsorted(own, by_label[:, label], side="left")
        # the rank among len(own) + 1 exchangeable images is uniform; twice the smaller tail covers both sides
        two_sided = 2.0 * (np.minimum(below, above) + 1.0) / (len(own) + 1.0)
        # an image of class y has a valid p-value for y, and the maximum is at least that
        p_values = np.maximum(p_values, np.minimum(two_sided, 1.0))
    return p_values


def known_by_label(
    model: LabelDensity, calibration: Split, most: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray] | None:
    """log p(x|y) of the first `most` calibration images, (M, classes) nats, and their labels (M,).

    None if there are no images, or if some have no label.
    """
    labels = np.array(calibration.labels[:most])
    if not len(labels) or (labels < 0).any():
        return None
    return nats_by_label(model, Rows(calibration.images, np.arange(len(labels))), device), labels


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
    labels = np.concatenate([y.cpu().numpy() for _, y in context.batches("test", len(by_label))])
    if (labels < 0).all():
        return Result({}, notes=["The test images have no labels, so labels with rejection are left out."])
    labelled_images = labels >= 0
    by_label, labels = by_label[labelled_images], labels[labelled_images]
    found = by_bayes(by_label)
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
    metrics |= _belonging(context, by_label)
    return Result(metrics, figures)


def _belonging(context: Context, by_label: np.ndarray) -> dict[str, Metric]:
    """The share of test images with a p-value at or below the false-alarm rate. It should be close to that rate."""
    params = context.params
    calibration = open_split(context.data, "calibration")
    assert isinstance(context.model, LabelDensity)  # exact_likelihood asked it
    usual = known_by_label(context.model, calibration, params.evaluate.label_images, context.device)
    if usual is None:
        return {}
    rate = params.detector.false_alarm_rate
    return {
        "no_class_rate": float((belonging_p_values(by_label, *usual) <= rate).mean()),
        "no_class_target_rate": rate,
    }
