"""Accept images of drifted batches into the dataset: data/accepted, which `prepare` reads (data/accepted.py).

`data.accept` of params.yaml says which. A flagged image is accepted only when a person called it fine. An image that a
person called an outlier, in whatever batch, never is. The file of every batch, those of earlier drifts too, is made of
the present verdicts each time, so a verdict that was taken back takes its image away. Each file says which drift its
images were accepted under, because the judged draws of two drifts are never put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from densitywatch.batches.damage import damage_as_error
from densitywatch.batches.results_folder import SCORES, VERDICTS_FILE, is_batch_name, read_summary
from densitywatch.batches.review.random_draw import fair_sample
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.accepted import LATER, ROWS, accepted_files, accepted_rows, schema
from densitywatch.data.dataset import read_info
from densitywatch.data.decoding.images import decode_picture
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.data.look import ACCEPTED
from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.measures.feature_network import classes_of, load_classifier
from densitywatch.files import whole_file, write_whole
from densitywatch.params import Params

CHANGED = Path("var/accepted-changed")
"""Is there from before a change of data/accepted until DVC has its version: a stop in between leaves it for the next
run. What differs from data/accepted.dvc without it came with git, and is to be pulled and not to be added."""


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


def accept(batches: Sequence[str], params: Params, root: Path, *, alarm: str = "") -> Accepted:
    """Bring data/accepted up to date: with the images of these batches, names of results folders, and with what people
    say by now of those that were accepted before.

    alarm: what the drift is known by that these batches are under. Their files get its number, one more than that of
    the drift before; all other files keep theirs.

    The originals are read from each batch's source and found by their content; those that are in a file already are
    kept there. An image of several batches is taken once. Where new originals are gone, or a batch's results, nothing
    new is taken of it. Nothing is done where `data.accept` is `never`. A change leaves the file CHANGED: whoever adds
    the new version to DVC removes it. Raises DataError when a file of data/accepted is damaged.
    """
    done = Accepted()
    if params.data.accept == "never":
        return done
    done.problems += [f"{name}: is not the name of a batch" for name in batches if not is_batch_name(name)]
    batches = [name for name in batches if is_batch_name(name)]
    files = {file.stem: accepted_rows(file) for file in accepted_files(root)}
    drift = {name: {key: rows[0][key] for key in LATER} for name, rows in files.items() if rows}
    number = _number_of(alarm, drift.values())
    drift |= {name: {"drift": number, "alarm": alarm} for name in batches}
    bad = _called_outliers(params, root, done)
    known: set[str] = set()
    # where an image is in several batches, the newest drift has it
    for name in sorted(drift, key=lambda name: (-drift[name]["drift"], name)):
        target = root / ACCEPTED / f"{name}.parquet"
        before = {row["sha256"]: row for row in accepted_rows(target, whole=True)} if name in files else {}
        found = _of_batch(name, before, bad | known, params, root, done, asked=name in batches)
        rows = [row | drift[name] for row in found if row["sha256"] not in bad | known]
        known |= {row["sha256"] for row in rows}
        if name in batches:
            done.images += len(rows)
            done.fair += sum(row["fair"] for row in rows)
        done.changed |= _write(target, rows, root / CHANGED)
    done.problems = list(dict.fromkeys(done.problems))
    return done


def _number_of(alarm: str, known: Iterable[Mapping[str, Any]]) -> int:
    """The number of the drift that is known by `alarm`; of a new one, the next."""
    numbers = {drift["alarm"]: int(drift["drift"]) for drift in known}
    return numbers.get(alarm, max(numbers.values(), default=0) + 1)


def _called_outliers(params: Params, root: Path, done: Accepted) -> set[str]:
    """sha256 of every image that a person called an outlier in any batch, under whatever name."""
    bad: set[str] = set()
    for file in sorted((root / params.inbox.results).glob(f"*/{VERDICTS_FILE}")):
        try:
            verdicts = read_verdicts(file.parent)
        except DataError as error:
            done.problems.append(f"{file.parent.name}: {error}")
            continue
        bad |= {digest for (_, digest), verdict in verdicts.items() if verdict == "outlier"}
    return bad


def verdicts_digest(batches: Sequence[str], params: Params, root: Path) -> tuple[str, int]:
    """A digest of what people called fine in these batches, and the number of these images. Reads verdicts alone."""
    fine: set[str] = set()
    for name in batches:
        with suppress(DataError):
            verdicts = read_verdicts(root / params.inbox.results / name)
            fine |= {digest for (_, digest), verdict in verdicts.items() if verdict == "fine"}
    return hashlib.sha256("\n".join(sorted(fine)).encode()).hexdigest()[:16], len(fine)


def _of_batch(
    name: str,
    before: dict[str, dict[str, Any]],
    elsewhere: Collection[str],
    params: Params,
    root: Path,
    done: Accepted,
    *,
    asked: bool,
) -> list[dict[str, Any]]:
    """The whole rows to accept of a batch. `before`: those that are accepted already, by sha256.

    elsewhere: images that are not taken here. asked: the batch is under the alarm. Of another batch, whose results may
    be gone, or be those of other files by now, an image stays until the results know it and say otherwise.
    """
    folder = root / params.inbox.results / name
    if not asked and read_summary(folder) is None:
        return list(before.values())
    try:
        wanted, seen = _wanted(folder, params, done, asked=asked)
    except (DataError, OSError) as error:
        done.problems.append(f"{name}: {error}")
        return list(before.values())
    others = [] if asked else [row for digest, row in before.items() if digest not in seen]
    rows = [row for row in wanted if row["sha256"] not in elsewhere]
    try:
        _read_originals([row for row in rows if row["sha256"] not in before], folder, root)
        rows = [{"bytes": before.get(row["sha256"], row).get("bytes")} | row for row in rows]
        _label(rows, params, root)
    except (DataError, ModelError, OSError) as error:
        done.problems.append(f"{name}: {error}")
        # a part of a draw is no random sample: what was not of a whole one before is not of one now
        pairs = [(row, before[row["sha256"]]) for row in rows if row["sha256"] in before]
        rows = [old | {"path": row["path"], "fair": row["fair"] and old["fair"]} for row, old in pairs]
    return others + rows


def _wanted(
    folder: Path, params: Params, done: Accepted, *, asked: bool
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """A row for each image to accept, without its bytes; and the sha256 of all that were scored.

    asked: count the unjudged ones.
    """
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
        if row["status"] != "scored":
            continue
        done.unjudged += asked and bool(row["outlier"]) and verdict is None
        if verdict == "fine" or (params.data.accept == "all" and verdict is None and not row["outlier"]):
            digest = row["sha256"]
            label = row.get("label")
            rows.setdefault(digest, {"path": row["path"], "sha256": digest, "label": label, "fair": digest in fair})
    return list(rows.values()), frozenset(row["sha256"] for row in scored if row["status"] == "scored")


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


def _write(target: Path, rows: list[dict[str, Any]], note: Path) -> bool:
    """Write the file, or remove it where there is nothing to keep; returns whether that changed anything.

    `note` is there before anything changes.
    """
    facts = [{key: row[key] for key in schema().names if key != "bytes"} for row in rows]
    if (accepted_rows(target) == facts) if target.exists() else not rows:
        return False
    write_whole(note, "")
    if not rows:
        target.unlink()
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), temporary, row_group_size=ROWS)
    return True
