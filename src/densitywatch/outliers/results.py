"""scores.parquet and summary.json of a batch, made of its scored chunks."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densitywatch.files import write_whole
from densitywatch.outliers import conformal
from densitywatch.outliers.chunks import RESULTS

SCORES, SUMMARY, RUN = "scores.parquet", "summary.json", "run.json"
LABELS = ("label", "label_probability")
OUTLIER = pa.field("outlier", pa.bool_())
BINS = 40
REASONS = 50


def write_scores(work: Path, fresh: Path, detector: Any, rate: float, identity: dict[str, Any]) -> dict[str, Any]:
    """scores.parquet and summary.json from the chunks; the summary is returned."""
    parts = sorted(work.glob("*.parquet"))
    p_chunks, score_chunks, labelled = [], [], False
    for part in parts:
        table = pq.read_table(part, columns=["p_value", "score", "label"])
        p_chunks.append(_floats(table, "p_value"))
        score_chunks.append(_floats(table, "score"))
        labelled = labelled or table.column("label").null_count < table.num_rows
    p = np.concatenate([*p_chunks, np.empty(0)])
    scored = np.isfinite(p)
    outlier = np.zeros(len(p), dtype=bool)
    outlier[scored] = conformal.benjamini_hochberg(p[scored], rate)

    names = [name for name in RESULTS.names if name not in LABELS]
    schema = pa.schema(
        [*(RESULTS.field(name) for name in names), OUTLIER, *(RESULTS.field(n) for n in LABELS if labelled)]
    )
    content, reasons, changed, start = hashlib.sha256(), dict[str, int](), 0, 0
    with pq.ParquetWriter(fresh / SCORES, schema) as writer:
        for part in parts:
            table = pq.read_table(part, columns=RESULTS.names)
            flags = pa.array(outlier[start : start + table.num_rows])
            start += table.num_rows
            for path, digest, status, reason in zip(
                *(table.column(name).to_pylist() for name in ("path", "sha256", "status", "reason")), strict=True
            ):
                content.update(json.dumps([path, digest]).encode())
                if status == "quarantined":
                    kind = re.sub(r"\d[\d,.]*", "N", str(reason))
                    kind = kind if kind in reasons or len(reasons) < REASONS else "other reasons"
                    reasons[kind] = reasons.get(kind, 0) + 1
                elif reason is not None:
                    changed += 1
            writer.write_table(table.append_column(OUTLIER, flags).select(schema.names), row_group_size=table.num_rows)

    drift = conformal.drift(p[scored])
    summary = {
        "batch": identity["source"],
        "files": len(p),
        "scored": int(scored.sum()),
        "quarantined": int((~scored).sum()),
        "outliers": int(outlier.sum()),
        "changed_to_fit": changed,
        "false_discovery_rate": rate,
        "false_alarm_rate": detector.false_alarm_rate,
        "drift_p_value": float(drift.p_value),
        "median_p_value": float(np.median(p[scored])) if scored.any() else None,
        "promise": promise(rate),
        "fewest_to_flag": fewest_to_flag(int(scored.sum()), rate, getattr(detector, "calibration", None)),
        "content": content.hexdigest(),
        "identity": identity,
        "quarantine_reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "histogram": histogram(
            np.concatenate([*score_chunks, np.empty(0)])[scored], getattr(detector, "calibration", None)
        ),
    }
    write_whole(fresh / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return summary


def _floats(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


def promise(rate: float) -> str:
    """What the flags promise and under which assumption, for someone who knows no statistics."""
    return (
        f"Of all the images flagged over many batches, on average at most {100 * rate:.3g} in 100 are false alarms, as "
        "long as the normal images that arrive are like the ones the detector was calibrated on."
    )


def fewest_to_flag(images: int, rate: float, calibration: Any) -> int | None:
    """How many images must be as unusual as can be before Benjamini-Hochberg flags any of a batch of `images`.

    No p-value is below 1 / (calibration images + 1), so a few outliers in a large batch cannot be told from chance.
    """
    if calibration is None or len(calibration) == 0:
        return None
    return max(1, math.ceil(images / (rate * (len(calibration) + 1)) - 1e-9))


def histogram(scores: Any, calibration: Any) -> dict[str, Any] | None:
    """Counts of the batch's and the calibration's scores in the same bins; the first and last bin take all beyond."""
    if calibration is None or len(calibration) == 0:
        return None
    low, high = np.quantile(calibration, [0.001, 0.999])
    span = float(high - low) or 1.0
    edges = np.linspace(low - 0.25 * span, high + 0.75 * span, BINS + 1)
    inside = (edges[0] + 1e-9 * span, edges[-1] - 1e-9 * span)
    return {
        "edges": [float(edge) for edge in edges],
        "batch": np.histogram(np.clip(scores, *inside), edges)[0].tolist(),
        "calibration": np.histogram(np.clip(calibration, *inside), edges)[0].tolist(),
    }
