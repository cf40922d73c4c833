"""Speed against size: images/s of every model over batch, resolution and channels, with plots in docs/lab/plots.

    python benchmarks/speed/sizes.py

One thread, the processor's time, the settings of params.yaml, eager and in float32, so that sizes differ in nothing
else. One of the three sizes changes at a time; the others stay at 16 images of 28 x 28 grey pixels. Scoring is for the
exact densities. Cached sampling is also set against the naive loop, of whose equal steps one is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import torch
from likelihood_models import naive_pixel
from torch.nn.modules.batchnorm import _BatchNorm

from densitywatch.devices import start_fabric
from densitywatch.models.offers import ExactDensity, PixelSteps, Sampler, is_game
from densitywatch.models.storage import build_model
from densitywatch.pages import charts
from densitywatch.params import DeviceParams, Params, load_params
from densitywatch.training.adversarial import adversarial_step
from densitywatch.training.optimizers import make_optimizers
from densitywatch.training.steps import likelihood_step

MODELS = ("pixelcnn", "pixelrnn", "vae", "autoencoder", "gan", "dcgan", "conditional_gan")
POINTS = {"batch": [1, 4, 16, 64, 256], "size": [16, 28, 32, 64], "channels": [1, 3]}
MIDDLE = {"batch": 16, "size": 28, "channels": 1}
CLASSES = 10
ENOUGH = 0.2
"""Seconds after which a measurement is not repeated."""
LONG = 1.0
"""A first call that took this long needs no warm-up before it."""
PLOTS = Path("docs/lab/plots")

Row = dict[str, Any]


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one call: the least of those that fit into ENOUGH seconds, the first not counted if short."""
    times: list[float] = []
    while sum(times) < ENOUGH or len(times) < 2:
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
        if times[0] > LONG:
            return times[0]
    return min(times[1:])


def training_step(
    name: str, params: Params, fabric: Any, *, batch: int, size: int, channels: int
) -> tuple[Any, Callable[[], Any]]:
    """A new model and a function that trains it by one step, optimisers and clipping of params.yaml included."""
    torch.manual_seed(0)
    training = params.models[name].training
    model: Any = build_model(params.models[name], channels=channels, size=size, classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)
    optimizers = make_optimizers(model, training)
    x = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(batch) % CLASSES
    step = adversarial_step if is_game(model) else likelihood_step
    trained = fabric.setup_module(model)
    for method in ("loss", "generator_loss", "discriminator_loss"):
        if hasattr(model, method):
            trained.mark_forward_method(method)
    prepared = {key: fabric.setup_optimizers(optimizer) for key, optimizer in optimizers.items()}
    return model, lambda: step(fabric, trained, prepared, x, labels, training)


def measure(name: str, params: Params, fabric: Any, point: dict[str, int]) -> dict[str, float]:
    """Images/s of what the model can do at one `point` (batch, size, channels), and cached over naive sampling."""
    batch = point["batch"]
    model, train = training_step(name, params, fabric, **point)
    found: dict[str, float] = {}
    if batch > 1 or not any(isinstance(part, _BatchNorm) for part in model.modules()):  # no statistics of one image
        found["training"] = batch / seconds(train)
    model.eval()
    x = torch.randint(0, 256, (batch, point["channels"], point["size"], point["size"]), dtype=torch.uint8)
    with torch.no_grad():
        if isinstance(model, ExactDensity):
            found["scoring"] = batch / seconds(lambda: model.log_prob(x))
        if isinstance(model, Sampler):
            found["sampling"] = batch / seconds(lambda: model.sample(batch))
        if isinstance(model, PixelSteps) and point["channels"] == 1:
            naive = batch / (seconds(lambda: naive_pixel(model, x)) * point["size"] ** 2)
            found["over naive"] = found["sampling"] / naive
    return found


def rows_of(points: dict[str, list[int]], params: Params, fabric: Any) -> Iterator[Row]:
    """A row for every model, axis, value and figure; the point in which the axes meet is measured once."""
    for name in MODELS:
        middle: dict[str, float] = {}
        for axis, values in points.items():
            for value in values:
                point = MIDDLE | {axis: value}
                found = middle if point == MIDDLE and middle else measure(name, params, fabric, point)
                middle = found if point == MIDDLE else middle
                for what, rate in found.items():
                    yield {"model": name, "axis": axis, "value": value, "what": what, "rate": rate}


def panel(rows: list[Row], *, values: list[int], x_title: str, y_title: str) -> Any:
    """Lines of rate over value, a colour a model, both axes logarithmic."""
    names = [name for name in MODELS if any(row["model"] == name for row in rows)]
    colours = [charts.SERIES[MODELS.index(name)] for name in names]
    x = alt.X(
        "value:Q", title=x_title, scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=values, format="d")
    )
    # ticks at powers of ten alone: the others' labels would lie on top of each other
    y = alt.Y(
        "rate:Q",
        title=y_title,
        scale=alt.Scale(type="log"),
        axis=alt.Axis(values=[10**k for k in range(6)], format="~s"),
    )
    colour = alt.Color(
        "model:N",
        scale=alt.Scale(domain=names, range=colours),
        legend=alt.Legend(orient="top", title=None, columns=4),
    )
    chart = alt.Chart(alt.InlineData(values=rows), width=280, height=230).mark_line(point=True, strokeWidth=2)
    return chart.encode(x=x, y=y, color=colour)


def plots(rows: list[Row]) -> dict[str, str]:
    """SVG texts by file name."""

    def taken(axis: str, what: str) -> list[Row]:
        return [row for row in rows if (row["axis"], row["what"]) == (axis, what)]

    titles = {
        "batch": (POINTS["batch"], "images in a batch (28 x 28 grey)"),
        "size": (POINTS["size"], "pixels a side (16 grey images)"),
    }
    result = {}
    for axis, (values, x_title) in titles.items():
        panels = [
            panel(taken(axis, what), values=values, x_title=x_title, y_title=f"{what}, images/s")
            for what in ("training", "sampling", "scoring")
        ]
        result[f"{axis}.svg"] = charts.to_svg(alt.hconcat(*panels))
    values, x_title = titles["size"]
    cached = panel(taken("size", "over naive"), values=values, x_title=x_title, y_title="cached over naive sampling")
    result["cached.svg"] = charts.to_svg(cached)
    grey = {(row["model"], row["what"]): row["rate"] for row in rows if (row["axis"], row["value"]) == ("channels", 1)}
    shares = [
        {"name": f"{row['model']}, {row['what']}", "share": row["rate"] / grey[row["model"], row["what"]]}
        for row in rows
        if (row["axis"], row["value"]) == ("channels", 3) and row["what"] != "over naive"
    ]
    result["channels.svg"] = charts.bars(shares, x="share", y="name", x_title="images/s of RGB over those of grey")
    return result


def table(rows: list[Row]) -> str:
    """The same figures as Markdown, a line a model and what it does."""
    columns = [(axis, value) for axis, values in POINTS.items() for value in values]
    lines = ["| images/s | " + " | ".join(f"{axis} {value}" for axis, value in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    found = {(row["model"], row["what"], row["axis"], row["value"]): row["rate"] for row in rows}
    for name, what in dict.fromkeys((row["model"], row["what"]) for row in rows if row["what"] != "over naive"):
        cells = [found.get((name, what, axis, value)) for axis, value in columns]
        text = ["" if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}" for rate in cells]
        lines.append(f"| {name}, {what} | " + " | ".join(text) + " |")
    return "\n".join(lines)


def main() -> None:
    params = load_params()
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1))
    rows = list(rows_of(POINTS, params, fabric))
    print(table(rows))
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, text in plots(rows).items():
        (PLOTS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
