"""Feature learning: how well a linear classifier finds labels in features that were learned without labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch.data.dataset import SplitName
from densitywatch.data.reading import images_within
from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.evaluation.measures.logistic_regression import RAW_PIXELS, LabelledFeatures, probe_curve
from densitywatch.files import write_whole
from densitywatch.models.offers import Encoder, PixelwiseDensity, takes_labels
from densitywatch.pages import charts


def linear_probe(context: Context) -> Result | None:
    """Test accuracy of multinomial logistic regression on `encode(x)`, over the number of labelled training images.

    Left out for a model that was trained with labels. The curve of raw pixels is drawn next to it if models/classifier
    has one. The curve of an autoregressive model ends at `probe.slow_images`.
    """
    model = context.model
    if not isinstance(model, Encoder) or takes_labels(model):
        return None
    if len(context.info.class_names) < 2:
        return Result({}, notes=["the linear probe was left out: it needs at least two labels"])
    limit = context.params.evaluate.test_images
    # an autoregressive model takes several times as long for an image as the others
    most_for_training = context.params.evaluate.probe.slow_images if isinstance(model, PixelwiseDensity) else None
    parts: dict[SplitName, int | None] = {"train": most_for_training, "validation": None, "test": limit}
    train, validation, test = (encoded(context, model, split, most) for split, most in parts.items())
    curve = probe_curve(train, validation, test, context.params.evaluate.probe)
    rows: list[dict[str, Any]] = [{"labels": n, "accuracy": a, "features": context.name} for n, a in curve.items()]
    caption = "Test accuracy of a linear classifier over the number of labelled training images."
    pixels = raw_pixels(context.classifier)
    rows += [{"labels": n, "accuracy": a, "features": "raw pixels"} for n, a in pixels.items()]
    if pixels:
        caption += f" With all labels: {list(curve.values())[-1]:.3f}, raw pixels {list(pixels.values())[-1]:.3f}."
    chart = charts.lines(
        rows,
        x="labels",
        y="accuracy",
        x_title="labelled images",
        y_title="test accuracy",
        series="features",
        logarithmic=True,
    )
    write_whole(context.out / "linear_probe.svg", chart)
    table = io.StringIO()
    writer = csv.DictWriter(table, ["features", "labels", "accuracy"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(context.out / "linear_probe.csv", table.getvalue())
    metrics: dict[str, float | int | str] = {f"linear_probe_accuracy_{n}": a for n, a in list(curve.items())[:-1]}
    metrics["linear_probe_labels"], metrics["linear_probe_accuracy"] = list(curve.items())[-1]
    return Result(metrics, [Figure("linear_probe.svg", "Linear probe", caption)])


def encoded(context: Context, model: Encoder, split: SplitName, limit: int | None) -> LabelledFeatures:
    """The model's features (N, D) of a split's labelled images, and their labels (N,)."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    read = 0
    known = context.shared.get("test_codes") if split == "test" else None  # exact_likelihood ran before
    if known is not None:
        labels = context.split(split).labels[: len(known)]
        return known[labels >= 0], labels[labels >= 0]
    for x, y in context.batches(split, limit=limit):
        pairs.append((model.encode(x).float().cpu().numpy(), y.cpu().numpy()))
        read += len(x)
        if read >= images_within(context.info.counts[split], pairs[0][0][0].nbytes):
            break  # wide features of all images do not fit into memory
    features, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return features[labels >= 0], labels[labels >= 0]


def raw_pixels(classifier: Path | None) -> dict[int, float]:
    """The linear probe's curve on raw pixels, which `train_classifier` wrote; empty if there is none."""
    if classifier is None or not (classifier / RAW_PIXELS).exists():
        return {}
    read = json.loads((classifier / RAW_PIXELS).read_text(encoding="utf-8"))
    return {int(n): float(accuracy) for n, accuracy in read.items()}
