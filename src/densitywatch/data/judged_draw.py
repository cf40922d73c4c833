"""The judged random draw of a drifted stream: which of its images calibrate, and on which the gate checks p-values.

A p-value ranks an image among the calibration images. So these, and the images that the gate checks p-values on, must
come from the stream as it is now. The draw gives both: a fixed part of it, by hash, is for the gate.

Images of two drifts are two streams and are never put together. Those of the newest drift that has FEWEST of them are
taken. All others are trained on alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from densitywatch.data.raw import RawImage
from densitywatch.data.training_only import with_mark

FEWEST = 200
"""Images of a judged draw, each group counted once, that take the place of the calibration images."""
FOR_GATE = 0.25
"""The share of the draw that calibrates nothing and that the gate measures p-values on."""
PART = "judged "
"""The part of an image of a judged draw: this and the number of its drift. No source has a part with this name."""


class _Row(Protocol):
    image: RawImage
    sha256: str
    group: str


def part_of(drift: int) -> str:
    """The part of an image of the judged draw of this drift."""
    return f"{PART}{drift}"


def is_judged(image: RawImage) -> bool:
    """Whether the image is of a judged draw that has not been placed, or that was left to training."""
    return image.part.startswith(PART)


def place_draw(sets: Sequence[Sequence[_Row]], seed: int) -> None:
    """Give the images of the newest large enough draw the part `calibration` or `gate`, and mark all others.

    sets: rows that stay together, because they have the same pixels or are of one group; a set counts once. One with an
    image of the source's test or validation part counts for nothing, because it stays there.
    """
    found: Counter[str] = Counter()
    for members in sets:
        if not any(row.image.part in ("test", "validation") for row in members):
            found.update({row.image.part for row in members if is_judged(row.image)})
    newest = max((part for part, count in found.items() if count >= FEWEST), key=_number, default=None)
    for members in sets:
        place = "gate" if _share(members, seed) < FOR_GATE else "calibration"
        for row in members:
            if row.image.part == newest:
                row.image = replace(row.image, part=place)
            elif is_judged(row.image):
                row.image = replace(row.image, path=with_mark(row.image.path))


def _number(part: str) -> int:
    return int(part.removeprefix(PART))


def _share(members: Sequence[_Row], seed: int) -> float:
    """0 to 1, the same for a group whatever images join it."""
    name = min(row.group or row.sha256 for row in members)
    return int(hashlib.sha256(f"{seed}:judged draw:{name}".encode()).hexdigest()[:13], 16) / 16**13
