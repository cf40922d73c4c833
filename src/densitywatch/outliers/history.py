"""A batch beside those before it: has the stream moved, though no single image stands out?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from densitywatch.outliers import conformal, publishing
from densitywatch.outliers.results import SCORES

BATCHES = 20
IMAGES = 2000
"""At most this many images of a past batch count, evenly taken, so that a large one does not drown the others."""


def drift_from_past(folder: Path, detector: str) -> dict[str, Any]:
    """Compare the p-values in `folder` with those of the latest batches beside it that the same detector scored.

    Returns `past_batches`, how many there were, and `drift_from_past_p_value` (two-sample Kolmogorov-Smirnov), None
    when there is nothing to compare. It depends on what else has been scored, so it is kept out of the batch's results.
    """
    past = []
    others = [other for other in folder.parent.glob("[!.]*/summary.json") if other.parent != folder]
    for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        summary = publishing.read_summary(other.parent)
        if summary is None or summary["identity"].get("detector") != detector:
            continue
        values = _p_values(other.parent)
        if len(values):
            past.append(values[:: max(1, len(values) // IMAGES)])
        if len(past) == BATCHES:
            break
    ours = _p_values(folder) if past else np.empty(0)
    if not len(ours):
        return {"past_batches": len(past), "drift_from_past_p_value": None}
    drift = conformal.drift(ours, np.concatenate(past))
    return {"past_batches": len(past), "drift_from_past_p_value": float(drift.p_value)}


def _p_values(folder: Path) -> NDArray[np.float64]:
    try:
        column = pq.read_table(folder / SCORES, columns=["p_value"]).column("p_value")
    except (OSError, pa.ArrowException):
        return np.empty(0)
    return np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
