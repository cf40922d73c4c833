"""Charts as SVG text. They need no script, follow the reader's light or dark setting, and are the same byte for byte.

altair and vl_convert are imported by the functions that draw: they take a second, and many who import this file draw
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# a colour of the light chart: the colour of the dark one
COLOURS = {
    "#1f6f8b": "#6cc0dd",
    "#c2571a": "#f0a26b",
    "#6b4fa0": "#b9a2ea",
    "#3f7d3a": "#93cf8d",
    "#a32e5f": "#ee91b7",
    "#7a6510": "#d9c25c",
    "#555f66": "#b4bec6",
}
SERIES = tuple(COLOURS)
INK, FAINT, PAPER = "#20262b", "#dde2e5", "#fefefe"
DARK = {**COLOURS, INK: "#e3e7ea", FAINT: "#363d43", PAPER: "#171b1f"}

WIDTH, HEIGHT = 340, 190

Row = Mapping[str, Any]


def lines(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    x_title: str,
    y_title: str,
    series: str | None = None,
    logarithmic: bool = False,
) -> str:
    """A line chart of `rows` (keys x, y and, for several lines, series) as SVG text; x may be `logarithmic`."""
    import altair as alt

    encoding: dict[str, Any] = {
        "x": alt.X(
            f"{x}:Q",
            title=x_title,
            axis=alt.Axis(tickCount=5),
            scale=alt.Scale(type="log") if logarithmic else alt.Undefined,
        ),
        "y": alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
    }
    if series is not None:
        names = list(dict.fromkeys(row[series] for row in rows))
        colours = [SERIES[i % len(SERIES)] for i in range(len(names))]
        encoding["color"] = alt.Color(
            f"{series}:N",
            scale=alt.Scale(domain=names, range=colours),
            legend=alt.Legend(orient="top", title=None, columns=2),
        )
    # a single point draws no line, so a few points are marked
    few = len(rows) <= 40
    mark = alt.MarkDef(type="line", strokeWidth=2, color=SERIES[0], point=few, clip=True)
    return to_svg(alt.Chart(alt.InlineData(values=[dict(row) for row in rows]), mark=mark).encode(**encoding))


def histogram(values: np.ndarray, *, title: str, y_title: str = "images", most_bins: int = 40) -> str:
    """A histogram of `values` (N,) as SVG text; a line marks their mean. The SVG holds bins alone, so it is small."""
    import altair as alt

    low, high = float(values.min()), float(values.max())
    bins = min(most_bins, max(8, round(2 * len(values) ** (1 / 3))))  # Rice's rule
    counts, edges = np.histogram(values, bins=bins, range=(low, high if high > low else low + 1.0))
    rows = [
        {"from": round(float(a), 6), "to": round(float(b), 6), "count": int(n)}
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(fill=SERIES[0], stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("from:Q", title=title, scale=alt.Scale(zero=False, nice=True)),
            x2="to:Q",
            y=alt.Y("count:Q", title=y_title),
            y2=alt.datum(0),
        )
    )
    mean = alt.Chart(alt.InlineData(values=[{"mean": round(float(values.mean()), 6)}])).mark_rule(
        stroke=SERIES[1], strokeWidth=2
    )
    return to_svg(bars + mean.encode(x="mean:Q"))


def bars(rows: Sequence[Row], *, x: str, y: str, x_title: str) -> str:
    """Horizontal bars, one for each of `rows`, in their order, as SVG text."""
    import altair as alt

    chart = (
        alt.Chart(alt.InlineData(values=[dict(row) for row in rows]), height={"step": 24})
        .mark_bar(fill=SERIES[0])
        .encode(x=alt.X(f"{x}:Q", title=x_title), y=alt.Y(f"{y}:N", title=None, sort=None))
    )
    return to_svg(chart)


def to_svg(chart: Any) -> str:
    """An altair chart as SVG text in the project's look. The dark colours are inside, so it works as an image file."""
    import vl_convert

    style: dict[str, Any] = {
        "background": PAPER,
        "font": "Helvetica, Arial, sans-serif",
        "view": {"continuousWidth": WIDTH, "continuousHeight": HEIGHT, "stroke": None},
        "axis": {
            "labelColor": INK,
            "titleColor": INK,
            "gridColor": FAINT,
            "domainColor": FAINT,
            "tickColor": FAINT,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            # a reader's font may be a fifth wider than the one that places were measured with
            "labelOverlap": "greedy",
            "labelSeparation": 10,
        },
        "legend": {
            "labelColor": INK,
            "labelFontSize": 12,
            "symbolStrokeWidth": 3,
            "labelLimit": 300,
            "columnPadding": 40,
        },
        "line": {"strokeCap": "round"},
        "mark": {"color": SERIES[0]},
    }
    svg: str = vl_convert.vegalite_to_svg(chart.configure(**style).to_json(indent=None))
    # vega counts clip paths over the whole process; numbered from 0 again, the same chart gives the same bytes
    numbers = {old: f"clip{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'id="(clip\d+)"', svg)))}
    svg = re.sub(r'(id="|url\(#)(clip\d+)', lambda found: found[1] + numbers[found[2]], svg)
    dark = "".join(
        f'[fill="{light}"]{{fill:{colour}}}[stroke="{light}"]{{stroke:{colour}}}' for light, colour in DARK.items()
    )
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>@media (prefers-color-scheme:dark){{{dark}}}</style>", svg, count=1)
