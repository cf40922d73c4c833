"""assessment.html: the table, and the best and the worst images of each kind. One file, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from densitywatch.arrays import Floats
from densitywatch.batches.assess.scoring import SHOWN, Kind, Shown, maps_of
from densitywatch.batches.batch_report import picture_uri
from densitywatch.batches.gallery import picture
from densitywatch.batches.scorer import Scorer, has_places
from densitywatch.data.encoding import png
from densitywatch.files import write_whole
from densitywatch.pages.pictures import map_over, own_top
from densitywatch.pages.words import DASH, share
from densitywatch.sizes import in_pixels
from densitywatch.templates import data_uri, page_templates

PAGE = "assessment.html"
PICTURES = 480
"""Pictures on the page, at most; with many kinds each shows fewer."""
LARGEST = 320
"""Pixels a side of a picture, at most."""
BRIGHTEST = 10.0
"""Nats at which a map of places is brightest; beyond the largest value of nearly every normal image."""
LISTED = 1000
"""Files that a list on the page names, at most; assessment.json names all."""


def write_page(path: Path, found: Mapping[str, Any], kinds: list[Kind], detector: Scorer) -> None:
    """Write the page of what assessment.json says, `found`; `kinds` has the pictures."""
    by_name = {kind.name: kind for kind in kinds}
    each = max(1, min(SHOWN, PICTURES // (2 * len(kinds))))
    order = [row["kind"] for row in found["kinds"] if row["images"]]
    galleries = [
        {
            "kind": name,
            "good": name == kinds[0].name,
            "images": len(by_name[name]),
            "lowest": _cards(by_name[name].lowest[:each], detector),
            "highest": _cards(by_name[name].highest[:each], detector),
        }
        for name in [*order, kinds[0].name]
    ]
    templates = page_templates(
        Path(__file__).parent, figure=figure, interval=interval, share_of=share_of, in_pixels=in_pixels
    )
    text = templates.get_template("assessment.html.j2").render(
        found=found,
        rows=[*found["kinds"], {"kind": "", **found["all"]}] if len(order) > 1 else found["kinds"],
        galleries=galleries,
        pixels=any("pro" in row for row in found["kinds"]),
        has_map=any(card["map"] for gallery in galleries for card in gallery["lowest"] + gallery["highest"]),
        places=has_places(detector),
        has_mask=any(card["mask"] for gallery in galleries for card in gallery["lowest"] + gallery["highest"]),
        lists=[
            ("Files that could not be scored", found["quarantined"][:LISTED], len(found["quarantined"])),
            ("Masks that could not be used", found["masks_refused"][:LISTED], len(found["masks_refused"])),
            ("Left out", found["left_out"][:LISTED], len(found["left_out"])),
        ],
    )
    write_whole(path, text)


def _cards(shown: list[Shown], detector: Scorer) -> list[dict[str, Any]]:
    """What the page shows of each image."""
    if not shown:
        return []
    maps = maps_of(detector, np.stack([one.image for one in shown]))
    top = BRIGHTEST if has_places(detector) else None
    return [
        {
            "path": one.path,
            "p_value": one.p_value,
            "picture": picture_uri(picture(one.image, LARGEST)),
            "height": one.image.shape[1],
            "width": one.image.shape[2],
            "map": None if maps is None else data_uri(map_over(strength(maps[i], top))),
            "mask": None if one.mask is None else data_uri(outline(one.mask.pixels())),
        }
        for i, one in enumerate(shown)
    ]


def strength(values: Floats, top: float | None) -> Floats:
    """How strongly each place of a map (h, w) shows over its picture: 0 where nothing is unusual, 1 at `top`.

    Without `top` the map has its own scale.
    """
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=1e6, neginf=0.0).clip(0.0)
    return np.asarray(finite / (own_top(finite) if top is None else top))


def outline(mask: NDArray[np.bool_]) -> bytes:
    """The edge of what a mask (H, W) marks, as a PNG to lie over the picture."""
    width = max(1, round(len(mask) / 128))
    edge = ndimage.binary_dilation(mask, np.ones((3, 3), dtype=np.bool_), iterations=width) & ~mask
    colour = np.array([0, 229, 255, 255], np.uint8)[:, None, None]
    return png(np.where(edge, colour, np.uint8(0)), optimize=True)


def figure(value: float | None) -> str:
    """Three digits after the point, rounded down so that 1.000 is 1."""
    return DASH if value is None else f"{np.floor(1000 * value + 1e-9) / 1000:.3f}"


def interval(value: list[float]) -> str:
    """The ends of [value, low, high]."""
    return f"{figure(value[1])} to {figure(value[2])}"


def share_of(found: Mapping[str, Any]) -> str:
    """A share of measures.share_at, or that it is out of reach."""
    return "out of reach" if found["share"] is None else share(found["share"])
