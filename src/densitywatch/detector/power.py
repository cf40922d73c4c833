"""How much of what does not belong a rule flags: each batch by itself, or all batches of a stream together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.detector import conformal, stream
from densitywatch.params import Control

BATCH, BATCHES = 500, 1000
STREAM = 50
"""Batches of a stream; then another one begins, which has flagged nothing yet."""


@dataclass(frozen=True)
class Power:
    """Shares over many batches, each 0 to 1."""

    found: float
    """Of the outlying images, those that are flagged."""
    false_alarms: float
    """Of all images that are flagged in all batches together, those that are normal; 0 where none is flagged."""
    false_discovery_rate: float
    """The same for each batch, averaged over batches: what `control: batch` bounds on average over calibration sets."""


def power(
    calibration: Floats,
    normal: Floats,
    outlying: Floats,
    *,
    rate: float,
    share: float,
    control: Control = "batch",
    alike: int = 1,
    strict: bool = False,
    batch: int = BATCH,
    batches: int = BATCHES,
    seed: int = 0,
) -> Power:
    """Flag batches of `batch` images, a `share` of them outlying (at least one), at a false-discovery rate of `rate`.

    `control`, `alike` and `strict` are the rule's, as in params.inbox: Benjamini-Hochberg in each batch, or one budget
    for streams of STREAM batches.

    Takes the detector's scores of the calibration images (sorted), of normal and of outlying images. Images of a batch
    are drawn with replacement, so that a few hundred images give batches of the size asked. The calibration set is used
    as it is. The same seed draws the same images: two detectors that scored the same images are compared on the same
    batches.
    """
    rng = np.random.default_rng(seed)
    p_normal, p_outlying = conformal.p_values(calibration, normal), conformal.p_values(calibration, outlying)
    outliers = max(1, round(share * batch))
    found, false, proportions, past = 0, 0, 0.0, stream.Past()
    for number in range(batches):
        p = np.concatenate([rng.choice(p_outlying, outliers), rng.choice(p_normal, batch - outliers)])
        place = rng.permutation(batch)  # where each image is in the batch: a stream's rule may decide it in parts
        if control == "stream":
            past = past if number % STREAM else stream.Past()
            decision = stream.decide(p[place], len(calibration), rate, past, alike=alike, strict=strict)
            flags, past = decision.flags, stream.after(past, int(decision.flags.sum()), decision.charged)
        else:
            decisive = conformal.conditional_p_values(p[place], len(calibration)) if strict else p[place]
            flags = conformal.benjamini_hochberg(decisive, rate)
        outlier = place < outliers
        right, wrong = int((flags & outlier).sum()), int((flags & ~outlier).sum())
        found, false = found + right, false + wrong
        proportions += wrong / max(1, right + wrong)
    return Power(found / (outliers * batches), false / max(1, found + false), proportions / batches)
