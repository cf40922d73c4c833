"""Member scores of the outlier detector: named functions, higher is more outlying, each with its source.

A member is a function `name(seen: Readings, fitted: Fitted) -> (B,)` under `@member`; `params.yaml` names it under
`detector.members`. One that must learn something first names a fit function, which sees training and validation images
and returns arrays; they are stored with the detector and come back as `fitted`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from densitywatch.errors import ParamsError
from densitywatch.outliers import networks
from densitywatch.outliers.mixture import fit_mixture, mixture_nll
from densitywatch.outliers.readings import Readings

Floats = NDArray[np.floating[Any]]
Fitted = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Given:
    """What a fit function sees."""

    train: Readings
    """A sample of the training images."""
    validation: Readings
    seed: int
    declared: tuple[str, ...]
    steps: int
    """Length of the training of a small network."""


Score = Callable[[Readings, Fitted], Floats]
Fit = Callable[[Given], Fitted]


@dataclass(frozen=True)
class Member:
    """A member score and how what it needs is fitted."""

    name: str
    score: Score
    fit: Fit | None
    says: str
    """What a high score means: the end of the sentence "this image is unusual: ..."."""
    declared: bool
    """Whether it only makes sense with declared transformations."""


MEMBERS: dict[str, Member] = {}


def member(says: str, fit: Fit | None = None, declared: bool = False) -> Callable[[Score], Score]:
    """Enter a function into MEMBERS under its own name."""

    def enter(score: Score) -> Score:
        MEMBERS[score.__name__] = Member(score.__name__, score, fit, says, declared)
        return score

    return enter


def find_member(name: str) -> Member:
    """The member of that name. Raises ParamsError, naming those that exist."""
    if name not in MEMBERS:
        raise ParamsError(f"detector.members: no score '{name}'; there is: {', '.join(sorted(MEMBERS))}")
    return MEMBERS[name]


# --- the likelihood and what has been made of it ---


@member("the density model finds it improbable")
def pixelcnn_nll(seen: Readings, fitted: Fitted) -> Floats:
    """Raw negative log-likelihood, nats (Bishop 1994, "Novelty detection and neural network validation").

    Known to fail (Nalisnick et al. 2019, "Do deep generative models know what they don't know?"): simple foreign images
    are more probable than normal ones. Kept to show it.
    """
    return seen.nll("pixelcnn")


def _fit_mean_nll(given: Given) -> Fitted:
    return {"mean": given.validation.nll("pixelcnn").mean(keepdims=True)}


@member("it is more or less probable than images of this kind are", fit=_fit_mean_nll)
def typicality(seen: Readings, fitted: Fitted) -> Floats:
    """Distance of the log-likelihood from its normal mean (Nalisnick et al. 2019, "Detecting out-of-distribution inputs
    to deep generative models using typicality", for batches of one)."""
    return np.abs(seen.nll("pixelcnn") - fitted["mean"])


@member("it is too simple for how improbable it is")
def input_complexity(seen: Readings, fitted: Fitted) -> Floats:
    """Negative log-likelihood minus the length of a general compressor's file (Serrà et al. 2020, "Input complexity and
    out-of-distribution detection with likelihood-based generative models"); here lossless WebP."""
    return seen.nll("pixelcnn") - webp_nats(seen)


def webp_nats(seen: Readings) -> Floats:
    """Length of the lossless WebP file of each image, in nats, (B,)."""

    def length(image: NDArray[np.uint8]) -> float:
        file = io.BytesIO()
        picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        Image.fromarray(picture).convert("RGB").save(file, "WEBP", lossless=True, quality=50, method=2)
        return file.tell() * 8 * math.log(2.0)

    lengths: Floats = seen.once("webp", lambda: np.array([length(image) for image in seen.images]))
    return lengths


def _fit_local(given: Given) -> Fitted:
    return networks.fit_small_density(
        given.train.images, channels=16, dilations=(1,), steps=given.steps, mutation=0.0, seed=given.seed
    )


@member("its parts are usual but not how they go together", fit=_fit_local)
def full_minus_local(seen: Readings, fitted: Fitted) -> Floats:
    """Ratio against a PixelCNN that sees only a few pixels around (Zhang et al. 2021, "On the out-of-distribution
    generalization of probabilistic image modelling"; Schirrmeister et al. 2020)."""
    local = networks.small_density(fitted)
    return seen.nll("pixelcnn") - seen.by_batch(("local", id(fitted)), lambda x: -local.log_prob(x))


def _fit_background(given: Given) -> Fitted:
    return networks.fit_small_density(
        given.train.images, channels=16, dilations=(1, 2), steps=given.steps, mutation=0.15, seed=given.seed
    )


@member("what it shows is unusual, whatever its background", fit=_fit_background)
def likelihood_ratio(seen: Readings, fitted: Fitted) -> Floats:
    """Ratio against a density trained on images with random pixels replaced (Ren et al. 2019, "Likelihood ratios for
    out-of-distribution detection")."""
    background = networks.small_density(fitted)
    return seen.nll("pixelcnn") - seen.by_batch(("background", id(fitted)), lambda x: -background.log_prob(x))


# --- surprise beside what the model expected ---


@member("it holds more surprises than the density model expects of an image like it")
def excess_surprise(seen: Readings, fitted: Fitted) -> Floats:
    """Surprise minus its expectation, in standard deviations: sum(-log p - H) / sqrt(sum Var), over pixels.

    H is the entropy of a pixel's distribution given the earlier pixels. Under the model each term has mean zero given
    what came before, so the sum is a martingale, about standard normal whatever the image's complexity (residuals of
    autoregressive models as in Wang et al. 2020, "Further analysis of outlier detection with deep generative models").
    """
    surprise, expected, variance = seen.surprise_statistics("pixelcnn")
    return np.asarray((surprise - expected).sum((1, 2)) / np.sqrt(variance.sum((1, 2)) + 1.0))


def _blocks(maps: Floats, size: int) -> Floats:
    """Sums over size x size blocks of maps (B, H, W), flattened; what does not fill a block at the end is left out."""
    b, h, w = maps.shape
    rows, columns = h // size, w // size
    cut = maps[:, : rows * size, : columns * size]
    return np.asarray(cut.reshape(b, rows, size, columns, size).sum((2, 4)).reshape(b, rows * columns))


def _surprise_features(seen: Readings) -> Floats:
    surprise, expected, _ = seen.surprise_statistics("pixelcnn")
    block = max(1, surprise.shape[-1] // 7)
    return np.concatenate([_blocks(surprise - expected, block), _blocks(expected, block)], 1)


def _fit_surprise(given: Given) -> Fitted:
    return fit_mixture(_surprise_features(given.validation), dimensions=32, components=10, seed=given.seed)


@member("surprise sits where it does not in normal images", fit=_fit_surprise)
def surprise_pattern(seen: Readings, fitted: Fitted) -> Floats:
    """Where surprise and expected surprise lie, on a grid of 7 x 7 blocks, under a Gaussian mixture (statistics of a
    density model under a simple density: Morningstar et al. 2021, "Density of states estimation", DoSE)."""
    return mixture_nll(_surprise_features(seen), fitted)


# --- the variational autoencoder ---


@member("the autoencoder cannot reproduce it")
def vae_reconstruction(seen: Readings, fitted: Fitted) -> Floats:
    """Minus log p(x | z) at the posterior's mean, nats (An & Cho 2015, "Variational autoencoder based anomaly
    detection using reconstruction probability")."""
    return seen.vae_terms("vae")[:, 0]


@member("its place among the learned factors is far from the usual")
def vae_kl(seen: Readings, fitted: Fitted) -> Floats:
    """KL(q(z|x) || p(z)), nats, the ELBO's other term."""
    return seen.vae_terms("vae")[:, 1]


@member("the autoencoder had to bend to explain it")
def likelihood_regret(seen: Readings, fitted: Fitted) -> Floats:
    """How much the ELBO gains when the posterior is fitted to this one image (Xiao et al. 2020, "Likelihood regret"):
    20 steps of Adam on its mean and variance, one fixed noise. Slow, so no member by default."""
    vae = seen.models["vae"]

    def regret(x: Tensor) -> Tensor:
        from densitywatch.models.vae import kl_to_standard_normal

        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            mean, log_variance = (value.detach().clone().requires_grad_() for value in vae.posterior(x))
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
            optimizer = torch.optim.Adam([mean, log_variance], lr=0.05)
            first = None
            for _ in range(21):
                z = mean + (0.5 * log_variance).exp() * noise
                elbo = vae.conditional_log_prob(x, z) - kl_to_standard_normal(mean, log_variance)
                first = elbo.detach() if first is None else first
                optimizer.zero_grad()
                (-elbo.sum()).backward(inputs=[mean, log_variance])
                optimizer.step()
            gain: Tensor = elbo.detach() - first
            return gain

    return seen.by_batch("regret", regret)


# --- densities without a network, and several statistics at once ---


def _fit_pixels(given: Given) -> Fitted:
    return fit_mixture(given.train.pixels, dimensions=64, components=50, seed=given.seed, floor=1e-3, iterations=25)


@member("as a whole it lies apart from the normal images", fit=_fit_pixels)
def pixel_mixture(seen: Readings, fitted: Fitted) -> Floats:
    """A Gaussian mixture on principal components of the pixels: the honest cheap rival (no network)."""
    return mixture_nll(seen.pixels, fitted)


NEIGHBOURS = 5


def _fit_neighbours(given: Given) -> Fitted:
    pixels = given.train.pixels[:10000]
    mean = pixels.mean(0)
    _, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
    axes = vectors[:, ::-1][:, :64].T.astype(np.float32)
    return {"mean": mean, "axes": axes, "stored": (pixels - mean) @ axes.T}


@member("no normal image is near it", fit=_fit_neighbours)
def nearest_neighbours(seen: Readings, fitted: Fitted) -> Floats:
    """Mean squared distance to the five nearest of 10,000 training images on 64 principal components (Ramaswamy et al.
    2000, "Efficient algorithms for mining outliers")."""
    z = (seen.pixels - fitted["mean"]) @ fitted["axes"].T
    stored = fitted["stored"]
    squares = np.square(stored).sum(1)
    nearest = min(NEIGHBOURS, len(stored))
    parts = [
        np.partition(squares - 2.0 * part @ stored.T, nearest - 1, 1)[:, :nearest].mean(1) + np.square(part).sum(1)
        for part in np.array_split(z, max(1, len(z) // 250))
    ]
    return np.concatenate(parts)


def _statistics(seen: Readings) -> Floats:
    surprise, expected, variance = (part.sum((1, 2)) for part in seen.surprise_statistics("pixelcnn"))
    return np.column_stack([surprise, expected, np.sqrt(variance), webp_nats(seen), seen.vae_terms("vae")])


def _fit_statistics(given: Given) -> Fitted:
    x = _statistics(given.validation)
    scale = x.std(0) + 1e-9
    return {"scale": scale, **fit_mixture(x / scale, dimensions=6, components=10, seed=given.seed)}


@member("the models' figures for it do not go together as they do for normal images", fit=_fit_statistics)
def model_statistics(seen: Readings, fitted: Fitted) -> Floats:
    """Surprise, expected surprise, its spread, WebP bits and the ELBO's terms under a Gaussian mixture (DoSE,
    Morningstar et al. 2021)."""
    return mixture_nll(_statistics(seen) / fitted["scale"], fitted)


# --- declared transformations ---


@member(
    "it is more probable turned, mirrored or inverted than as it is", declared=True, fit=lambda given: _words(given)
)
def transformation_ratio(seen: Readings, fitted: Fitted) -> Floats:
    """log mean over declared T of p(Tx), minus log p(x), nats."""
    model = seen.models["pixelcnn"]
    others = [
        Readings(changed, seen.models, seen.batch_size).by_batch("log_prob", model.log_prob)
        for changed in networks.transformed(seen.images, _declared(fitted))
    ]
    stacked = np.stack(others)
    top = stacked.max(0)
    return np.asarray(seen.nll("pixelcnn") + top + np.log(np.exp(stacked - top).mean(0)))


def _words(given: Given) -> Fitted:
    return {"declared": np.array([list(networks.TRANSFORMATIONS).index(word) for word in given.declared])}


def _declared(fitted: Fitted) -> tuple[str, ...]:
    words = list(networks.TRANSFORMATIONS)
    return tuple(words[int(i)] for i in fitted["declared"])


def _fit_judge(given: Given) -> Fitted:
    return networks.fit_judge(given.train.images, given.declared, steps=2 * given.steps, seed=given.seed)


@member("it looks turned, mirrored or inverted", declared=True, fit=_fit_judge)
def transformation_judge(seen: Readings, fitted: Fitted) -> Floats:
    """A small network trained to tell training images from their declared transformations, log odds (self-supervised
    detection as in Golan & El-Yaniv 2018, with the user's own transformations)."""
    model = networks.judge(fitted)
    return seen.by_batch(("judge", id(fitted)), model)
