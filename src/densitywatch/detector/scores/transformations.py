"""Scores for declared transformations: those that the user says count as outliers (`detector.declared`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.data.reading import LARGEST_BY_DEFAULT, Images, size_of
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member import FittingData, member
from densitywatch.detector.scores.network_training import restore_weights, train_network, weights_of
from densitywatch.models.common.pixel_values import scale_images

TRANSFORMATIONS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "flip": (lambda x: x[..., ::-1], lambda x: x[..., ::-1, :]),
    "rotate": (
        lambda x: np.rot90(x, 1, (-2, -1)),
        lambda x: np.rot90(x, 2, (-2, -1)),
        lambda x: np.rot90(x, 3, (-2, -1)),
    ),
    "invert": (lambda x: 255 - x,),
}
"""What `detector.declared` may name; each word means these functions of uint8 images (B, C, H, W)."""
WORDS = tuple(TRANSFORMATIONS)


def transformed(images: Pixels, declared: tuple[str, ...]) -> list[Pixels]:
    """The images under every declared transformation, one array each."""
    return [np.ascontiguousarray(change(images)) for word in declared for change in TRANSFORMATIONS[word]]


def _stored(declared: tuple[str, ...]) -> Arrays:
    """The declared words as an array of their numbers."""
    return {"declared": np.array([WORDS.index(word) for word in declared])}


def _declared(fitted: Arrays) -> tuple[str, ...]:
    """The words that `_stored` wrote."""
    return tuple(WORDS[int(i)] for i in fitted["declared"])


# --- a likelihood ratio: the image against its transformations ---


def _fit_ratio(data: FittingData) -> Arrays:
    return _stored(data.declared)


@member(
    "it is more probable turned, mirrored or inverted than as it is", fit=_fit_ratio, needs_declared=True, slow=True
)
def transformation_ratio(features: FeatureCache, fitted: Arrays) -> Floats:
    """log mean over declared T of p(Tx), minus log p(x), nats."""
    model = features.models["pixelcnn"]
    others = [
        FeatureCache(changed, features.models, features.batch_size).by_batch("log_prob", model.log_prob)
        for changed in transformed(features.at(size_of(model, features.size))[:], _declared(fitted))
    ]
    stacked = np.stack(others)
    top = stacked.max(0)  # log mean exp(v) = top + log mean exp(v - top), which does not underflow
    return np.asarray(features.nll("pixelcnn") + top + np.log(np.exp(stacked - top).mean(0)))


# --- the transformation judge: a network that is trained to tell them apart ---


class TransformationJudge(nn.Module):
    """Tells images as they are from declared transformations of them: log odds, higher is more transformed.

    A network u says how untransformed an image looks. The odds compare the image with its own transformations: log sum
    over T of exp(u(T x)), minus u(x). So u need only rank versions of one image, never different images, which takes
    far less training. The inverse of every T must be declared too; each word of TRANSFORMATIONS includes its inverses.
    That mirror images can be told apart at all: Lin et al. 2020, "Visual chirality".
    """

    def __init__(self, colours: int, declared: tuple[str, ...]) -> None:
        super().__init__()
        self.declared = declared
        self.body = nn.Sequential(
            *_convolution(colours, 16),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 32),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 64),
            nn.Conv2d(64, 32, 1),
            nn.AdaptiveAvgPool2d(7),  # keeps where things are
            nn.Flatten(),
            nn.SiLU(),
            nn.Dropout(0.3),
            nn.Linear(32 * 49, 1),
        )

    def untransformed(self, x: Tensor) -> Tensor:
        """u(x) of uint8 images, (B,)."""
        value: Tensor = self.body(scale_images(x).contiguous(memory_format=torch.channels_last))[:, 0]
        return value

    def forward(self, x: Tensor) -> Tensor:
        """Log odds that uint8 images (B, C, H, W) are transformed, (B,)."""
        others = [self.untransformed(torch.from_numpy(changed)) for changed in transformed(x.numpy(), self.declared)]
        return torch.stack(others).logsumexp(0) - self.untransformed(x)


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]


def fit_transformation_judge(images: Images, declared: tuple[str, ...], *, steps: int, seed: int) -> Arrays:
    """Train a TransformationJudge for `steps` batches of 64; its weights as arrays.

    Every image of a batch is set against one declared transformation of itself: log(1 + exp(u(T x) - u(x))), the
    pairwise loss of Burges et al. 2005, "Learning to rank using gradient descent". Transformations are drawn anew for
    each batch, those that are hard to tell (a high loss of late) more often. That leaves the odds as they are, since
    each comparison is of one pair.
    """
    rng = np.random.default_rng(seed)
    # a running mean of each transformation's loss, which starts at that of a network that cannot tell
    losses = np.full(sum(len(TRANSFORMATIONS[word]) for word in declared), math.log(2.0))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransformationJudge(images.shape[1], declared).to(memory_format=torch.channels_last)

        def loss() -> Tensor:
            batch = np.array(images[np.sort(rng.integers(0, len(images), 64))])
            # 80 % of the draws in proportion to the losses, 20 % equally likely
            drawn = rng.choice(len(losses), len(batch), p=0.8 * losses / losses.sum() + 0.2 / len(losses))
            changed = np.stack(transformed(batch, declared))[drawn, np.arange(len(batch))]
            normal, other = model.untransformed(torch.from_numpy(np.concatenate([batch, changed]))).chunk(2)
            each = F.softplus(other - normal)
            for i, value in zip(drawn, each.tolist(), strict=True):
                losses[i] += 0.01 * (value - losses[i])
            return each.mean()

        train_network(model, loss, steps, 2e-3)
    return {**_stored(declared), **weights_of(model)}


def load_transformation_judge(fitted: Arrays) -> TransformationJudge:
    """The network whose weights `fit_transformation_judge` returned."""
    weights = {key: value for key, value in fitted.items() if key != "declared"}
    model = TransformationJudge(weights["body.0.weight"].shape[1], _declared(fitted))
    restore_weights(model, weights)
    return model.to(memory_format=torch.channels_last)


def _fit_judge(data: FittingData) -> Arrays:
    return fit_transformation_judge(data.all_train, data.declared, steps=data.declared_steps, seed=data.seed)


@member("it looks turned, mirrored or inverted", fit=_fit_judge, reads=(), needs_declared=True)
def transformation_judge(features: FeatureCache, fitted: Arrays) -> Floats:
    """A small network trained to tell training images from their declared transformations, log odds (self-supervised
    detection as in Golan & El-Yaniv 2018, with the user's own transformations)."""
    model = load_transformation_judge(fitted)
    return features.by_batch(("judge", id(fitted)), model, min(features.size, LARGEST_BY_DEFAULT))
