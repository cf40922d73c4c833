"""A label next to the detector's verdict, from a class-conditional density by Bayes' rule
(evaluation/measures/labels.py).

Which class an image looks like most and whether it belongs at all are two questions. The label answers the first, also
for an image that the detector flags; the flag answers the second, at the stated rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.data.reading import stored_size
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.labels import by_bayes, nats_by_label
from densitywatch.models.offers import takes_labels


class WithLabels:
    """A detector whose scores also have `label` and `label_probability`, from `model`, a class-conditional density.

    All labels are taken as equally likely. Costs a part of the model, or all of it, for every label and image.

    Raises ModelError for a model without labels, or of images of another size or colour than the detector's.
    """

    def __init__(self, detector: Any, model: Any, where: str) -> None:
        if not hasattr(model, "log_prob_by_label") or not takes_labels(model):
            raise ModelError(f"{where}: is no density by label; take a conditional one such as conditional_pixelcnn")
        stored = stored_size(model)
        if (model.channels, stored) != (detector.channels, detector.size):
            raise ModelError(
                f"{where}: made for images of {stored} x {stored} pixels and {model.channels} channels, the"
                f" detector for {detector.size} x {detector.size} and {detector.channels}"
            )
        self.detector, self.model = detector, model
        self.class_names: tuple[str, ...] = model.class_names

    def __getattr__(self, name: str) -> Any:
        if name in ("detector", "model"):  # not yet there: without this line looking for them would look for them
            raise AttributeError(name)
        return getattr(self.detector, name)

    def score(self, images: NDArray[np.uint8]) -> Any:
        found = by_bayes(nats_by_label(self.model, images))
        return replace(self.detector.score(images), label=found.label, label_probability=found.probability)
