"""Which images of a batch are flagged, by which rule, and what that promises. Every sentence is made from the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats
from densitywatch.batches.streams import Rule, judge
from densitywatch.detector import conformal

SCENES = "it takes more than one scene of that size, and a large batch is not decided in parts"
"""What `alike` above 1 asks for."""


@dataclass(frozen=True)
class Flags:
    """A batch's flags, and what summary.json says of them."""

    outlier: NDArray[np.bool_]
    facts: dict[str, Any]


def flag(p: Floats, calibration: Floats, rule: Rule, *, results: Path, batch: str, content: str) -> Flags:
    """Flag images by the rule. `p`: plain p-values of the scored images.

    `results`, `batch`, `content`: where the stream is kept and what its place is known by; the batch rule needs none.
    """
    n, place_in_stream = len(calibration), {}
    if rule.control == "stream":
        decision, past, place = judge(results, p, calibration, rule, batch=batch, content=content)
        outlier, block = decision.flags, decision.gates.images
        takes = [{"p_value": rank / (n + 1), "images": few} for rank, few in decision.gates.takes]
        level = max(0.0, rule.rate * max(1, past.flagged) - past.charged)
        place_in_stream = {"stream_batch": place, "stream_flagged_before": past.flagged}
    else:
        decisive = conformal.conditional_p_values(p, n) if rule.strict else p
        outlier, block, level = conformal.benjamini_hochberg(decisive, rule.rate), len(p), rule.rate
        few = fewest_to_flag(len(p), rule.rate, calibration, strict=rule.strict)
        takes = [{"p_value": 1 / (n + 1), "images": few}]
    facts = {
        "control": rule.control,
        "level": level,
        **place_in_stream,
        "promise": promise(rule),
        "fewest_to_flag": min((int(take["images"]) for take in takes), default=None),
        "takes": takes,
        "to_be_flagged": to_be_flagged(len(p), block, takes, alike=rule.alike if rule.control == "stream" else 1),
    }
    return Flags(outlier, facts)


def promise(rule: Rule) -> str:
    """What the flags promise, and when, in words for someone who knows no statistics."""
    share = f"at most {100 * rule.rate:.3g} in 100"
    sure = f"This is {conformal.CONFIDENCE:.0%} sure for the calibration images at hand"
    usual = "This is an average over calibration sets, of which the detector has one"
    alike = "the normal images that arrive are like the ones the detector was calibrated on"
    if rule.control == "stream":
        scenes = (
            "no two images show the same scene"
            if rule.alike == 1
            else f"at most {rule.alike} images show the same scene, all in one batch"
        )
        return (
            f"Over all batches of this stream together, the expected number of false alarms is {share} of the expected "
            f"number of flagged images (a stream without flags counts as one). {sure if rule.strict else usual}. "
            f"It holds as long as {alike} and {scenes}."
        )
    return (
        f"On average over many batches, {share} of a batch's flagged images are false alarms (none where none is "
        "flagged). Where most batches hold no outlier, the share among all flagged images together is higher, and may "
        f"be nearly all. {sure if rule.strict else usual}. It holds as long as {alike}."
    )


def to_be_flagged(images: int, block: int, takes: list[dict[str, Any]], *, alike: int = 1) -> str:
    """What it takes for an image of this batch to be flagged, in words. `alike`: the stream's; 1 for the batch rule."""
    if not images:
        return "No image was scored."
    part = "the batch" if block == images else f"each part of about {block:,} images in the order of names"
    few = min((int(take["images"]) for take in takes), default=block + 1)
    if few > block:
        return (
            f"No image of this batch can be flagged with this promise: for {images:,} images at once, the calibration "
            "images are too few, or too few images have been flagged so far."
            + (f" With inbox.alike at {alike:,}, {SCENES}." if alike > 1 else "")
        )
    if few == 1:
        return (
            "An image is flagged when it is less usual than every calibration image. Where several are unusual, less "
            "is enough."
        )
    return (
        f"Images are flagged only together: in {part}, {few:,} that are less usual than every calibration image are "
        f"enough, and fewer than {few:,} are never flagged."
    )


def fewest_to_flag(images: int, rate: float, calibration: Floats, *, strict: bool = False) -> int:
    """How many of `images` must have the smallest possible p-value before Benjamini-Hochberg flags any.

    No p-value is below 1 / (calibration images + 1), so a few outliers in a large batch cannot be told from chance.
    """
    n = len(calibration)
    # k images with the smallest p-value are flagged when smallest <= rate * k / images
    smallest = float(conformal.conditional_p_values(1 / (n + 1), n)) if strict else 1 / (n + 1)
    return max(1, math.ceil(images * smallest / rate - 1e-9))
