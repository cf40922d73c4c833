"""How well a map marks the defects that masks mark: AUROC of the pixels, and the overlap with each region (PRO).

PRO (Bergmann et al. 2019, "MVTec AD", section 4): at a threshold, the mean over the regions of all masks of the share
of the region that the map reaches. Plotted over the share of normal pixels that it reaches, and integrated to 30 %.
A region counts the same whether it has ten pixels or ten thousand, which pixel AUROC does not do.

Both are areas under a ROC curve. For PRO a pixel of a region weighs 1 / (pixels of the region), and all regions
together 1. So one pass over the pixels is enough: their counts and weights between neighbouring thresholds are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from densitywatch.arrays import Floats
from densitywatch.sizes import Size, height_width

FALSE_POSITIVES = 0.3
"""PRO is integrated up to this share of normal pixels."""
THRESHOLDS = 1 << 15
"""Thresholds at most. Between two of them lies about 1 / THRESHOLDS of the values, which is the largest error."""
TOUCHING = np.ones((3, 3), dtype=np.int64)
"""Pixels of one region touch at a side or a corner, as in MVTec's own evaluation."""


@dataclass
class Marks:
    """Pixels by the thresholds that they lie between, (T,) each."""

    normal: Floats
    """Number of normal pixels."""
    defect: Floats
    """Number of pixels in a region."""
    overlap: Floats
    """The same, each weighing 1 / (pixels of its region)."""
    regions: int = 0

    def __add__(self, other: Marks) -> Marks:
        return Marks(
            self.normal + other.normal,
            self.defect + other.defect,
            self.overlap + other.overlap,
            self.regions + other.regions,
        )


def thresholds(maps: Floats) -> Floats:
    """The distinct values of maps, ascending; where they are more than THRESHOLDS, quantiles of them."""
    distinct = np.unique(maps)
    if len(distinct) <= THRESHOLDS:
        return np.asarray(distinct, dtype=np.float64)
    return np.unique(np.quantile(distinct.astype(np.float64), np.linspace(0.0, 1.0, THRESHOLDS)))


def no_marks(steps: Floats) -> Marks:
    """Of no image."""
    return Marks(np.zeros(len(steps)), np.zeros(len(steps)), np.zeros(len(steps)))


def marks_of(maps: Iterable[Floats], masks: Iterable[NDArray[np.bool_] | None], steps: Floats) -> Marks:
    """The marks of maps (H, W) with their masks (H, W), True on defects; None for an image without any.

    `steps`: thresholds, ascending. A value below the first counts as the first.
    """
    found = no_marks(steps)
    for values, mask in zip(maps, masks, strict=True):
        place = np.maximum(np.searchsorted(steps, values.ravel(), side="right") - 1, 0)
        if mask is None:
            found.normal += np.bincount(place, minlength=len(steps))
            continue
        region, count = ndimage.label(mask, TOUCHING)
        region = region.ravel()
        inside = region > 0
        found.normal += np.bincount(place[~inside], minlength=len(steps))
        found.defect += np.bincount(place[inside], minlength=len(steps))
        size = np.bincount(region)
        found.overlap += np.bincount(place[inside], weights=1.0 / size[region[inside]], minlength=len(steps))
        found.regions += count
    return found


def pixel_auroc(marks: Marks) -> float | None:
    """The probability that a pixel of a defect has a larger value than a normal one; a tie counts half."""
    return _area(marks.normal, marks.defect, 1.0)


def region_overlap(marks: Marks, upto: float = FALSE_POSITIVES) -> float | None:
    """PRO: the mean overlap with the regions, over shares of normal pixels from 0 to `upto`; 1 is the best."""
    area = _area(marks.normal, marks.overlap, upto)
    return None if area is None else area / upto


def _area(normal: Floats, found: Floats, upto: float) -> float | None:
    """The area under (share of `normal`, share of `found`) at falling thresholds, as far as a share of `upto`.

    None where one of the two has nothing in it.
    """
    if not normal.sum() or not found.sum():
        return None
    false, true = (np.concatenate([[0.0], np.cumsum(x[::-1])]) / x.sum() for x in (normal, found))
    # the first point at or beyond `upto`; a rise at `upto` itself adds no area
    end = int(np.searchsorted(false, upto, side="left"))
    at = float(np.interp(upto, false[end - 1 : end + 1], true[end - 1 : end + 1]))
    x, y = np.append(false[:end], upto), np.append(true[:end], at)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2.0)


def enlarged(maps: Floats, size: Size) -> Floats:
    """Maps (B, h, w) at another size, bilinear."""
    shape = height_width(size)
    if maps.shape[1:] == shape:
        return maps
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[:, None]
    return np.asarray(F.interpolate(tensor, size=shape, mode="bilinear", align_corners=False)[:, 0])
