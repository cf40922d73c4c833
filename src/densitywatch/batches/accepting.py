"""Accept images of drifted batches into the dataset: data/accepted, which `prepare` reads (data/accepted.py).

`data.accept` of params.yaml says which. A flagged image is accepted only when a person called it fine. An image that a
person called an outlier never is. A batch's file is made of its present verdicts each time, so a verdict that was taken
back takes its image away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from densitywatch.batches.batch_report import damage_as_error
from densitywatch.batches.results_folder import SCORES, read_summary
from densitywatch.batches.review.random_draw import fair_sample
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.accepted import ROWS, accepted_files, accepted_rows, schema
from densitywatch.data.dataset import read_info
from densitywatch.data.decoding.images import decode_picture
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.data.look import ACCEPTED
from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.measures.feature_network import classes_of, load_classifier
from densitywatch.files import whole_file
from densitywatch.params import Params


@dataclass
class Accepted:
    """What was accepted of some batches."""

    images: int = 0
    fair: int = 0
    """Those of a random draw that was judged whole."""
    changed: bool = False
    """Whether data/accepted is another than before."""
    unjudged: int = 0
    """Flagged images without a verdict, which stay out."""
    problems: list[str] = field(default_factory=list)
    """Batches of which nothing could be taken, with the reason."""


def accept(batches: Sequence[str], params: Params, root: Path) -> Accepted:
    """Bring data/accepted up to date for these batches, names of results folders; other batches' files stay.

    The originals are read from each batch's source and found by their content. An image that is accepted already, also
    from another batch, is not taken twice. Nothing is done where `data.accept` is `never`. Raises DataError when a file
    of data/accepted, or a person's verdicts, are damaged.
    """
    done = Accepted()
    if params.data.accept == "never":
        return done
    ours = set(batches)
    known = {row["sha256"] for file in accepted_files(root) if file.stem not in ours for row in accepted_rows(file)}
    for name in dict.fromkeys(batches):
        folder = root / params.inbox.results / name
        target = root / ACCEPTED / f"{name}.parquet"
        try:
            rows = _wanted(folder, params, done, known)
            _read_originals(rows, folder, root)
            _label(rows, params, root)
        except (DataError, ModelError, OSError) as error:
            done.problems.append(f"{name}: {error}")
            continue
        known |= {row["sha256"] for row in rows}
        done.images += len(rows)
        done.fair += sum(row["fair"] for row in rows)
        done.changed |= _write(target, rows)
    return done


def verdicts_digest(batches: Sequence[str], params: Params, root: Path) -> tuple[str, int]:
    """A digest of what people called fine in these batches, and the number of these images. Reads verdicts alone."""
    fine: set[str] = set()
    for name in batches:
        with suppress(DataError):
            verdicts = read_verdicts(root / params.inbox.results / name)
            fine |= {digest for (_, digest), verdict in verdicts.items() if verdict == "fine"}
    return hashlib.sha256("\n".join(sorted(fine)).encode()).hexdigest()[:16], len(fine)


def _wanted(folder: Path, params: Params, done: Accepted, known: Collection[str]) -> list[dict[str, Any]]:
    """A row for each image to accept, without its bytes."""
    if read_summary(folder) is None:
        raise DataError("its results are not there any more")
    verdicts = read_verdicts(folder)
    fair = fair_sample(folder, verdicts)
    with damage_as_error(folder):
        there = set(pq.read_schema(folder / SCORES).names)
        columns = ["path", "sha256", "status", "outlier", *({"label"} & there)]
        scored = pq.read_table(folder / SCORES, columns=columns).to_pylist()
    rows: dict[str, dict[str, Any]] = {}
    for row in scored:
        verdict = verdicts.get((row["path"], row["sha256"]))
        if row["status"] != "scored" or row["sha256"] in known:
            continue
        done.unjudged += bool(row["outlier"]) and verdict is None
        if verdict == "fine" or (params.data.accept == "all" and verdict is None and not row["outlier"]):
            digest = row["sha256"]
            label = row.get("label")
            rows.setdefault(digest, {"path": row["path"], "sha256": digest, "label": label, "fair": digest in fair})
    # the same content under two names with two verdicts: a person who said outlier once is believed
    bad = {digest for (_, digest), verdict in verdicts.items() if verdict == "outlier"}
    return [row for digest, row in rows.items() if digest not in bad]


def _read_originals(rows: list[dict[str, Any]], folder: Path, root: Path) -> None:
    """Put `bytes` into every row. Raises DataError when an image is not in the source any more."""
    missing = {row["sha256"]: row for row in rows}
    identity = (read_summary(folder) or {})["identity"]
    source = str(identity["source"])
    where = str(root / local_path(source)) if is_local(source) else source
    for entry in entries(where, follow_links=bool(identity.get("follow_links"))) if missing else ():
        try:
            data = entry.read()
        except DataError:
            continue
        row = missing.pop(hashlib.sha256(data).hexdigest(), None)
        if row is not None:
            row["bytes"] = data
        if not missing:
            break
    if missing:
        raise DataError(f"{len(missing)} of {len(rows)} images are not in {source} any more as they were scored")


def _label(rows: list[dict[str, Any]], params: Params, root: Path) -> None:
    """Give every row a class where the dataset has classes: its folder's name, the label that the job gave it, or
    what the feature network (models/classifier) says.
    """
    try:
        classes = read_info(root / "data" / "prepared").class_names
    except DataError:
        classes = ()
    if not classes:
        for row in rows:
            row["label"] = None
        return
    open_rows = []
    for row in rows:
        folders = [part for part in PurePosixPath(row["path"]).parent.parts if part in classes]
        row["label"] = folders[-1] if folders else row["label"] if row["label"] in classes else None
        if row["label"] is None:
            open_rows.append(row)
    if open_rows:
        for row, label in zip(open_rows, _classified(open_rows, params, root), strict=True):
            row["label"] = classes[label]


def _classified(rows: list[dict[str, Any]], params: Params, root: Path) -> list[int]:
    """The most likely class of each image by models/classifier. Raises ModelError when it is not there."""
    network = load_classifier(root / "models" / "classifier")
    shape: dict[str, Any] = {key: getattr(params.data, key) for key in ("size", "channels", "resize")}
    found: list[int] = []
    with torch.no_grad():
        for start in range(0, len(rows), ROWS):
            pixels = [decode_picture(row["bytes"], **shape).pixels for row in rows[start : start + ROWS]]
            found += [int(label) for label in classes_of(network, np.stack(pixels))]
    return found


def _write(target: Path, rows: list[dict[str, Any]]) -> bool:
    """Write the file, or remove it where there is nothing to keep; returns whether that changed anything."""
    if not rows:
        there = target.exists()
        target.unlink(missing_ok=True)
        return there
    facts = [{key: row[key] for key in schema().names if key != "bytes"} for row in rows]
    if target.exists() and accepted_rows(target) == facts:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), temporary, row_group_size=ROWS)
    return True
