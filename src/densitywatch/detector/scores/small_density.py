"""Ratios of the PixelCNN's likelihood to that of a small density, which each score trains for itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.data.reading import LARGEST_BY_DEFAULT
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member import FittingData, member
from densitywatch.detector.scores.network_training import restore_weights, train_network, weights_of
from densitywatch.models.pixelcnn import PixelCNN, Settings


def fit_small_density(
    images: Pixels, *, channels: int, dilations: tuple[int, ...], steps: int, mutation: float, seed: int
) -> Arrays:
    """Train a small PixelCNN on `images` for `steps` batches of 32; its weights as arrays.

    `mutation`: the share of sub-pixels replaced by uniform noise, drawn again for every batch. That leaves a density of
    the background alone (Ren et al. 2019).
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(channels, dilations, images.shape[1], images.shape[2])

    def loss() -> Tensor:
        batch = np.array(images[rng.integers(0, len(images), 32)])
        if mutation:
            changed = rng.random(batch.shape) < mutation
            batch[changed] = rng.integers(0, 256, int(changed.sum()), dtype=np.uint8)
        return model.loss(torch.from_numpy(batch))[0]

    train_network(model, loss, steps, 4e-3)
    shape = np.array([channels, images.shape[1], images.shape[2], *dilations])
    return {"shape": shape, **weights_of(model)}


def load_small_density(fitted: Arrays) -> PixelCNN:
    """The network whose weights `fit_small_density` returned. Raises ValueError when they are of another one."""
    channels, colours, size, *dilations = (int(value) for value in fitted["shape"])
    weights = {key: value for key, value in fitted.items() if key != "shape"}
    with torch.device("meta"):  # a network without memory: a corrupt `shape` may ask for any amount of it
        expected = _build(channels, tuple(dilations), colours, size).state_dict()
    if {key: value.shape for key, value in weights.items()} != {key: value.shape for key, value in expected.items()}:
        raise ValueError("the weights of its small density do not fit its shape")
    model = _build(channels, tuple(dilations), colours, size)
    restore_weights(model, weights)
    return model


def _build(channels: int, dilations: tuple[int, ...], colours: int, size: int) -> PixelCNN:
    return PixelCNN(
        Settings(channels=channels, dilations=dilations, components=3), channels=colours, size=size, classes=0
    )


def _small_images(features: FeatureCache) -> Pixels:
    """What a small density learns from: at most 32 pixels a side, to be quick."""
    return np.asarray(features.at(min(features.size, LARGEST_BY_DEFAULT))[:])


def _fit_local(data: FittingData) -> Arrays:
    return fit_small_density(
        _small_images(data.train),
        channels=16,
        dilations=(1,),
        steps=data.small_network_steps,
        mutation=0.0,
        seed=data.seed,
    )


@member("its parts are usual but not how they go together", fit=_fit_local)
def full_minus_local(features: FeatureCache, fitted: Arrays) -> Floats:
    """log p_local(x) - log p(x), where the local PixelCNN sees only the nearest pixels (Zhang et al. 2021, "On the
    out-of-distribution generalization of probabilistic image modelling"; Schirrmeister et al. 2020)."""
    local = load_small_density(fitted)
    return features.nll("pixelcnn") - features.by_batch(("local", id(fitted)), lambda x: -local.log_prob(x), local.size)


def _fit_background(data: FittingData) -> Arrays:
    return fit_small_density(
        _small_images(data.train),
        channels=16,
        dilations=(1, 2),
        steps=data.small_network_steps,
        mutation=0.15,
        seed=data.seed,
    )


@member("what it shows is unusual, whatever its background", fit=_fit_background)
def likelihood_ratio(features: FeatureCache, fitted: Arrays) -> Floats:
    """log p_background(x) - log p(x), where the background density learned from images with random pixels replaced
    (Ren et al. 2019, "Likelihood ratios for out-of-distribution detection")."""
    background = load_small_density(fitted)
    return features.nll("pixelcnn") - features.by_batch(
        ("background", id(fitted)), lambda x: -background.log_prob(x), background.size
    )
