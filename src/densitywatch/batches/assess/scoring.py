"""The images of one kind, scored a chunk at a time: figures of all, pixels of the few that the page shows."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats, Pixels
from densitywatch.batches.assess.measures import floor_values
from densitywatch.batches.chunks import Loaded, files_in_chunk, in_chunks, load_ahead
from densitywatch.batches.scorer import Scorer
from densitywatch.data.decoding.images import decode_marks
from densitywatch.data.inputs.sorted_folder import MasksOfKind
from densitywatch.data.inputs.source import entries
from densitywatch.errors import DataError, ModelError
from densitywatch.progress import track
from densitywatch.sizes import height_width

SHOWN = 6
"""Images of a kind that the page shows at each end."""
SAME_SHAPE = 0.03
"""A mask's width / height may differ from its image's by this share."""
LARGEST_VALUE = 1e6
"""What an infinite value of a map becomes; one that is no number becomes the least."""


@dataclass(frozen=True)
class Mask:
    """Which pixels are marked, a bit each."""

    bits: NDArray[np.uint8]
    shape: tuple[int, int]

    def pixels(self) -> NDArray[np.bool_]:
        """(H, W)."""
        flat = np.unpackbits(self.bits, count=math.prod(self.shape))
        return np.asarray(flat.reshape(self.shape), dtype=np.bool_)


@dataclass(frozen=True)
class Shown:
    """An image that the page shows."""

    path: str
    score: float
    p_value: float
    image: Pixels
    mask: Mask | None


@dataclass
class Kind:
    """What is known of the images in one folder. Lists have an entry for each scored image, in the folder's order."""

    name: str
    paths: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """Of the pixels that the detector takes, as data/prepared/manifest.parquet has them."""
    scores: list[float] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)
    trivial: list[Floats] = field(default_factory=list)
    maps: list[Floats] = field(default_factory=list)
    """(h, w) each; empty where maps were not asked for, or the detector has none."""
    masks: list[Mask | None] = field(default_factory=list)
    lowest: list[Shown] = field(default_factory=list)
    """From the lowest score up, SHOWN at most."""
    highest: list[Shown] = field(default_factory=list)
    """From the highest score down, without those in `lowest`."""
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    masks_refused: list[tuple[str, str]] = field(default_factory=list)
    masks_empty: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def masks_used(self) -> int:
        return sum(mask is not None for mask in self.masks)

    @property
    def without_mask(self) -> int:
        return len(self) - self.masks_used

    def values(self) -> Mapping[str, Floats]:
        """What measures.figures takes."""
        return {
            "score": np.array(self.scores),
            "p_value": np.array(self.p_values),
            "floors": np.array(self.trivial).reshape(len(self), -1),
        }

    def table(self) -> list[dict[str, Any]]:
        """Path, score and p-value of every image, from the lowest score up."""
        order = sorted(range(len(self)), key=lambda i: (self.scores[i], self.paths[i]))
        return [{"path": self.paths[i], "score": self.scores[i], "p_value": self.p_values[i]} for i in order]


def score_kind(
    name: str,
    folder: Path,
    masks: MasksOfKind,
    detector: Scorer,
    *,
    follow_links: bool,
    skipped: Counter[str],
    chunk: int,
    maps: bool,
) -> Kind:
    """Read and score every image of the kind in `folder`; what cannot be used is in `quarantined` with the reason.

    `maps`: keep a map of every image as well, where the detector has one.
    """
    kind = Kind(name)
    step = files_in_chunk(chunk, detector)
    loaded = load_ahead(entries(str(folder), follow_links=follow_links, skipped=skipped), detector)
    for items in track(in_chunks(loaded, step), f"assess: {name}: chunks of {step} files"):
        _add(kind, items, masks, detector, maps=maps)
    # the two ends of a small kind meet
    seen = {shown.path for shown in kind.lowest}
    kind.highest = [shown for shown in reversed(kind.highest) if shown.path not in seen]
    kind.masks_refused += masks.unusable + masks.without_image()
    return kind


def _add(kind: Kind, items: list[Loaded], masks: MasksOfKind, detector: Scorer, *, maps: bool) -> None:
    """Score the images of a chunk and note them in `kind`."""
    for item in items:
        if item.image is None:
            masks.of(item.path)  # its mask is not without an image
            kind.quarantined.append((item.path, str(item.reason)))
    usable = [(item, item.image) for item in items if item.image is not None]
    if not usable:
        return
    images = np.stack([image for _, image in usable])
    found = detector.score(images)
    drawn = maps_of(detector, images) if maps else None
    floors = floor_values(images)
    for i, (item, image) in enumerate(usable):
        score, p_value = float(found.score[i]), float(found.p_value[i])
        if not (np.isfinite(score) and np.isfinite(p_value)):
            masks.of(item.path)  # its mask is not without an image
            kind.quarantined.append((item.path, "the detector gives it no finite score"))
            continue
        mask = _mask(kind, item, masks, detector)
        kind.paths.append(item.path)
        kind.digests.append(hashlib.sha256(image.tobytes()).hexdigest())
        kind.scores.append(score)
        kind.p_values.append(p_value)
        kind.trivial.append(floors[i])
        kind.masks.append(mask)
        if drawn is not None:
            usual = -LARGEST_VALUE
            kind.maps.append(np.nan_to_num(drawn[i], nan=usual, posinf=LARGEST_VALUE, neginf=usual))
        shown = Shown(item.path, score, p_value, image, mask)
        for best, worst in ((kind.lowest, -1), (kind.highest, 0)):
            bisect.insort(best, shown, key=lambda one: one.score)
            if len(best) > SHOWN:
                del best[worst]


def maps_of(detector: Scorer, images: Pixels) -> Floats | None:
    """The detector's maps of images (B, C, H, W), (B, h, w); None where it has none."""
    try:
        return np.asarray(detector.surprise_map(images), dtype=np.float32)
    except ModelError:
        return None


def _mask(kind: Kind, item: Loaded, masks: MasksOfKind, detector: Scorer) -> Mask | None:
    """The mask of an image, cut and scaled as the image was. One that cannot be used is named in `kind`."""
    entry = masks.of(item.path)
    if entry is None or item.original is None:
        return None
    resize = cast(Literal["crop", "pad", "stretch"], detector.resize)
    try:
        seen = decode_marks(entry.read(), size=detector.size, resize=resize)
    except DataError as error:
        kind.masks_refused.append((entry.path, f"the mask cannot be read: {error}"))
        return None
    width, height = item.original
    if abs(seen.width * height / (seen.height * width) - 1.0) > SAME_SHAPE:
        why = f"the mask has {seen.width} x {seen.height} pixels and another shape than its image, {width} x {height}"
        kind.masks_refused.append((entry.path, why))
        return None
    marked = seen.pixels[0] > 0
    if not marked.any():
        kind.masks_empty += 1
    return Mask(np.packbits(marked), height_width(detector.size))
