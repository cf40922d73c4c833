"""Whether an image belongs to no class: its score, ranked among normal images that were given the same label.

Bayes' rule always gives a label, whatever the image shows. So the question is asked of the label that was given: how
many normal images with that label have a score as high? The label is chosen by the image itself. The calibration images
are therefore taken by the label that the model gives *them*, not by their true one. Score and given label are then
functions of the image alone, a new normal image and the calibration images of the same given label are exchangeable,
and for each label by itself P(p <= a) <= a holds (Vovk et al. 2005, section 4.5, conformal predictors by category). How
often the labels are right does not matter for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats
from densitywatch.detector import conformal


class LabelRanks:
    """The scores of calibration images by the label that they were given."""

    def __init__(self, scores: Floats, labels: NDArray[np.int64], classes: int) -> None:
        """`scores`: (N,), higher is more outlying. `labels`: (N,), given by the model, 0 to `classes` - 1."""
        self._scores = [np.sort(np.asarray(scores, dtype=np.float64)[labels == label]) for label in range(classes)]

    def p_values(self, scores: Floats, labels: NDArray[np.int64]) -> Floats:
        """p-values (N,) of images with these scores and given labels; small means "belongs to no class".

        p = (1 + calibration images with the label and a score at least as high) / (calibration images with it + 1). It
        is 1 for a label that no calibration image was given.
        """
        result = np.ones(len(scores))
        for label, own in enumerate(self._scores):
            here = labels == label
            if len(own):
                result[here] = conformal.p_values(own, np.asarray(scores)[here])
        return result

    def too_small(self, rate: float, names: Sequence[str]) -> str | None:
        """A sentence that names the labels with too few calibration images for any p-value up to `rate`; or None."""
        least = conformal.images_for(rate)
        few = [(name, len(own)) for name, own in zip(names, self._scores, strict=True) if len(own) < least]
        if not few:
            return None
        listed = ", ".join(f"{name} ({count:,})" for name, count in few)
        return (
            f"no image with one of these labels can be said to belong to no class at a rate of {100 * rate:.3g} in 100:"
            f" {listed}. In brackets: how many calibration images have the label; it takes {least:,}"
        )
