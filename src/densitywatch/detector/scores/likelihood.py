"""The PixelCNN's likelihood and what has been made of it."""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member import FittingData, member


@member("the density model finds it improbable")
def pixelcnn_nll(features: FeatureCache, fitted: Arrays) -> Floats:
    """Raw negative log-likelihood, nats (Bishop 1994, "Novelty detection and neural network validation").

    Known to fail (Nalisnick et al. 2019, "Do deep generative models know what they don't know?"): simple foreign images
    are more probable than normal ones. Kept to show it.
    """
    return features.nll("pixelcnn")


def _fit_typicality(data: FittingData) -> Arrays:
    return {"mean": data.validation.nll("pixelcnn").mean(keepdims=True)}


@member("it is more or less probable than images of this kind are", fit=_fit_typicality)
def typicality(features: FeatureCache, fitted: Arrays) -> Floats:
    """Distance of the log-likelihood from its normal mean (Nalisnick et al. 2019, "Detecting out-of-distribution
    inputs to deep generative models using typicality", for batches of one)."""
    return np.abs(features.nll("pixelcnn") - fitted["mean"])


@member("it is too simple for how improbable it is")
def input_complexity(features: FeatureCache, fitted: Arrays) -> Floats:
    """Negative log-likelihood minus the length of a general compressor's file (Serrà et al. 2020, "Input complexity and
    out-of-distribution detection with likelihood-based generative models"); here lossless WebP."""
    return features.nll("pixelcnn") - features.webp_nats


@member("it holds more surprises, or fewer, than the density model expects of it")
def excess_surprise(features: FeatureCache, fitted: Arrays) -> Floats:
    """Surprise minus its expectation in standard deviations: |sum(-log p - H)| / sqrt(sum Var), over pixels.

    H is the entropy of a pixel's distribution given the earlier pixels. Under the model each term has mean zero given
    what came before, so the sum is a martingale (residuals of autoregressive models as in Wang et al. 2020, "Further
    analysis of outlier detection with deep generative models"). One is added to the variance, so that an image which
    the model predicts with certainty divides by 1 and not by 0.
    """
    surprise, expected, variance = features.surprise_statistics("pixelcnn")
    return np.asarray(np.abs((surprise - expected).sum((1, 2))) / np.sqrt(variance.sum((1, 2)) + 1.0))
