"""reports/data: one page that says whether the data are acceptable and shows them, and Great Expectations' own page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from densitywatch.data.dataset import SPLITS, DatasetInfo, SplitName, open_split, read_facts
from densitywatch.data.encoding import png
from densitywatch.data.reading import resized
from densitywatch.sizes import as_size
from densitywatch.templates import data_uri, page_templates

LARGEST = 96
"""Pictures are scaled down to this many pixels a side."""
PER_CLASS = 12
LISTED = 50
BINS = 32


@dataclass(frozen=True)
class Outcome:
    """The result of a check. `rows`: some of the rows that break it, as positions in the manifest."""

    name: str
    means: str
    holds: bool
    found: str
    rows: tuple[int, ...]


def validation_page(
    info: DatasetInfo,
    folder: Path,
    frame: pd.DataFrame,
    outcomes: Sequence[Outcome],
    metrics: Mapping[str, float | int],
) -> str:
    """The page as one string of HTML that loads nothing. `frame` is the manifest, `folder` has the arrays."""
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
            samples={outcome.name: [_sample(frame, folder, row) for row in outcome.rows] for outcome in outcomes},
            splits=SPLITS,
            rows=_class_table(frame, info),
            pictures=_pictures(frame, folder, info),
            histogram=_histogram(frame["mean"].to_numpy()),
            groups=facts.groups,
            left_out=left_out[:LISTED],
            more_left_out=max(0, len(left_out) - LISTED),
        )
    )


def _class_table(frame: pd.DataFrame, info: DatasetInfo) -> list[tuple[str, list[int]]]:
    """Images of each label by split; one row when there are no labels."""
    names = dict(enumerate(info.class_names)) if info.class_names else {-1: "no label"}
    counts = frame.groupby(["label", "split"]).size().to_dict()
    return [(name, [counts.get((label, split), 0) for split in SPLITS]) for label, name in names.items()]


def _pictures(frame: pd.DataFrame, folder: Path, info: DatasetInfo) -> list[tuple[str, str]]:
    """A strip of the first training images of each label, as (name, the picture's data address)."""
    train = frame[frame["split"] == "train"]
    images = open_split(folder, "train").images
    names = dict(enumerate(info.class_names)) if info.class_names else {-1: "images"}
    strips = []
    for label, name in names.items():
        rows = train.loc[train["label"] == label, "row"].to_numpy()[:PER_CLASS]
        if len(rows):
            strip = np.concatenate(list(_shown(images[np.sort(rows)])), axis=2)
            strips.append((name, data_uri(png(strip))))
    return strips


def _sample(frame: pd.DataFrame, folder: Path, row: int) -> tuple[str, str, str]:
    """A row that breaks a check: the image's source, its place, and its picture (empty where the arrays lack it)."""
    entry = frame.iloc[row]
    place = f"row {entry['row']} of {entry['split']}"
    split: SplitName = entry["split"]
    if split not in SPLITS or not 0 <= entry["row"] < len(images := open_split(folder, split).images):
        return str(entry["path"]), place, ""
    return str(entry["path"]), place, data_uri(png(_shown(images[entry["row"]][None])[0]))


def _shown(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images of at most LARGEST pixels a side, in their own shape."""
    height, width = images.shape[2:]
    scale = min(1.0, LARGEST / max(height, width))
    return resized(images, as_size(max(1, round(scale * height)), max(1, round(scale * width))))


def _histogram(means: npt.NDArray[np.float64]) -> list[tuple[int, float]]:
    """The histogram of every image's mean pixel value: (count, height in percent of the highest) for each bin."""
    counts, _ = np.histogram(means, bins=BINS, range=(0, 256))
    return [(int(count), 100 * count / max(1, counts.max())) for count in counts]


OUTSIDE = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r"<script\b.*?</script>",
        r"<style\b.*?</style>",
        r"<link\b[^>]*>",
        r"<img\b[^>]*>",
        r"<footer\b.*?</footer>",
        r"<nav class=\"navbar.*?</nav>\s*</div>\s*</nav>",
    )
)
"""Scripts, styles and fonts of other hosts, and a logo whose address tells who opens the page."""

STYLE = """
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 60rem }
h4 { font-size: 1.5rem; margin: 0 } h5 { font-size: 1.05rem; margin: 1.75rem 0 .25rem }
h6 { font-size: .95rem; margin: 1rem 0 .25rem } body { overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .9rem; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #8886 }
th:first-child, td:first-child { white-space: nowrap }
.sticky, .card { display: none } .collapse { font-size: .9rem }
.text-success::before { content: "holds" } .text-danger::before { content: "fails"; font-weight: 700 }
a[href*="expectations/"], a[data-toggle] { color: inherit; text-decoration: none; pointer-events: none }
</style>"""


def alone(page: str) -> str:
    """Great Expectations' page as one file that loads nothing, readable without scripts."""
    for outside in OUTSIDE:
        page = outside.sub("", page)
    return page.replace("<head>", f"<head>{STYLE}", 1)
