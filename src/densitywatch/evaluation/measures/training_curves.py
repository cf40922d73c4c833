"""The curves of a training, for the report page and for `dvc plots`."""

from __future__ import annotations

import csv
import io
from typing import Any

from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.files import write_whole
from densitywatch.pages import charts
from densitywatch.pages.words import readable

HEADLINES = ("bits_per_dim", "elbo_bits_per_dim", "loss")
"""The first of these that was logged is the model's loss curve."""
NOT_DRAWN = ("step", "learning_rate", "images_per_second", "seconds")

History = list[dict[str, Any]]


def curves(context: Context) -> Result | None:
    """One chart of the loss (loss.svg), and one for each other figure that training logged.

    Reads `context.shared["history"]`: rows with `step` and any of `train_<figure>`, `validation_<figure>`.
    """
    history: History = context.shared["history"]
    if not history:
        return None
    headline, others = grouped(history)
    figures = []
    for bases in [headline, *others]:
        rows = long_form(history, bases)
        if not rows:
            continue
        first = bases == headline
        file = "loss.svg" if first else f"curve_{bases[0]}.svg"
        title = readable(bases[0]) if len(bases) == 1 else "Losses" if first else "Terms, bits/dim"
        svg = charts.lines(rows, x="step", y="value", series="series", x_title="training step", y_title=axis(bases))
        write_whole(context.out / file, svg)
        figures.append(
            Figure(
                file,
                f"Training: {title}",
                f"By training step, up to {history[-1]['step']:,.0f}.",
                alt=f"Line chart of {', '.join(sorted({row['series'] for row in rows}))} by training step",
            )
        )
    return Result({}, figures)


def grouped(history: History) -> tuple[list[str], list[list[str]]]:
    """The figures of the loss chart, then those of each other chart; terms in bits/dim share one chart."""
    bases = list(dict.fromkeys(base(key) for row in history for key in row if base(key) not in NOT_DRAWN))
    found = [name for name in HEADLINES if name in bases]
    headline = found[:1] or [name for name in bases if name.endswith("_loss")] or bases[:1]
    rest = [name for name in bases if name not in headline]
    if found and "loss" in rest and found[0] != "loss":
        rest.remove("loss")  # the headline's curve under another name
    terms = [name for name in rest if name.endswith("bits_per_dim")]
    return headline, ([terms] if terms else []) + [[name] for name in rest if name not in terms]


def long_form(history: History, bases: list[str]) -> list[dict[str, Any]]:
    """Rows of step, value, series for a chart; training and validation of a figure are two series."""
    rows = []
    for name in bases:
        for part in ("train_", "validation_", ""):
            values = [(row["step"], row.get(part + name)) for row in history]
            label = series_label(part.rstrip("_"), name, alone=len(bases) == 1)
            rows += [
                {"step": step, "value": float(f"{value:.6g}"), "series": label}
                for step, value in values
                if value is not None
            ]
    return rows


def loss_csv(history: History) -> str:
    """The loss curve as CSV, with the same columns for every model: step, train, validation."""
    headline = grouped(history)[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "train", "validation"])
    for row in history:
        train = row.get(f"train_{headline[0]}", row.get(headline[0])) if headline else None
        validation = row.get(f"validation_{headline[0]}") if headline else None
        writer.writerow([int(row["step"]), *("" if value is None else f"{value:.6g}" for value in (train, validation))])
    return text.getvalue()


def series_label(part: str, name: str, *, alone: bool) -> str:
    """A line's name: only `Train` or `Validation` where the chart shows one figure. The axis has the unit."""
    if alone and part:
        return readable(part)
    figure = readable(name).removesuffix(" bits/dim")
    return f"{figure}, {part}" if part else figure


def base(key: str) -> str:
    """A figure's name without its part: train_loss -> loss."""
    return key.removeprefix("train_").removeprefix("validation_")


def axis(bases: list[str]) -> str:
    """The title of the y axis."""
    if bases[0].endswith("bits_per_dim"):
        return "bits/dim"
    return "loss" if bases[0].endswith("loss") else readable(bases[0])
