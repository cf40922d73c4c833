"""`densitywatch assess FOLDER`: the figures of a detector on bad images that somebody has sorted by kind.

Nothing is fitted, calibrated or chosen here, and no file of the detector is written. The way: find the kinds
(layout.py), read and score every image (scoring.py), measure (measures.py, region_overlap.py), and write
assessment.json and assessment.html (page.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from densitywatch.arrays import Floats
from densitywatch.batches.assess import region_overlap
from densitywatch.batches.assess.measures import LEVELS, false_alarms, figures
from densitywatch.batches.assess.page import PAGE, write_page
from densitywatch.batches.assess.scoring import Kind, score_kind
from densitywatch.batches.results_folder import batch_name, behind_link, shown_source
from densitywatch.batches.scorer import Scorer, load_detector
from densitywatch.data.inputs.clutter import skipped_line
from densitywatch.data.inputs.sorted_folder import GOOD, Layout, MasksOfKind, find_layout
from densitywatch.data.inputs.source import is_local, local_path
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_json, write_whole
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.sizes import Size, for_json
from densitywatch.text import as_text

FIGURES = "assessment.json"
RESULTS = "data/assessments"
MANIFEST = "data/prepared/manifest.parquet"
MADE_OF = ["train", "validation", "calibration"]
"""The splits that a detector is made of."""
FEW = 20
"""With fewer images the intervals are too wide, or the bootstrap's too narrow, to compare detectors by."""
NO_MAP = "the detector has no map of where an image is unusual, so there are no figures of pixels"


def assess(
    source: str,
    params: Params,
    root: Path,
    out: Path | None = None,
    detector: Scorer | Path | str | None = None,
    *,
    follow_links: bool | None = None,
) -> dict[str, Any]:
    """Measure the detector on the images in `source` and write the figures and the page to `out`.

    `out`: by default data/assessments/<name>. `detector`: a folder, a registry address or a loaded detector; None takes
    models/detector. Returns what assessment.json says, and under `folder` where it is.

    Raises DataError where the folder has no usable good or bad images or `out` cannot be used, ModelError where there
    is no such detector.
    """
    if not is_local(source):
        raise DataError(f"{as_text(source)}: assess reads a folder on this machine; fetch the images first")
    folder = root / local_path(source)
    follow = params.inbox.follow_links if follow_links is None else follow_links
    layout = find_layout(folder, follow_links=follow)
    target = _target(source, folder, root, out)
    loaded, digest = load_detector(detector, params, root)
    skipped: Counter[str] = Counter()
    kinds = []
    for name, place in layout.kinds.items():
        masks = MasksOfKind(layout.masks.get(name) if name != GOOD else None, follow_links=follow)
        # maps of all good images are needed as soon as one kind has masks
        wanted = bool(layout.masks) if name == GOOD else len(masks) > 0
        kinds.append(
            score_kind(
                name,
                place,
                masks,
                loaded,
                follow_links=follow,
                skipped=skipped,
                chunk=params.detector.batch_size,
                maps=wanted,
            )
        )
    if (line := skipped_line(skipped)) is not None:
        say(f"assess: {line}")
    good, bad = kinds[0], kinds[1:]
    for what, some in (("good/", [good]), ("the folders next to good/", bad)):
        if not any(len(kind) for kind in some):
            first = next((reason for kind in some for _, reason in kind.quarantined), "there are no files")
            raise DataError(f"{as_text(source)}: no image in {what} can be scored ({first})")
    found = _measured(good, bad, loaded, params.seed)
    found = {
        "folder": shown_source(source, root),
        "detector": digest,
        "size": for_json(loaded.size),
        "channels": loaded.channels,
        "resize": loaded.resize,
        "calibration_images": len(loaded.calibration),
        **found,
        "quarantined": [[f"{kind.name}/{path}", why] for kind in kinds for path, why in kind.quarantined],
        "masks_refused": [[f"{kind.name}/{path}", why] for kind in bad for path, why in kind.masks_refused],
        "left_out": [list(item) for item in layout.left_out],
        "skipped": skipped.total(),
        "notes": [*_seen(good, root), *_notes(good, bad, layout)],
    }
    target.mkdir(parents=True, exist_ok=True)
    write_page(target / PAGE, found, kinds, loaded)
    write_whole(target / FIGURES, json.dumps(found, indent=1) + "\n")
    return {**found, "out": str(target)}


def _target(source: str, folder: Path, root: Path, out: Path | None) -> Path:
    """The folder of the results. Raises DataError for one inside of the images, or that is a file."""
    shown = shown_source(source, root)
    if out is None:
        named = folder.resolve()
        name = batch_name(str(named.parent if named.name.lower() == "test" and named.parent.name else named))
        out = root / RESULTS / name
        if _owner(out) not in (None, shown):
            out = out.with_name(f"{name}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}")
    out = behind_link(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{as_text(str(out))}: is a file; choose another --out")
    if out.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{as_text(str(out))}: lies inside the images; choose another --out")
    return out


def _owner(out: Path) -> str | None:
    """The folder that an assessment in `out` is of; None where there is none."""
    try:
        before = read_json(out / FIGURES, MOST_LISTS)
    except (FileNotFoundError, DataError):
        return None
    return str(before.get("folder")) if isinstance(before, dict) else None


def _measured(good: Kind, bad: list[Kind], detector: Scorer, seed: int) -> dict[str, Any]:
    """`good`, `kinds` from the worst to the best, and `all`: all bad images together."""
    n = len(detector.calibration)
    pixels = _pixels(good, bad, detector.size)
    rows, empty = [], []
    for kind in bad:
        if not len(kind):
            empty.append({"kind": kind.name, "images": 0, "quarantined": len(kind.quarantined)})
            continue
        row = figures(good.values(), kind.values(), n, seed)
        rows.append(
            {
                "kind": kind.name,
                **row,
                "quarantined": len(kind.quarantined),
                "masks": {"used": kind.masks_used, "unusable": len(kind.masks_refused), "empty": kind.masks_empty},
                **pixels.get(kind.name, {}),
                "scores": kind.table(),
            }
        )
    rows.sort(key=lambda row: (row["auroc"][0], row["kind"]))
    whole = [kind.values() for kind in bad if len(kind)]
    together = {key: np.concatenate([values[key] for values in whole]) for key in whole[0]}
    return {
        "good": {
            "images": len(good),
            "quarantined": len(good.quarantined),
            "false_alarms": [false_alarms(good.values()["p_value"], level, n) for level in LEVELS],
            "scores": good.table(),
        },
        "kinds": rows + empty,
        "all": {**figures(good.values(), together, n, seed), **pixels.get("", {})},
    }


def _pixels(good: Kind, bad: list[Kind], size: Size) -> dict[str, dict[str, Any]]:
    """`pixel_auroc`, `pro` and `regions` of each kind that has masks, and under "" of all of them together."""
    masked = [kind for kind in bad if kind.masks_used]
    if not masked or not good.maps:
        return {}
    steps = region_overlap.thresholds(np.concatenate([_values(kind) for kind in [good, *masked]]))

    def marks(kind: Kind) -> region_overlap.Marks:
        found = region_overlap.no_marks(steps)
        for small, mask in zip(kind.maps, kind.masks, strict=True):
            if kind is good or mask is not None:
                large = region_overlap.enlarged(small[None], size)
                found += region_overlap.marks_of(large, [None if mask is None else mask.pixels()], steps)
        return found

    of_good = marks(good)
    of_kinds = {kind.name: marks(kind) for kind in masked}
    together = of_good
    for of_kind in of_kinds.values():
        together += of_kind
    every = {name: of_kind + of_good for name, of_kind in of_kinds.items()} | {"": together}
    return {
        name: {
            "pixel_auroc": region_overlap.pixel_auroc(found),
            "pro": region_overlap.region_overlap(found),
            "regions": found.regions,
        }
        for name, found in every.items()
    }


def _values(kind: Kind) -> Floats:
    return np.concatenate([small.ravel() for small in kind.maps]) if kind.maps else np.zeros(0, np.float32)


def _seen(good: Kind, root: Path) -> list[str]:
    """A sentence where good images are among those that data/prepared gives a detector to be made of."""
    try:
        table = pq.read_table(root / MANIFEST, columns=["split", "sha256"])
    except (OSError, ValueError, pa.ArrowException):
        return []  # a detector from elsewhere, or nothing prepared here
    used = set(table.filter(pc.field("split").isin(MADE_OF)).column("sha256").to_pylist())
    count = sum(digest in used for digest in good.digests)
    if not count:
        return []
    return [
        f"Good images that are in data/prepared among those that a detector is fitted and calibrated on: {count:,} of"
        f" {len(good):,}. If it is this detector, its false alarms and AUROC here are too good."
    ]


def _notes(good: Kind, bad: list[Kind], layout: Layout) -> list[str]:
    """What a reader of the figures has to know, a sentence each."""
    notes = []
    if len(good) < FEW:
        notes.append(
            f"{len(good)} good images are few: a false-alarm rate of 5 % or less can hardly be told from 0 with fewer"
            f" than {FEW}, and the AUROC's interval may be too narrow."
        )
    few = [kind.name for kind in bad if 0 < len(kind) < FEW]
    if few:
        notes.append(f"Fewer than {FEW} images, so an AUROC's interval may be too narrow: {', '.join(few)}.")
    empty = [kind.name for kind in bad if not len(kind)]
    if empty:
        notes.append(f"No image could be scored, so there is no figure: {', '.join(empty)}.")
    digests = set(good.digests)
    both = [
        f"{kind.name}/{path}"
        for kind in bad
        for path, digest in zip(kind.paths, kind.digests, strict=True)
        if digest in digests
    ]
    if both:
        notes.append(f"Files that are in good/ and in a kind's folder as well: {len(both):,}, such as {both[0]}.")
    if any(kind.masks_used for kind in bad) and not good.maps:
        notes.append(f"{NO_MAP[:1].upper()}{NO_MAP[1:]}.")
    unmarked = sum(kind.without_mask for kind in bad if kind.name in layout.masks)
    if unmarked:
        notes.append(f"Bad images without a usable mask, which the figures of pixels leave out: {unmarked:,}.")
    empty_masks = sum(kind.masks_empty for kind in bad)
    if empty_masks:
        notes.append(f"Masks that mark nothing, so that all pixels of their images count as normal: {empty_masks:,}.")
    return notes


def in_lines(found: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal, the worst kind first."""
    lines = []
    for alarms in found["good"]["false_alarms"]:
        asked = f"good, {alarms['level']:.0%} asked"
        if alarms["share"] is None:
            lines.append(f"{asked}: {alarms['words']}")
        else:
            low, high = alarms["low"], alarms["high"]
            lines.append(f"{asked}: {alarms['share']:.1%} of {alarms['images']:,} flagged ({low:.1%} to {high:.1%})")
    rows = [*found["kinds"], {"kind": "all together", **found["all"]}]
    for row in rows:
        if not row["images"]:
            lines.append(f"{row['kind']}: no image could be scored")
            continue
        auroc = row["auroc"]
        parts = [f"AUROC {auroc[0]:.3f} ({auroc[1]:.3f} to {auroc[2]:.3f})"]
        parts += [f"found at {at['level']:.0%}: {at['share']:.0%}" for at in row["found"] if at["share"] is not None]
        for key, name in (("pixel_auroc", "pixels"), ("pro", "PRO")):
            if row.get(key) is not None:
                parts.append(f"{name} {row[key]:.3f}")
        if row["below_floor"]:
            parts.append(f"below its floor, {' and '.join(row['below_floor'])}")
        lines.append(f"{row['kind']} ({row['images']:,}): {', '.join(parts)}")
    lines += [f"{words}: {len(found[key]):,}" for key, words in _COUNTS if found[key]]
    return [*lines, *found["notes"]]


_COUNTS = (
    ("quarantined", "files that could not be scored"),
    ("masks_refused", "masks that could not be used"),
    ("left_out", "left out"),
)
