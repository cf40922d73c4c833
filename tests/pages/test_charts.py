from __future__ import annotations

import re

import numpy as np

from densitywatch.pages import charts


def test_a_chart_is_the_same_text_every_time_and_escapes_what_it_shows() -> None:
    rows = [{"x": 0, "y": 1.0, "name": "<script>"}, {"x": 1, "y": 2.0, "name": "<script>"}]
    first = charts.lines(rows, x="x", y="y", series="name", x_title="x", y_title="<b>")
    assert first == charts.lines(rows, x="x", y="y", series="name", x_title="x", y_title="<b>")
    assert "<script>" not in first
    assert "<b>" not in first


def test_every_colour_of_a_chart_has_its_dark_counterpart() -> None:
    svg = charts.lines([{"x": 0, "y": 1.0}, {"x": 1, "y": 2.0}], x="x", y="y", x_title="x", y_title="y")
    used = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{3,6})"', svg.split("</style>")[1]))
    assert used <= charts.DARK.keys()
    assert "prefers-color-scheme:dark" in svg


def test_a_histogram_of_many_values_is_as_small_as_one_of_few() -> None:
    random = np.random.default_rng(0)
    many = charts.histogram(random.normal(size=50_000), title="x")
    assert len(many) < 2 * len(charts.histogram(random.normal(size=500), title="x"))
    assert many.startswith("<svg")


def test_a_histogram_of_one_value_is_drawn() -> None:
    assert charts.histogram(np.full(5, 3.0), title="x").startswith("<svg")


def test_bars_keep_the_order_of_their_rows() -> None:
    svg = charts.bars([{"v": 1.0, "n": "zebra"}, {"v": 2.0, "n": "ant"}], x="v", y="n", x_title="v")
    assert svg.index(">zebra<") < svg.index(">ant<")
