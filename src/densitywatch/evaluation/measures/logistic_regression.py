"""Multinomial logistic regression on features, its regularisation chosen on validation images."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from densitywatch.params import ProbeParams

Array = npt.NDArray[Any]
Labelled = tuple[Array, Array]
"""Features (N, D) and labels (N,)."""

RAW_PIXELS = "raw_pixels.json"
"""In the classifier's folder: the curve of raw pixels, which every model is compared with."""
ITERATIONS = 100


def probe_curve(train: Labelled, validation: Labelled, test: Labelled, settings: ProbeParams) -> dict[int, float]:
    """Test accuracy by the number of training labels; the L2 weight is chosen on the validation part at each.

    Features are standardised by the training images' mean and deviation. At the last point, all labels, only the weight
    that was best before and the next smaller one are tried: more data asks for less regularisation, never much more.
    """
    mean, deviation = train[0].mean(0), train[0].std(0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max()))] = np.inf  # a constant feature says nothing

    def standard(part: Labelled) -> Labelled:
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
    """Multinomial logistic regression that minimises mean cross-entropy + weight / 2 * |w|^2; a constant for one
    class.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return DummyClassifier(strategy="most_frequent").fit(features, labels)
    with warnings.catch_warnings():
        # a probe stopped early is a probe all the same, and the validation images choose among them
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1.0 / (weight * len(labels)), max_iter=ITERATIONS).fit(features, labels)


def score(fitted: Any, part: Labelled) -> float:
    """The share of right guesses."""
    return float(np.mean(fitted.predict(part[0]) == part[1]))
