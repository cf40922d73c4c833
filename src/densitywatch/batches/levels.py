"""What the report shows at other alarm levels, and the maps of p-values over its pictures.

A level is the probability with which a single normal image is flagged. The page has a slider with a few levels, from
the smallest that the calibration images can reach to one half. All comparisons with p-values are made here; the page
compares numbers of levels alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from densitywatch.arrays import Floats
from densitywatch.batches.results_folder import SCORES
from densitywatch.pages import pictures
from densitywatch.templates import data_uri

ROUND = [digit * 10.0**-power for power in range(6, 0, -1) for digit in (1, 2, 5)]
NOWHERE = "~"
"""The letter of a place that no level marks; it comes after all letters of levels."""


def lowest_level(images: int) -> float:
    """The smallest p-value with this number of calibration images."""
    return 1.0 / (images + 1.0)


def in_force(rate: float, images: int) -> float:
    """The level at which areas are outlined: the false-alarm rate, or the smallest that `images` allow."""
    return max(rate, lowest_level(images))


def slider_levels(level: float, images: int) -> list[float]:
    """The levels of the slider, ascending: round ones, the one in force, and the smallest; 26 at most."""
    lowest = lowest_level(images)
    return sorted({level, lowest, *(float(f"{value:.0e}") for value in ROUND if value > lowest)})


def first_level(p: Floats, levels: list[float]) -> NDArray[np.int64]:
    """The number of the smallest level with p <= level, for each of `p`; len(levels) where there is none."""
    return np.asarray(np.searchsorted(levels, p, side="left"), dtype=np.int64)


def letters(p: Floats, levels: list[float]) -> str:
    """`first_level` of a map (h, w), a letter for each place, row by row: A for the smallest level, B for the next."""
    names = [chr(ord("A") + i) for i in range(len(levels))] + [NOWHERE]
    return "".join(names[i] for i in first_level(p, levels).ravel())


def percent(level: float) -> str:
    """0.05 -> 5 %."""
    return f"{100 * level:.3g} %"


def slider(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page's slider needs, of the batch in `folder`; None where nothing was scored.

    `counts`: for each level, the number of all scored images with a p-value of at most that level.
    """
    bars = summary["histogram"]
    if bars is None or not summary["scored"]:
        return None
    images = sum(bars["calibration"])
    level = in_force(summary["false_alarm_rate"], images)
    levels = slider_levels(level, images)
    counts = np.zeros(len(levels) + 1, dtype=np.int64)
    file = pq.ParquetFile(folder / SCORES)
    for group in range(file.num_row_groups):
        p = file.read_row_group(group, columns=["p_value"]).column("p_value").to_numpy(zero_copy_only=False)
        p = np.asarray(p, dtype=np.float64)
        counts += np.bincount(first_level(p[np.isfinite(p)], levels), minlength=len(counts))
    return {
        "levels": levels,
        "names": [percent(value) for value in levels],
        "counts": np.cumsum(counts[:-1]).tolist(),
        "in_force": levels.index(level),
        "out_of_reach": summary["false_alarm_rate"] < level,
        "images": images,
    }


def at_levels(row: Mapping[str, Any], shown: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a card of the gallery needs for the slider, and for its map where the detector has one."""
    if shown is None:
        return {"first_level": None, "over": None}
    first = int(first_level(np.array([row["p_value"]]), shown["levels"])[0])
    return {"first_level": first, "over": over_picture(row, shown) if row.get("place_p") else None}


def over_picture(row: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The map of p-values of a gallery's row, its outlines, what it says in words, and the picture's shape."""
    p = np.asarray(row["place_p"], dtype=np.float64)
    marked = p <= shown["levels"][shown["in_force"]]
    with Image.open(io.BytesIO(row["photo"]), formats=("PNG", "JPEG")) as picture:
        width, height = picture.size
    return {
        "width": width,
        "height": height,
        "map": data_uri(pictures.map_over(strength(p, row["place_images"]))),
        "rows": p.shape[0],
        "columns": p.shape[1],
        "letters": letters(p, shown["levels"]),
        "outline": pictures.outline(marked),
        "words": in_words(float(p.min()), row["place_images"]),
    }


def strength(p: Floats, images: int) -> Floats:
    """How unusual each place is: 0 where p is 1, and 1 at the smallest p that `images` calibration images give."""
    return np.asarray(np.log(p) / np.log(lowest_level(images)))


def in_words(p: float, images: int) -> str:
    """The p-value of an image's most unusual place as a sentence."""
    rank = round(p * (images + 1))
    if rank > images:
        return "Every normal picture has an area that is more unusual."
    verb = "has" if rank == 1 else "have"
    return f"At most {rank:,} of {images + 1:,} normal pictures {verb} an area as unusual as this anywhere."
