"""The comparison table: which figures of metrics/<model>.json stand in which column, and which is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from densitywatch.evaluation.words import DASH, duration, number, share

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    """Small print below the figure: a standard error, the name of a bound."""
    best: bool = False

    @property
    def empty(self) -> bool:
        return self.text == DASH


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Metrics], float | None]
    show: Callable[[float], str]
    better: Literal["lower", "higher", None] = None
    note: Callable[[Metrics], str] = lambda metrics: ""


def key(name: str) -> Callable[[Metrics], float | None]:
    return lambda metrics: metrics.get(name)


BITS = (("bits_per_dim", ""), ("iwae_bits_per_dim", "importance bound"), ("elbo_bits_per_dim", "ELBO, a bound"))


def bits(metrics: Metrics) -> float | None:
    """The exact figure, or else the tightest bound there is."""
    return next((metrics[name] for name, _ in BITS if name in metrics), None)


def bits_note(metrics: Metrics) -> str:
    for name, bound in BITS:
        if name in metrics:
            error = f"± {metrics[f'{name}_stderr']:.3f}" if f"{name}_stderr" in metrics else ""
            return "\n".join(part for part in (bound, error) if part)
    return ""


def sampling(metrics: Metrics) -> float | None:
    """Seconds an image."""
    rate = metrics.get("sample_images_per_second")
    return 1 / rate if rate else None


def floor_note(metrics: Metrics) -> str:
    return f"floor {number(metrics['fid_floor'])}" if "fid_floor" in metrics else ""


COLUMNS: list[Column] = [
    Column("bits/dim", bits, lambda v: f"{v:.3f}", "lower", bits_note),
    Column("Reconstruction MSE", key("reconstruction_mse"), lambda v: f"{v:.4f}", "lower"),
    Column("FID (our features)", key("fid"), number, "lower", floor_note),
    Column("KID (our features)", key("kid"), lambda v: f"{v:.4f}", "lower"),
    Column("Precision", key("precision"), share, "higher"),
    Column("Recall", key("recall"), share, "higher"),
    Column("GAN-test accuracy", key("gan_test_accuracy"), share, "higher"),
    Column("GAN-train accuracy", key("gan_train_accuracy"), share, "higher"),
    Column("Linear probe", key("linear_probe_accuracy"), share, "higher"),
    Column("Label accuracy", key("accuracy"), share, "higher"),
    Column("at 90 % coverage", key("accuracy_at_90_coverage"), share, "higher"),
    Column("Parameters", key("parameters"), number),
    Column("Training time", key("train_seconds"), duration),
    Column("Sampling time an image", sampling, duration, "lower"),
]


def compare(metrics: Mapping[str, Metrics]) -> tuple[list[Column], dict[str, list[Cell]]]:
    """The columns that at least one model fills, and each model's cells in them; the best of several is marked."""
    columns = [column for column in COLUMNS if any(column.value(m) is not None for m in metrics.values())]
    best = [best_of(column, list(metrics.values())) for column in columns]
    cells = {
        name: [_cell(column, m, mark) for column, mark in zip(columns, best, strict=True)]
        for name, m in metrics.items()
    }
    return columns, cells


def best_of(column: Column, metrics: Sequence[Metrics]) -> float | None:
    values = [value for m in metrics if (value := column.value(m)) is not None]
    if column.better is None or len(values) < 2:
        return None
    return min(values) if column.better == "lower" else max(values)


def _cell(column: Column, metrics: Metrics, best: float | None) -> Cell:
    value = column.value(metrics)
    if value is None:
        return Cell(DASH)
    bound = "≤ " if column.value is bits and "bits_per_dim" not in metrics else ""
    return Cell(bound + column.show(value), column.note(metrics), best=value == best)
