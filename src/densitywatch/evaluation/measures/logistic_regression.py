"""Multinomial logistic regression on features, with its regularisation chosen on validation images."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from densitywatch.params import ProbeParams

Array = npt.NDArray[Any]
LabelledFeatures = tuple[Array, Array]
"""Features (N, D) and labels (N,)."""

RAW_PIXELS = "raw_pixels.json"
"""In the classifier's folder: the curve of raw pixels, which every model is compared with."""
ITERATIONS = 100


def probe_curve(
    train: LabelledFeatures, validation: LabelledFeatures, test: LabelledFeatures, settings: ProbeParams
) -> dict[int, float]:
    """Test accuracy by number of training labels; the L2 weight is chosen on the validation images at each number.

    Features are standardised by the training images' mean and standard deviation. At the last point, all labels, only
    the weight that was best before and the next smaller one are tried: more data needs less regularisation.
    """
    mean, deviation = train[0].mean(0), train[0].std(0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max()))] = np.inf  # a constant feature becomes 0

    def standard(part: LabelledFeatures) -> LabelledFeatures:
        return ((part[0] - mean) / deviation).astype(np.float32), part[1]

    train, validation, test = standard(train), standard(validation), standard(test)
    weights = sorted(settings.regularisation)
    sizes = sorted({min(n, len(train[1])) for n in settings.labels} | {len(train[1])})
    curve: dict[int, float] = {}
    best = None
    for n in sizes:
        tried = weights
        if n == len(train[1]) and best is not None:
            position = weights.index(best)
            tried = weights[max(0, position - 1) : position + 1]
        fits = {weight: fit(train[0][:n], train[1][:n], weight) for weight in tried}
        best = max(tried, key=lambda weight: score(fits[weight], validation))
        curve[n] = score(fits[best], test)
    return curve


def fit(features: Array, labels: Array, weight: float) -> Any:
    """The fit that minimises mean cross-entropy + weight / 2 * |w|^2. With one class it always answers that class."""
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return DummyClassifier(strategy="most_frequent").fit(features, labels)
    with warnings.catch_warnings():
        # a fit that stopped early is still a fit, and the validation images choose among the fits
        warnings.simplefilter("ignore", ConvergenceWarning)
        # scikit-learn minimises C * (sum of cross-entropies) + |w|^2 / 2, so C = 1 / (weight * number of images)
        return LogisticRegression(C=1.0 / (weight * len(labels)), max_iter=ITERATIONS).fit(features, labels)


def score(fitted: Any, part: LabelledFeatures) -> float:
    """The share of labels that are guessed right."""
    return float(np.mean(fitted.predict(part[0]) == part[1]))
