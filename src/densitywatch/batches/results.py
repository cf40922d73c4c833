"""scores.parquet and summary.json of a batch, made from its scored chunks: here images are flagged."""

from __future__ import annotations

import filecmp
import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densitywatch.arrays import Floats
from densitywatch.batches.chunks import RESULTS, is_whole
from densitywatch.batches.flags import flag
from densitywatch.batches.gallery import SCHEMA
from densitywatch.batches.results_folder import GALLERY, REPORT, SCORES, SUMMARY
from densitywatch.batches.scorer import Scorer
from densitywatch.batches.streams import Rule
from densitywatch.detector import conformal
from densitywatch.detector.label_ranks import LabelRanks
from densitywatch.files import write_whole

LABELS = ("label", "label_probability", "label_p_value")
OUTLIER = pa.field("outlier", pa.bool_())
GROUP = 10_000
"""Rows of a row group of scores.parquet, rounded to whole chunks. Every group costs writer and readers some memory."""
BINS = 40
REASONS = 50
"""Different reasons that the summary counts; the rest are counted together."""


def write_scores(
    work: Path,
    fresh: Path,
    scorer: Scorer,
    rule: Rule,
    identity: dict[str, Any],
    *,
    results: Path,
    files: int,
    skipped: Counter[str] | None = None,
    drift_keys: Callable[[str], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write scores.parquet and summary.json from the chunks in `work` to `fresh`; returns the summary.

    `rule`: how images are flagged. `results`: the folder that the stream is kept in. `files`: as many were read; they
    are not counted by their rows, so a lost row is noticed. `skipped`: files of the source that are no images by their
    names, and so have no rows. `drift_keys`: what the summary says of drift over the stream, given the digest of the
    batch's names and contents.
    """
    skipped = Counter() if skipped is None else skipped
    parts = sorted(work.glob("*.parquet"))
    p, bars, labelled = _read(parts, scorer.calibration)
    scored = np.isfinite(p)
    p = p[scored]  # of the scored images alone; a batch may have millions, so there is one copy
    outlier = np.zeros(len(scored), dtype=bool)
    content = _content(parts)
    flags = flag(p, scorer.calibration, rule, results=results, batch=identity["source"], content=content)
    outlier[scored] = flags.outlier

    names = [name for name in RESULTS.names if name not in LABELS]
    schema = pa.schema(
        [*(RESULTS.field(name) for name in names), OUTLIER, *(RESULTS.field(n) for n in LABELS if labelled)]
    )
    reasons, changed, start = dict[str, int](), 0, 0
    with pq.ParquetWriter(fresh / SCORES, schema) as writer:
        for group in _groups(parts, identity["chunk"]):
            table = pa.concat_tables([pq.read_table(part, columns=RESULTS.names) for part in group])
            called = pa.array(outlier[start : start + table.num_rows])
            start += table.num_rows
            for status, reason in zip(*(table.column(name).to_pylist() for name in ("status", "reason")), strict=True):
                if status == "quarantined":
                    kind = re.sub(r"\d[\d,.]*", "N", str(reason))
                    kind = kind if kind in reasons or len(reasons) < REASONS else "other reasons"
                    reasons[kind] = reasons.get(kind, 0) + 1
                elif reason is not None:
                    changed += 1
            writer.write_table(table.append_column(OUTLIER, called).select(schema.names), row_group_size=table.num_rows)

    drift = conformal.drift(p, calibration_size=len(scorer.calibration))
    summary = {
        "batch": identity["source"],
        "files": files,
        "scored": int(scored.sum()),
        "quarantined": int((~scored).sum()),
        "skipped": skipped.total(),
        "outliers": int(outlier.sum()),
        "changed_to_fit": changed,
        "false_discovery_rate": rule.rate,
        "false_alarm_rate": scorer.false_alarm_rate,
        **no_class(parts, scorer),
        "drift_p_value": float(drift.p_value),
        **(drift_keys(content) if drift_keys is not None else {}),
        "median_p_value": float(np.median(p)) if len(p) else None,
        **flags.facts,
        "content": content,
        "identity": identity,
        "quarantine_reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "skipped_kinds": dict(sorted(skipped.items(), key=lambda item: (-item[1], item[0]))),
        "histogram": bars,
    }
    write_whole(fresh / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return summary


def _read(parts: list[Path], calibration: Floats) -> tuple[Floats, dict[str, Any], bool]:
    """Every row's p-value (NaN where there is none), the histogram of scores, and whether any row has a label."""
    # arrays that grow in place: a list of arrays would be in memory twice while it is joined
    p, score, labelled = array("d"), array("d"), False
    for part in parts:
        table = pq.read_table(part, columns=["p_value", "score", "label"])
        p.frombytes(_floats(table, "p_value").tobytes())
        score.frombytes(_floats(table, "score").tobytes())
        labelled = labelled or table.column("label").null_count < table.num_rows
    values, scores = np.asarray(p), np.asarray(score)
    return values, histogram(scores[np.isfinite(values)], calibration), labelled


def no_class(parts: list[Path], scorer: Scorer) -> dict[str, Any]:
    """`no_class`: the number of images that belong to no class at the false-alarm rate; `labels_too_small`: a sentence.

    Empty where labels have no p-values. An image of a label that the sentence names is never counted.
    """
    ranks: LabelRanks | None = getattr(scorer, "label_ranks", None)
    if ranks is None:
        return {}
    rate = scorer.false_alarm_rate
    columns = (_floats(pq.read_table(part, columns=["label_p_value"]), "label_p_value") for part in parts)
    count = sum(int((column <= rate).sum()) for column in columns)
    return {"no_class": count, "labels_too_small": ranks.too_small(rate, scorer.class_names)}


def _content(parts: list[Path]) -> str:
    """A digest of names and contents, in the batch's order."""
    content = hashlib.sha256()
    for part in parts:
        table = pq.read_table(part, columns=["path", "sha256"])
        for path, digest in zip(table.column("path").to_pylist(), table.column("sha256").to_pylist(), strict=True):
            content.update(json.dumps([path, digest]).encode())
    return content.hexdigest()


class PublishedChunks:
    """The chunks of published scores by number. The last row group is kept: the next chunk is most likely in it."""

    def __init__(self, folder: Path, chunk: int) -> None:
        """`chunk`: the number of files in a chunk. Raises OSError or ArrowException when the scores cannot be read."""
        self._folder, self._file, self._chunk = folder, pq.ParquetFile(folder / SCORES), chunk
        self._number, self._group = -1, RESULTS.empty_table()

    def __reduce__(self) -> tuple[type[PublishedChunks], tuple[Path, int]]:
        """For another process of this machine, which opens the file again."""
        return PublishedChunks, (self._folder, self._chunk)

    def __call__(self, number: int) -> pa.Table | None:
        """The rows of a chunk, schema RESULTS; None past the last one."""
        group, place = divmod(number, _chunks_of_group(self._chunk))
        if group >= self._file.num_row_groups:
            return None
        if group != self._number:
            self._number, self._group = group, self._read(group)
        rows = self._group.slice(place * self._chunk, self._chunk)
        return rows if rows.num_rows else None

    def _read(self, group: int) -> pa.Table:
        """A row group, or no rows where it is damaged: then its files are scored again."""
        try:
            table = self._file.read_row_group(group)
            for name in LABELS:
                if name not in table.column_names:
                    table = table.append_column(RESULTS.field(name), pa.nulls(table.num_rows, RESULTS.field(name).type))
            table = table.select(RESULTS.names)
        except (OSError, LookupError, ValueError, pa.ArrowException):
            return RESULTS.empty_table()
        return table if is_whole(table) else RESULTS.empty_table()


def _chunks_of_group(chunk: int) -> int:
    return max(1, GROUP // chunk)


def _groups(parts: list[Path], chunk: int) -> Iterator[list[Path]]:
    step = _chunks_of_group(chunk)
    return (parts[start : start + step] for start in range(0, len(parts), step))


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


def histogram(scores: Floats, calibration: Floats) -> dict[str, Any]:
    """Counts of the batch's and the calibration's scores in the same bins; the end bins hold all beyond them."""
    low, high = np.quantile(calibration, [0.001, 0.999])
    span = float(high - low) or 1.0
    edges = np.linspace(low - 0.25 * span, high + 0.75 * span, BINS + 1)
    inside = (edges[0] + 1e-9 * span, edges[-1] - 1e-9 * span)
    return {
        "edges": [float(edge) for edge in edges],
        "batch": np.histogram(np.clip(scores, *inside), edges)[0].tolist(),
        "calibration": np.histogram(np.clip(calibration, *inside), edges)[0].tolist(),
    }


def are_same(folder: Path, fresh: Path) -> bool:
    """Whether the published results can stay: the same scores as in `fresh`, and a gallery and a report."""
    try:
        if not filecmp.cmp(folder / SCORES, fresh / SCORES, shallow=False):
            return False
        gallery = pq.ParquetFile(folder / GALLERY)
        for group in range(gallery.num_row_groups):
            gallery.read_row_group(group)
    except (OSError, ValueError, pa.ArrowException):
        return False
    return bool(gallery.schema_arrow.equals(SCHEMA)) and (folder / REPORT).is_file()
