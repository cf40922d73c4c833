"""A batch compared with earlier ones: has the stream moved, although no single image is an outlier?"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from densitywatch.batches.results_folder import SCORES, SUMMARY, read_summary
from densitywatch.detector import conformal
from densitywatch.progress import say
from densitywatch.text import as_text, one_line

BATCHES = 20
LOOKED_AT = 100
"""Batches whose summary is opened at most. Under an alarm, or after a new detector, hardly any can be compared with,
and without an end every batch would open the summaries of all before it."""
IMAGES = 2000
"""Images that count of a past batch, at most, taken evenly."""


def drift_from_past(folder: Path, detector: str) -> dict[str, Any]:
    """Compare the p-values in `folder` with those of the latest batches next to it that the same detector scored.

    Returns `past_batches`, the number of them, and `drift_from_past_p_value`, None when there is nothing to compare. It
    is twice the median of the p-values against each past batch (two-sample Kolmogorov-Smirnov), at most 1: a p-value
    whatever the dependence between them (Rueger 1978), which a few drifted batches among the past ones do not move.
    Batches under a drift alarm are no past, and no more than the latest LOOKED_AT are looked at. It takes images for
    independent, and depends on what else has been scored, so it is information and not one of the batch's results.
    """
    past = []
    others = [other for other in _latest_first(folder.parent) if other != folder]
    for other in others[:LOOKED_AT]:
        summary = read_summary(other)
        if summary is None or summary["identity"]["detector"] != detector or summary.get("drift_alarm"):
            continue
        values = _p_values(other)
        if len(values):
            past.append(values[:: math.ceil(len(values) / IMAGES)])
        if len(past) == BATCHES:
            break
    ours = _p_values(folder) if past else np.empty(0)
    if not len(ours):
        return {"past_batches": len(past), "drift_from_past_p_value": None}
    against_each = [conformal.drift(ours, other).p_value for other in past]
    return {"past_batches": len(past), "drift_from_past_p_value": min(1.0, 2 * float(np.median(against_each)))}


def _latest_first(results: Path) -> list[Path]:
    """The folders that have a summary, whole or damaged. One that disappears meanwhile is left out."""
    found = []
    with os.scandir(results) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with suppress(OSError):  # a Path for each of thousands of batches takes longer than the look itself
                    found.append((os.stat(f"{entry.path}{os.sep}{SUMMARY}").st_mtime_ns, entry.name))  # noqa: PTH116
    return [results / name for _, name in sorted(found, reverse=True)]


def _p_values(folder: Path) -> NDArray[np.float64]:
    """The p-values in a folder's scores; empty where they cannot be read or are no p-values."""
    try:
        column = pq.read_table(folder / SCORES, columns=["p_value"]).column("p_value")
        if not pa.types.is_floating(column.type):  # numpy would turn texts into numbers
            raise TypeError(f"p_value is {column.type}, no number")
        values = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
    except (OSError, LookupError, ValueError, TypeError, pa.ArrowException) as error:
        say(f"score: {as_text(str(folder / SCORES))}: not readable ({one_line(error)}); not compared with")
        return np.empty(0)
    if not ((values > 0) & (values <= 1)).all():
        say(f"score: {as_text(str(folder / SCORES))}: holds what are no p-values; not compared with")
        return np.empty(0)
    return values
