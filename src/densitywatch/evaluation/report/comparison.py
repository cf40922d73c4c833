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


def key(name: str) -> Callable[[Metrics], float | None]:
    """A row's value: the metric of that name."""
    return lambda metrics: metrics.get(name)


BITS = (("bits_per_dim", ""), ("iwae_bits_per_dim", "importance bound"), ("elbo_bits_per_dim", "ELBO, a bound"))


def bits(metrics: Metrics) -> float | None:
    """The exact figure, or else the tightest bound that the model has."""
    return next((metrics[name] for name, _ in BITS if name in metrics), None)


def bits_note(metrics: Metrics) -> str:
    """The bound's name and the standard error."""
    for name, bound in BITS:
        if name in metrics:
            error = f"± {metrics[f'{name}_stderr']:.3f}" if f"{name}_stderr" in metrics else ""
            return "\n".join(part for part in (bound, error) if part)
    return ""


def probe_note(metrics: Metrics) -> str:
    """The number of training labels: autoregressive models get fewer (`probe.slow_images`)."""
    labels = metrics.get("linear_probe_labels")
    return f"{labels:,} labels" if labels else ""


def sampling(metrics: Metrics) -> float | None:
    """Seconds per sample."""
    rate = metrics.get("sample_images_per_second")
    return 1 / rate if rate else None


ROWS: list[Row] = [
    Row("Sees images at", key("size"), lambda v: f"{v} x {v}"),
    Row("bits/dim", bits, lambda v: f"{v:.3f}", "lower", bits_note, of_size=True),
    Row("bits/dim of a decoded file", key("code_file_bits_per_dim"), lambda v: f"{v:.3f}", "lower", of_size=True),
    Row("Reconstruction MSE", key("reconstruction_mse"), lambda v: f"{v:.4f}", "lower", of_size=True),
    Row("FID (our features)", key("fid"), number, "lower"),
    Row("KID (our features)", key("kid"), number, "lower"),
    Row("FID (Inception)", key("inception_fid"), number, "lower"),
    Row("Precision", key("precision"), share, "higher"),
    Row("Recall", key("recall"), share, "higher"),
    Row("GAN-test accuracy", key("gan_test_accuracy"), share, "higher"),
    Row("GAN-train accuracy", key("gan_train_accuracy"), share, "higher"),
    Row("Linear probe", key("linear_probe_accuracy"), share, "higher", probe_note),
    Row("Label accuracy", key("accuracy"), share, "higher"),
    Row("Label accuracy at 90 % coverage", key("accuracy_at_90_coverage"), share, "higher"),
    Row("Parameters", key("parameters"), number),
    Row("Training time", key("train_seconds"), duration),
    Row("Sampling time an image", sampling, duration, "lower"),
]


def compare(metrics: Mapping[str, Metrics]) -> list[tuple[Row, dict[str, Cell]]]:
    """The rows that at least one model fills, with a cell for each model; the best figure of a row is marked."""
    return [
        (row, {name: _cell(row, m, best_of(row, list(metrics.values()))) for name, m in metrics.items()})
        for row in ROWS
        if any(row.value(m) is not None for m in metrics.values())
    ]


def best_of(row: Row, metrics: Sequence[Metrics]) -> float | None:
    """The best figure of a row; None if there is no other to compare it with, or if sizes differ where they matter."""
    having = [m for m in metrics if row.value(m) is not None]
    values = [value for m in having if (value := row.value(m)) is not None]
    if row.better is None or len(values) < 2 or (row.of_size and len({m.get("size") for m in having}) > 1):
        return None
    return min(values) if row.better == "lower" else max(values)


def _cell(row: Row, metrics: Metrics, best: float | None) -> Cell:
    value = row.value(metrics)
    if value is None:
        return Cell(DASH)
    bound = "≤ " if row.value is bits and "bits_per_dim" not in metrics else ""
    return Cell(bound + row.show(value), row.note(metrics), best=value == best)
