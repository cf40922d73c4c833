"""pixelcnn_pyramid against the number of pixels: seconds and memory, and its sampler against raster order.

    python benchmarks/pyramid/size.py

One thread, the processor's time, untrained default settings, RGB, eager and in float32, one image. Each size has a
process of its own, whose largest memory is set against that of a process that scored 4 x 4 pixels. Raster order is a
PixelCNN of the same width, dilations and colours, with one network call a pixel, of which two are timed: all of them
are alike. Its cached sampler, of which a row is timed, is the other reference. Plot: docs/lab/plots/pyramid.svg.

Without AVX-512: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 before the command.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import torch

from densitywatch.models import pixelcnn
from densitywatch.models.common.sampling import HeadSteps
from densitywatch.models.pixelcnn import PixelCNN
from densitywatch.models.pixelcnn_pyramid import PixelCNNPyramid, Settings
from densitywatch.pages import charts

SIZES = (32, 64, 128, 256, 512)
LARGE = 256
CALLS = 20
PLOT = Path("docs/lab/plots/pyramid.svg")


def seconds(run: Callable[[], Any], times: int = 2) -> float:
    """Processor time of one call, the least of several."""
    found = []
    for _ in range(times):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


@torch.no_grad()
def of_size(size: int) -> dict[str, float]:
    """Seconds to score and to sample an image, and the process's memory in MiB after the scoring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PixelCNNPyramid(Settings(), channels=3, size=512, classes=0).eval()
    x = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    model.log_prob(x[:, :, :4, :4])
    score = seconds(lambda: model.log_prob(x))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"score": score, "memory": memory, "sample": seconds(lambda: model.sample(1, size=(size, size)), 1)}


@torch.no_grad()
def by_threads() -> dict[str, float]:
    """Images of LARGE pixels a side scored a second by the clock, by the number of threads."""
    torch.manual_seed(0)
    model = PixelCNNPyramid(Settings(), channels=3, size=LARGE, classes=0).eval()
    x = torch.randint(0, 256, (1, 3, LARGE, LARGE), dtype=torch.uint8)
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model.log_prob(x)
        spent = []
        for _ in range(CALLS):
            started = time.perf_counter()
            model.log_prob(x)
            spent.append(time.perf_counter() - started)
        found[str(threads)] = 1 / min(spent)
    return found


@torch.no_grad()
def raster() -> dict[str, float]:
    """Seconds that raster order takes for an image of LARGE pixels a side: naive, and cached."""
    torch.set_num_threads(1)
    default = Settings()
    settings = pixelcnn.Settings(channels=default.coarse_channels, dilations=default.coarse_dilations)
    model = PixelCNN(settings, channels=3, size=LARGE, classes=0).eval()
    x = torch.randint(0, 256, (1, 3, LARGE, LARGE), dtype=torch.uint8)
    naive = LARGE**2 * seconds(lambda: model.features(x))
    steps, head = model.steps(1), HeadSteps(model.head, 1)

    def row() -> None:
        steps.start_row(0)
        for j in range(LARGE):
            head.start(steps.features(j))
            for k in range(3):
                torch.searchsorted(head.cumulated(k), torch.rand(1, 1))

    with torch.inference_mode():
        return {"naive": naive, "cached": LARGE * seconds(row)}


def elsewhere(what: str) -> dict[str, float]:
    """What this program prints when it is run with the argument `what`."""
    done = subprocess.run([sys.executable, __file__, what], check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def plot(rows: list[dict[str, float]]) -> str:
    """Seconds and memory over pixels, both axes logarithmic, as an SVG."""
    lines = [
        {"pixels": size**2, "what": what, "value": row[key]}
        for size, row in zip(SIZES, rows, strict=True)
        for key, what in (("score", "score, seconds"), ("sample", "sample, seconds"), ("memory", "memory, GiB"))
        if row[key] > 0
    ]
    x = alt.X("pixels:Q", title="pixels", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    y = alt.Y("value:Q", title="for one RGB image", scale=alt.Scale(type="log"))
    colour = alt.Color("what:N", scale=alt.Scale(range=charts.SERIES[:3]), legend=alt.Legend(orient="top", title=None))
    chart = alt.Chart(alt.InlineData(values=lines), width=380, height=260).mark_line(point=True, strokeWidth=2)
    return charts.to_svg(chart.encode(x=x, y=y, color=colour))


def main() -> None:
    nothing = elsewhere("4")["memory"]
    rows = [elsewhere(str(size)) for size in SIZES]
    print(f"{torch.backends.cpu.get_cpu_capability()}; one RGB image; a process before it: {nothing:.0f} MiB")
    print("| pixels a side | score, s | sample, s | memory, MiB | score, microseconds a pixel |\n|---|---|---|---|---|")
    for size, row in zip(SIZES, rows, strict=True):
        row["memory"] = (row["memory"] - nothing) / 1024
        each = 1e6 * row["score"] / size**2
        print(f"| {size} | {row['score']:.3f} | {row['sample']:.2f} | {1024 * row['memory']:.0f} | {each:.2f} |")
    large = rows[SIZES.index(LARGE)]
    for threads, speed in elsewhere("threads").items():
        print(f"{speed:.1f} images of {LARGE} x {LARGE} a second by the clock on {threads} threads")
    order, own = elsewhere("raster"), large["sample"]
    for name, spent in order.items():
        print(f"raster order at {LARGE}, {name}, from a part: {spent:,.0f} s, {spent / own:,.0f} times the pyramid's")
    PLOT.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        what = {"raster": raster, "threads": by_threads}.get(sys.argv[1])
        print(json.dumps(what() if what else of_size(int(sys.argv[1]))))
    else:
        main()
