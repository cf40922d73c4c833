"""Member scores: named functions, higher is more outlying, each with its source. The slower ones are in rivals.py.

A member is a function `name(seen: Readings, fitted: Fitted) -> (B,)` under `@member`; `params.yaml` names it under
`detector.members`. One that must learn something first names a fit function, which sees training and validation images
and returns arrays; they are stored with the detector and come back as `fitted`.
"""

from __future__ import annotations

import numpy as np

from densitywatch.detector.feature_cache import Readings
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll, principal_axes
from densitywatch.detector.member import Fitted, Floats, Given, member, named, part
from densitywatch.detector.score_regression import beyond_expectation, fit_expectation

# --- the likelihood and what has been made of it ---


@member("the density model finds it improbable")
def pixelcnn_nll(seen: Readings, fitted: Fitted) -> Floats:
    """Raw negative log-likelihood, nats (Bishop 1994, "Novelty detection and neural network validation").

    Known to fail (Nalisnick et al. 2019, "Do deep generative models know what they don't know?"): simple foreign images
    are more probable than normal ones. Kept to show it.
    """
    return seen.nll("pixelcnn")


def _fit_typicality(given: Given) -> Fitted:
    return {"mean": given.validation.nll("pixelcnn").mean(keepdims=True)}


@member("it is more or less probable than images of this kind are", fit=_fit_typicality)
def typicality(seen: Readings, fitted: Fitted) -> Floats:
    """Distance of the log-likelihood from its normal mean (Nalisnick et al. 2019, "Detecting out-of-distribution
    inputs to deep generative models using typicality", for batches of one)."""
    return np.abs(seen.nll("pixelcnn") - fitted["mean"])


@member("it is too simple for how improbable it is")
def input_complexity(seen: Readings, fitted: Fitted) -> Floats:
    """Negative log-likelihood minus the length of a general compressor's file (Serrà et al. 2020, "Input complexity and
    out-of-distribution detection with likelihood-based generative models"); here lossless WebP."""
    return seen.nll("pixelcnn") - seen.webp_nats


@member("it holds more surprises, or fewer, than the density model expects of it")
def excess_surprise(seen: Readings, fitted: Fitted) -> Floats:
    """Surprise minus its expectation in standard deviations: |sum(-log p - H)| / sqrt(sum Var), over pixels.

    H is the entropy of a pixel's distribution given the earlier pixels. Under the model each term has mean zero given
    what came before, so the sum is a martingale (residuals of autoregressive models as in Wang et al. 2020, "Further
    analysis of outlier detection with deep generative models").
    """
    surprise, expected, variance = seen.surprise_statistics("pixelcnn")
    return np.asarray(np.abs((surprise - expected).sum((1, 2))) / np.sqrt(variance.sum((1, 2)) + 1.0))


# --- densities without a network ---

MIXTURE_IMAGES = 16000
NEIGHBOUR_IMAGES, NEIGHBOURS = 10000, 5


def _fit_pixels(given: Given) -> Fitted:
    def fit() -> Fitted:
        pixels = given.train.pixels[:MIXTURE_IMAGES]
        return fit_mixture(pixels, dimensions=64, components=40, seed=given.seed, floor=1e-3, iterations=15)

    fitted: Fitted = given.train.once(("pixel mixture", given.seed), fit)  # two scores need the same one
    return fitted


@member("as a whole it lies apart from the normal images", fit=_fit_pixels, reads=())
def pixel_mixture(seen: Readings, fitted: Fitted) -> Floats:
    """A Gaussian mixture on principal components of the pixels: the honest cheap rival (no network)."""
    return mixture_nll(seen.pixels, fitted)


def _fit_neighbours(given: Given) -> Fitted:
    pixels = given.train.pixels[:NEIGHBOUR_IMAGES]
    mean = pixels.mean(0)
    axes = np.ascontiguousarray(principal_axes(pixels, 64, given.seed), dtype=np.float32)
    return {"mean": mean, "axes": axes, "stored": (pixels - mean) @ axes.T}


@member("no normal image is near it", fit=_fit_neighbours, reads=())
def nearest_neighbours(seen: Readings, fitted: Fitted) -> Floats:
    """Mean squared distance to the five nearest of 10,000 training images on 64 principal components (Ramaswamy et al.
    2000, "Efficient algorithms for mining outliers")."""
    z = (seen.pixels - fitted["mean"]) @ fitted["axes"].T
    stored = fitted["stored"]
    squares = np.square(stored).sum(1)
    nearest = min(NEIGHBOURS, len(stored))
    parts = [
        np.partition(squares - 2.0 * some @ stored.T, nearest - 1, 1)[:, :nearest].mean(1) + np.square(some).sum(1)
        for some in np.array_split(z, max(1, len(z) // 250))
    ]
    return np.concatenate(parts)


# --- what an image is made of, and how it is arranged given that ---


def _make(seen: Readings) -> Floats:
    """What the image is made of (features.composition) and how much surprise the density model expects of it."""
    _, expected, variance = (part.sum((1, 2), dtype=np.float64) for part in seen.surprise_statistics("pixelcnn"))
    return np.column_stack([seen.composition, np.log(expected + 1.0), np.log(variance + 1.0)])


def _fit_composition(given: Given) -> Fitted:
    make = _make(given.sample)
    centre, scale = make.mean(0), make.std(0) + 1e-6
    mixture = fit_mixture((make - centre) / scale, dimensions=30, components=5, seed=given.seed)
    return {"centre": centre, "scale": scale, **named("mixture", mixture)}


@member("its shades, edges and texture do not go together as they do in normal images", fit=_fit_composition)
def composition(seen: Readings, fitted: Fitted) -> Floats:
    """What the image is made of, wherever it lies, under a Gaussian mixture: quantiles of shades and edges, WebP bits,
    the density model's expected surprise (statistics under a simple density: Morningstar et al. 2021, DoSE)."""
    make = np.clip((_make(seen) - fitted["centre"]) / fitted["scale"], -10.0, 10.0)
    return mixture_nll(make, part(fitted, "mixture"))


def _surprise_blocks(seen: Readings) -> Floats:
    """Square roots of the surprise in each block of a 7 x 7 grid, (B, 49); what does not fill a block is left out."""
    maps = seen.surprise("pixelcnn")
    b, h, w = maps.shape
    rows, columns = max(1, h // 7), max(1, w // 7)
    cut = maps[:, : h // rows * rows, : w // columns * columns]
    blocks = cut.reshape(b, h // rows, rows, w // columns, columns).sum((2, 4)).reshape(b, -1)
    return np.asarray(np.sqrt(np.maximum(blocks, 0.0)))


def _fit_pixel_arrangement(given: Given) -> Fitted:
    mixture = _fit_pixels(given)
    expectation = fit_expectation(_make(given.sample), mixture_nll(given.sample.pixels, mixture))
    return named("mixture", mixture) | named("expectation", expectation)


@member("its light and dark parts lie where normal images do not have them", fit=_fit_pixel_arrangement)
def pixel_arrangement(seen: Readings, fitted: Fitted) -> Floats:
    """How much less probable its pixels are, under a Gaussian mixture on their principal components, than those of
    images made of the same shades, edges and texture (score_regression.py)."""
    nll = mixture_nll(seen.pixels, part(fitted, "mixture"))
    return beyond_expectation(_make(seen), nll, part(fitted, "expectation"))


def fit_gradient_arrangement(given: Given, dimensions: int = 100, components: int = 80) -> Fitted:
    """The mixture of so many on so many principal components of the histograms, and its expectation."""
    mixture = fit_mixture(
        given.train.gradients, dimensions=dimensions, components=components, seed=given.seed, floor=1e-3, iterations=6
    )
    expectation = fit_expectation(_make(given.sample), mixture_nll(given.sample.gradients, mixture))
    return named("mixture", mixture) | named("expectation", expectation)


@member("its edges run where normal images do not have them", fit=fit_gradient_arrangement)
def gradient_arrangement(seen: Readings, fitted: Fitted) -> Floats:
    """The same as `pixel_arrangement` for histograms of signed gradient directions (Dalal & Triggs 2005)."""
    nll = mixture_nll(seen.gradients, part(fitted, "mixture"))
    return beyond_expectation(_make(seen), nll, part(fitted, "expectation"))


def _fit_surprise(given: Given) -> Fitted:
    # the mixture is fitted on one half of the sample and the expectation on both: all of them are costly to read
    blocks = _surprise_blocks(given.sample)
    return fit_mixture(blocks[: (len(blocks) + 1) // 2], dimensions=32, components=5, seed=given.seed)


@member("surprise lies where it does not in normal images", fit=_fit_surprise)
def surprise_pattern(seen: Readings, fitted: Fitted) -> Floats:
    """Where the PixelCNN's surprise lies, on a 7 x 7 grid, under a Gaussian mixture (DoSE, Morningstar et al. 2021)."""
    return mixture_nll(_surprise_blocks(seen), fitted)


def _fit_surprise_arrangement(given: Given) -> Fitted:
    mixture = _fit_surprise(given)
    expectation = fit_expectation(_make(given.sample), mixture_nll(_surprise_blocks(given.sample), mixture))
    return named("mixture", mixture) | named("expectation", expectation)


@member("the density model is surprised in places where it is not in normal images", fit=_fit_surprise_arrangement)
def surprise_arrangement(seen: Readings, fitted: Fitted) -> Floats:
    """The same as `pixel_arrangement` for the PixelCNN's surprise on a 7 x 7 grid."""
    nll = mixture_nll(_surprise_blocks(seen), part(fitted, "mixture"))
    return beyond_expectation(_make(seen), nll, part(fitted, "expectation"))
