"""The comparison table: which figure of metrics/<model>.json is in which row, and which is the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from densitywatch.pages.words import DASH, duration, number, share

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What the table shows of one model in one row."""

    text: str
    note: str = ""
    """Small print below the figure: a standard error, the name of a bound."""
    best: bool = False

    @property
    def empty(self) -> bool:
        """Whether the model has no such figure."""
        return self.text == DASH


@dataclass(frozen=True)
class Row:
    """One figure of every model."""

    title: str
    value: Callable[[Metrics], float | None]
    """The figure in a model's metrics; None if the model has none."""
    show: Callable[[float], str]
    """The figure as text."""
    better: Literal["lower", "higher", None] = None
    """None: the row has no best."""
    note: Callable[[Metrics], str] = lambda metrics: ""
    of_size: bool = False
    """Whether the figure compares only between models that read images at the same size."""
    count: str | None = None
    """The metric with the number of samples or labels that the figure depends on: only equal ones are compared."""


def key(name: str) -> Callable[[Metrics], float | None]:
    """A row's value: the metric of that name."""
    return lambda metrics: metrics.get(name)


BITS = (("bits_per_dim", ""), ("iwae_bits_per_dim", "importance bound"), ("elbo_bits_per_dim", "ELBO, a bound"))


def bits(metrics: Metrics) -> float | None:
    """The exact figure, or else the tightest bound that the model has."""
    return next((metrics[name] for name, _ in BITS if name in metrics), None)


def bits_note(metrics: Metrics) -> str:
    """The bound's name, the standard error, and of how many images where it is not all of them."""
    for name, bound in BITS:
        if name in metrics:
            error = f"± {metrics[f'{name}_stderr']:.3f}" if f"{name}_stderr" in metrics else ""
            few = counted("iwae_images", "images")(metrics) if name == "iwae_bits_per_dim" else ""
            return "\n".join(part for part in (bound, error, few) if part)
    return ""


def counted(name: str, what: str) -> Callable[[Metrics], str]:
    """A row's note: the number of `what` in the metric of that name."""
    return lambda metrics: f"{metrics[name]:,} {what}" if metrics.get(name) else ""


def samples_row(
    title: str,
    name: str,
    show: Callable[[float], str],
    better: Literal["lower", "higher"],
    count: str = "quality_images",
) -> Row:
    """A figure of samples, which depends on their number, the metric `count`."""
    return Row(title, key(name), show, better, counted(count, "samples"), count=count)


def sampling(metrics: Metrics) -> float | None:
    """Seconds per sample."""
    rate = metrics.get("sample_images_per_second")
    return 1 / rate if rate else None


ROWS: list[Row] = [
    Row("Sees images at", key("size"), lambda v: f"{v} x {v}"),
    Row("bits/dim", bits, lambda v: f"{v:.3f}", "lower", bits_note, of_size=True),
    Row("bits/dim of a decoded file", key("code_file_bits_per_dim"), lambda v: f"{v:.3f}", "lower", of_size=True),
    Row("Reconstruction MSE", key("reconstruction_mse"), lambda v: f"{v:.4f}", "lower", of_size=True),
    samples_row("FID (our features)", "fid", number, "lower"),
    samples_row("FID of more samples", "fid_of_more", number, "lower", "more_images"),
    samples_row("KID (our features)", "kid", number, "lower"),
    samples_row("FID (Inception)", "inception_fid", number, "lower", "inception_images"),
    samples_row("Precision", "precision", share, "higher"),
    samples_row("Recall", "recall", share, "higher"),
    samples_row("Density", "density", number, "higher"),
    samples_row("Coverage", "coverage", share, "higher"),
    Row("GAN-test accuracy", key("gan_test_accuracy"), share, "higher"),
    Row(
        "GAN-train accuracy",
        key("gan_train_accuracy"),
        share,
        "higher",
        counted("gan_train_images", "samples"),
        count="gan_train_images",
    ),
    Row(
        "Linear probe",
        key("linear_probe_accuracy"),
        share,
        "higher",
        counted("linear_probe_labels", "labels"),
        count="linear_probe_labels",
    ),
    Row("Label accuracy", key("accuracy"), share, "higher"),
    Row("Label accuracy at 90 % coverage", key("accuracy_at_90_coverage"), share, "higher"),
    Row("Parameters", key("parameters"), number),
    Row("Training time", key("train_seconds"), duration),
    Row("Sampling time an image", sampling, duration, "lower"),
]


def compare(metrics: Mapping[str, Metrics]) -> list[tuple[Row, dict[str, Cell]]]:
    """The rows that at least one model fills, with a cell for each model; the best figure of a row is marked."""
    level = at_one_number_of_labels(metrics)
    return [
        (row, {name: _cell(row, m, best_of(row, list(level.values()))) for name, m in level.items()})
        for row in ROWS
        if any(row.value(m) is not None for m in level.values())
    ]


def at_one_number_of_labels(metrics: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The same metrics, with the linear probe's figure at the least number of labels that any model was given.

    Autoregressive models get fewer labels (`probe.slow_images`). A model without a figure at that number keeps its own.
    """
    fewest = min((m["linear_probe_labels"] for m in metrics.values() if "linear_probe_labels" in m), default=0)
    return {
        name: {**m, "linear_probe_accuracy": m[f"linear_probe_accuracy_{fewest}"], "linear_probe_labels": fewest}
        if f"linear_probe_accuracy_{fewest}" in m
        else m
        for name, m in metrics.items()
    }


def best_of(row: Row, metrics: Sequence[Metrics]) -> float | None:
    """The best figure of a row; None if there is no other to compare it with, or if sizes or counts differ.

    Sizes of images count where the row says so, counts of samples or labels where it names them.
    """
    having = [m for m in metrics if row.value(m) is not None]
    values = [value for m in having if (value := row.value(m)) is not None]
    differ = (row.of_size and len({m.get("size") for m in having}) > 1) or (
        row.count is not None and len({m.get(row.count) for m in having}) > 1
    )
    if row.better is None or len(values) < 2 or differ:
        return None
    return min(values) if row.better == "lower" else max(values)


def _cell(row: Row, metrics: Metrics, best: float | None) -> Cell:
    value = row.value(metrics)
    if value is None:
        return Cell(DASH)
    bound = "≤ " if row.value is bits and "bits_per_dim" not in metrics else ""
    return Cell(bound + row.show(value), row.note(metrics), best=value == best)
