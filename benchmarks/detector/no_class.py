"""Which test says best that an image belongs to no class, and whether the chosen one keeps its rate.

    python benchmarks/detector/no_class.py choose [IMAGES]     on validation images; neither test images nor the panel
    python benchmarks/detector/no_class.py measure [IMAGES]    the chosen test on test images and the panel

`choose`: every rival is fitted on the first half of the validation images and measured on the second half against its
synthetic outliers (choice_of_members.py), IMAGES of each kind. Prints AUROC and the share found at 1 % false alarms.
`measure`: the share of normal test images with p <= 0.01, in all and for every label given, with 95 % intervals, then
the share of IMAGES of each kind on the panel.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choice_of_members import spoiled
from scipy import stats

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.reading import Rows
from densitywatch.detector import conformal
from densitywatch.detector.detector import Detector, load
from densitywatch.detector.label_ranks import LabelRanks
from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.evaluation.measures.labels import by_bayes, label_prior, nats_by_label
from densitywatch.models.storage import load_model_folder
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.outlier_benchmark.no_class import LABEL_MODEL
from densitywatch.outlier_benchmark.panel import foreign_digits, panel_sets
from densitywatch.params import Params, load_params

RATE = 0.01


class Given:
    """A conditional PixelCNN under one label an image, as `surprise_statistics` wants it."""

    def __init__(self, model: Any, labels: np.ndarray) -> None:
        self.model, self.head, self.labels = model, model.head, torch.from_numpy(labels)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.features(x, self.labels)


@torch.no_grad()
def read(images: Any, model: Any, detector: Detector, prior: Floats | None, *, surprise: bool) -> Arrays:
    """What the rivals are made of: the label given, log p(x|y), the detector's score; `surprise`, expectation, sd."""
    by_label = nats_by_label(model, images)
    found: dict[str, list[np.ndarray]] = {"score": [], "moments": []}
    label = by_bayes(by_label, prior).label
    for i in range(0, len(images), 50):
        part = np.array(images[i : i + 50])
        found["score"].append(detector.score(part).score)
        if surprise:
            moments = surprise_statistics(Given(model, label[i : i + 50]), torch.from_numpy(part)).sum((2, 3))
            found["moments"].append(moments.double().numpy().T)
    arrays = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return {**arrays, "by_label": by_label, "label": label}


def choose(params: Params, count: int, parts: tuple[Any, Detector, Floats | None]) -> None:
    images = open_split(Path("data/prepared"), "validation")
    half = len(images) // 2
    fit, normal = (read(images.images[a:b], *parts, surprise=True) for a, b in ((0, half), (half, 2 * half)))
    true = images.labels[:half]
    kinds = {
        name: read(made, *parts, surprise=True)
        for name, made in spoiled(np.array(images.images[half : half + count]), params.seed).items()
    }

    def largest_p(x: Arrays) -> Floats:
        p = np.zeros(len(x["label"]))
        for label in np.unique(true):
            own = np.sort(fit["by_label"][true == label, label])
            below = np.searchsorted(own, x["by_label"][:, label], side="right")
            above = len(own) - np.searchsorted(own, x["by_label"][:, label], side="left")
            p = np.maximum(p, 2.0 * (np.minimum(below, above) + 1.0) / (len(own) + 1.0))
        return -p

    def excess(x: Arrays) -> Floats:
        surprise, expected, variance = x["moments"].T
        return (surprise - expected) / np.sqrt(variance)

    def totals(x: Arrays) -> Floats:
        """Mahalanobis distance of (surprise, expectation, sd) from those of the same label."""
        known, new = (np.column_stack([y["moments"][:, :2], np.sqrt(y["moments"][:, 2])]) for y in (fit, x))
        result = np.zeros(len(new))
        for label in np.unique(x["label"]):
            own, here = known[fit["label"] == label], x["label"] == label
            away = new[here] - own.mean(0)
            result[here] = np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.cov(own.T)), away)
        return result

    def in_label(score: Any) -> Any:
        def ranked(x: Arrays) -> Floats:
            result, known, new = np.zeros(len(x["label"])), score(fit), score(x)
            for label in np.unique(x["label"]):
                here = x["label"] == label
                result[here] = tail_surprise(new[here], fit_tail(known[fit["label"] == label]))
            return result

        return ranked

    def either_way(score: Any) -> Any:
        return in_label(lambda x: np.abs(score(x) - np.median(score(fit))))

    rivals = {
        "the largest p-value of all labels": largest_p,
        "log p(x|label), either way, in its label": either_way(lambda x: x["by_label"].max(1)),
        "excess surprise, either way, in its label": either_way(excess),
        "(surprise, expectation, sd), in its label": in_label(totals),
        "the detector's score, in its label": in_label(lambda x: x["score"]),
        "the detector's score, all labels together": lambda x: x["score"],
    }
    print(f"{'score':44} {'AUROC':>6} {'found':>6}")
    for name, score in rivals.items():
        usual = np.sort(score(normal))
        values = [score(x) for x in kinds.values()]
        found = np.mean([(conformal.p_values(usual, value) <= RATE).mean() for value in values])
        print(f"{name:44} {np.mean([auroc(usual, value) for value in values]):6.3f} {found:6.3f}", flush=True)


def measure(params: Params, count: int, parts: tuple[Any, Detector, Floats | None]) -> None:
    root, model = Path.cwd(), parts[0]
    info, test = read_info(root / "data/prepared"), open_split(root / "data/prepared", "test").images
    calibration = open_split(root / "data/prepared", "calibration").one_of_each_group(params.seed).images
    calibration = Rows(calibration, np.arange(min(len(calibration), params.evaluate.label_images)))
    known = read(calibration, *parts, surprise=False)
    ranks = LabelRanks(known["score"], known["label"], model.classes)
    print(ranks.too_small(RATE, model.class_names) or "every label has enough calibration images", flush=True)
    kinds = panel_sets(np.array(test[:count]), foreign_digits(root, info, count), params.seed)
    for kind, images in kinds.items():
        x = read(images, *parts, surprise=False)
        p = ranks.p_values(x["score"], x["label"])
        print(f"{kind:28} {(p <= RATE).mean():.3f} of {len(p):,}", flush=True)
    x = read(test, *parts, surprise=False)
    below = ranks.p_values(x["score"], x["label"]) <= RATE
    for name, here in [("all labels", x["label"] >= 0)] + [
        (name, x["label"] == label) for label, name in enumerate(model.class_names)
    ]:
        interval = stats.binomtest(int(below[here].sum()), int(here.sum())).proportion_ci(0.95)
        print(f"{name:28} {below[here].mean():.4f} ({interval.low:.4f} to {interval.high:.4f}) of {here.sum():,}")


if __name__ == "__main__":
    settings = load_params()
    density: Any = load_model_folder(Path("models") / LABEL_MODEL)
    used = (density, load(Path("models/detector")), label_prior(density, settings.inbox.label_prior))
    task = {"choose": choose, "measure": measure}[sys.argv[1]]
    task(settings, int(sys.argv[2]) if len(sys.argv) > 2 else 100, used)
