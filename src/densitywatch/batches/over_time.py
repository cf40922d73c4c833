"""index.html of the results folder: the batches over time, one page in one file, made from the table of batches alone.

The newest batches are part of the page as it is opened; its script adds the older ones and the search. The charts are
drawn here, as shapes. Names from outside are text, as in the batch report (batch_report.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from densitywatch.batches.batch_table import Row, add_row, read_table, row_of, table_lock
from densitywatch.batches.drift_state import in_words
from densitywatch.batches.results_folder import OVER_TIME, REPORT
from densitywatch.errors import DiskFull
from densitywatch.files import write_whole
from densitywatch.progress import say
from densitywatch.templates import page_templates
from densitywatch.text import as_text, one_line, visible

AT_FIRST = 50
"""Batches in the page before its script adds more."""
COLUMNS = 160
"""Columns of a chart, at most; more batches share a column."""
WIDTH = 640.0
LEAST_EVIDENCE = 0.01
"""The bottom of the chart of drift evidence."""
DIFFERS = 0.001
"""A batch in no stream with a smaller p-value is said to differ from the calibration images."""


def note_batch(
    folder: Path, summary: Mapping[str, Any], drift_alarm: float | None, *, seconds: float | None = None
) -> None:
    """Put the results in `folder` into the table next to it, and write the page anew.

    `drift_alarm`: inbox.drift_alarm. A table or page that cannot be written costs no result: a line says so.
    """
    results = folder.parent
    try:
        with table_lock(results):
            rows = add_row(results, row_of(folder, summary, time=time.time(), seconds=seconds))
            _write(results, rows, drift_alarm)
    except (DiskFull, OSError, ValueError) as error:
        say(f"score: {as_text(str(results / OVER_TIME))}: not written ({one_line(error)}); the results are whole")


def write_page(results: Path, drift_alarm: float | None) -> list[Row]:
    """Write the page of the folder `results` anew and return the rows of its table."""
    with table_lock(results):
        rows = read_table(results)
        _write(results, rows, drift_alarm)
    return rows


def _write(results: Path, rows: Sequence[Row], drift_alarm: float | None) -> None:
    page = page_templates(Path(__file__).parent).get_template("over_time.html.j2")
    newest = [cells(row, drift_alarm) for row in reversed(rows)]
    text = page.render(
        batches=newest,
        at_first=AT_FIRST,
        images=sum(row.scored for row in rows),
        outliers=sum(row.outliers for row in rows),
        quarantined=sum(row.quarantined for row in rows),
        files=sum(row.files for row in rows),
        first=_when(rows[0].time) if rows else None,
        last=_when(rows[-1].time) if rows else None,
        alarm=drift_in_words(rows[-1], drift_alarm) if rows and rows[-1].drift_alarm else None,
        charts=charts(rows, drift_alarm),
        percent=percent,
    )
    write_whole(results / OVER_TIME, text, new_folder=False)


def cells(row: Row, drift_alarm: float | None) -> list[str]:
    """What the page shows of a batch: link, name, details, flagged, quarantined, drift, and `alarm`, `odd` or ``."""
    name = row.batch.rstrip("/").rpartition("/")[2] or row.folder
    files = f"{row.files:,} {'file' if row.files == 1 else 'files'}"
    took = f", {row.seconds:,.0f} s" if row.seconds is not None else ""
    state = "alarm" if row.drift_alarm else "odd" if row.outliers or row.quarantined else ""
    return [
        f"./{quote(row.folder)}/{REPORT}",
        visible(name),
        f"{_when(row.time)}, {files}{took}",
        _count(row.outliers, row.flagged_share),
        _count(row.quarantined, row.quarantined_share),
        visible(drift_in_words(row, drift_alarm)),
        state,
    ]


def drift_in_words(row: Row, drift_alarm: float | None) -> str:
    """What the drift test says of a batch, in a few words."""
    if row.drift_alarm:
        moved = in_words(row.drift_moved) if row.drift_moved else "the stream has moved"
        since = f", since {row.drift_since}" if row.drift_since else ""
        return f"alarm: {moved}{since}"
    if row.drift_evidence is not None:
        limit = f" of {1 / drift_alarm:,.0f}" if drift_alarm else ""
        return f"none (evidence {row.drift_evidence:.2g}{limit})"
    return "differs from the calibration images" if row.drift_p_value < DIFFERS else "none"


def charts(rows: Sequence[Row], drift_alarm: float | None) -> list[dict[str, Any]]:
    """The charts as shapes: shares flagged and quarantined as bars, the drift evidence as a line; oldest on the left.

    More than COLUMNS batches share columns: shares are those of all their images, the evidence is the largest.
    """
    if len(rows) < 2:  # one batch is no course of things
        return []
    size = math.ceil(len(rows) / COLUMNS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    step = WIDTH / len(groups)
    alarms = [i for i, group in enumerate(groups) if any(row.drift_alarm for row in group)]
    titles = [_title(group) for group in groups]
    shares = {
        "flagged": [sum(row.outliers for row in g) / max(1, sum(row.scored for row in g)) for g in groups],
        "quarantined": [sum(row.quarantined for row in g) / max(1, sum(row.files for row in g)) for g in groups],
    }
    made = [
        _bars(f"Share {name}", name, values, titles, step, height)
        for (name, values), height in zip(shares.items(), (120.0, 60.0), strict=True)
    ]
    if any(row.drift_evidence is not None for row in rows):
        evidence = [
            max((row.drift_evidence for row in group if row.drift_evidence is not None), default=None)
            for group in groups
        ]
        made.append(_line(evidence, titles, step, 90.0, drift_alarm))
    return [
        chart | {"width": WIDTH, "step": step, "bar": min(0.85 * step, 24.0), "alarms": _spans(alarms, step)}
        for chart in made
    ]


def _spans(columns: Sequence[int], step: float) -> list[tuple[float, float]]:
    """Neighbouring columns as one span: where it begins, and how wide it is."""
    spans: list[tuple[float, float]] = []
    for i in columns:
        if spans and abs(sum(spans[-1]) - i * step) < step / 2:
            spans[-1] = (spans[-1][0], spans[-1][1] + step)
        else:
            spans.append((i * step, step))
    return spans


def _bars(
    title: str, kind: str, values: Sequence[float], titles: Sequence[str], step: float, height: float
) -> dict[str, Any]:
    top = _round_up(max(values))
    return {
        "title": title,
        "kind": kind,
        "top": f"{100 * top:.3g} %",
        "height": height,
        "bars": [
            {"x": i * step, "height": height * value / top, "title": f"{said}: {percent(value)} % {kind}"}
            for i, (value, said) in enumerate(zip(values, titles, strict=True))
        ],
        "points": "",
        "limit": None,
    }


def _line(
    values: Sequence[float | None], titles: Sequence[str], step: float, height: float, drift_alarm: float | None
) -> dict[str, Any]:
    """The drift evidence on a logarithmic scale, with the level of an alarm."""
    limit = 1 / drift_alarm if drift_alarm else None
    known = [value for value in values if value is not None]
    # an alarm's evidence may be 1e40, beside which nothing else would show
    top = min(1e6, max(10.0, 10 * (limit or 1.0), *known))

    def y(value: float) -> float:
        inside = min(top, max(LEAST_EVIDENCE, value))
        return height * (1 - math.log(inside / LEAST_EVIDENCE) / math.log(top / LEAST_EVIDENCE))

    at = [(i * step + step / 2, value) for i, value in enumerate(values) if value is not None]
    return {
        "title": "Evidence of drift (log scale)",
        "kind": "drift",
        "top": f"{top:,.0f}{' or more' if top == 1e6 else ''}",
        "height": height,
        "bars": [
            {"x": i * step, "height": height, "title": f"{said}: {value:.2g}"}
            for i, (value, said) in enumerate(zip(values, titles, strict=True))
            if value is not None
        ],
        "points": " ".join(f"{x:.1f},{y(value):.1f}" for x, value in at),
        "limit": y(limit) if limit is not None else None,
    }


def _title(group: Sequence[Row]) -> str:
    first = visible(group[0].folder)
    return first if len(group) == 1 else f"{len(group)} batches from {first}"


def _round_up(share: float) -> float:
    """The next of 1, 2 and 5 times a power of ten; 1 % where nothing is higher."""
    share = max(share, 0.01)
    power = 10.0 ** math.floor(math.log10(share))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= share * (1 - 1e-9))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _count(count: int, share: float) -> str:
    if not count:
        return "0"
    return f"{count:,} ({percent(share)}\u00a0%)"


def percent(share: float) -> str:
    """A share in percent with two digits, and 100 in full: 0.0123 -> 1.2."""
    return f"{100 * share:{'.2g' if share < 0.995 else '.0f'}}"
