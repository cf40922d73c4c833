"""reports/data/index.html: one page that says whether the data are acceptable, and shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densitywatch.data.dataset import SPLITS, DatasetInfo, open_split, read_facts
from densitywatch.data.encoding import png
from densitywatch.data.image_table import Table
from densitywatch.data.reading import resized
from densitywatch.data.validation.expectations import Outcome
from densitywatch.sizes import as_size
from densitywatch.templates import data_uri, page_templates

LARGEST = 96
"""Pictures are scaled down to this many pixels a side."""
PER_CLASS = 12
LISTED = 50
BINS = 32


def validation_page(
    info: DatasetInfo,
    folder: Path,
    table: Table,
    outcomes: Sequence[Outcome],
    metrics: Mapping[str, float | int],
) -> str:
    """The page as one string of HTML that loads nothing. `table` has the manifest, `folder` the arrays."""
    facts = read_facts(folder)
    left_out = [*facts.dropped, *facts.rejected]
    return (
        page_templates(Path(__file__).parent)
        .get_template("validation.html.j2")
        .render(
            info=info,
            metrics=metrics,
            failed=[outcome for outcome in outcomes if not outcome.holds],
            outcomes=outcomes,
            samples={outcome.name: [_sample(table, folder, row) for row in outcome.rows] for outcome in outcomes},
            splits=SPLITS,
            rows=_class_table(table, info),
            pictures=_pictures(table, folder, info),
            histogram=_histogram(table),
            groups=facts.groups,
            left_out=left_out[:LISTED],
            more_left_out=max(0, len(left_out) - LISTED),
        )
    )


def _class_table(table: Table, info: DatasetInfo) -> list[tuple[str, list[int]]]:
    """Images of each label by split; one row when there are no labels."""
    names = dict(enumerate(info.class_names)) if info.class_names else {-1: "no label"}
    found = table.execute("SELECT label, split, count(*) FROM images GROUP BY label, split")
    counts = {(label, split): count for label, split, count in found}
    return [(name, [counts.get((label, split), 0) for split in SPLITS]) for label, name in names.items()]


def _pictures(table: Table, folder: Path, info: DatasetInfo) -> list[tuple[str, str]]:
    """A strip of the first training images of each label, as (name, the picture's data address)."""
    images = open_split(folder, "train").images
    names = dict(enumerate(info.class_names)) if info.class_names else {-1: "images"}
    first = table.execute(
        """SELECT label, row FROM (
            SELECT label, row, row_number() OVER (PARTITION BY label ORDER BY position) AS turn
            FROM images WHERE split = 'train' AND typeof(row) = 'integer' AND row BETWEEN 0 AND ?
        ) WHERE turn <= ? ORDER BY row""",
        (len(images) - 1, PER_CLASS),
    )
    rows: dict[object, list[int]] = {}
    for label, row in first:
        rows.setdefault(label, []).append(row)
    strips = []
    for label, name in names.items():
        if label in rows:
            strip = np.concatenate(list(_shown(images[rows[label]])), axis=2)
            strips.append((name, data_uri(png(strip))))
    return strips


def _sample(table: Table, folder: Path, position: int) -> tuple[str, str, str]:
    """A row that breaks a check: the image's source, its place, and its picture (empty where the arrays lack it)."""
    path, split, row = table.execute("SELECT path, split, row FROM images WHERE position = ?", (position,)).fetchone()
    place = f"row {row} of {split}"
    known = split in SPLITS and isinstance(row, int) and row >= 0
    if not known or row >= len(images := open_split(folder, split).images):
        return str(path), place, ""
    return str(path), place, data_uri(png(_shown(images[row][None])[0]))


def _shown(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images of at most LARGEST pixels a side, in their own shape."""
    height, width = images.shape[2:]
    scale = min(1.0, LARGEST / max(height, width))
    return resized(images, as_size(max(1, round(scale * height)), max(1, round(scale * width))))


def _histogram(table: Table) -> list[tuple[int, float]]:
    """The histogram of every image's mean pixel value: (count, height in percent of the highest) for each bin."""
    found = table.execute(
        "SELECT CAST(mean * ? / 256 AS INTEGER), count(*) FROM images WHERE mean BETWEEN 0 AND 256 GROUP BY 1",
        (BINS,),
    )
    counts = [0] * BINS
    for place, count in found:
        counts[min(place, BINS - 1)] += count  # as in numpy's histogram, 256 is in the last one
    return [(count, 100 * count / max(1, *counts)) for count in counts]
