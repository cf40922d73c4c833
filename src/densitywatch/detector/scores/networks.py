"""Small networks that a score trains for itself: local and background densities, a judge of transformations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.data.reading import Images as Source
from densitywatch.models.common.pixel_values import scale_images
from densitywatch.models.pixelcnn import PixelCNN, Settings

Arrays = dict[str, NDArray[Any]]
Images = NDArray[np.uint8]

TRANSFORMATIONS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "flip": (lambda x: x[..., ::-1], lambda x: x[..., ::-1, :]),
    "rotate": (
        lambda x: np.rot90(x, 1, (-2, -1)),
        lambda x: np.rot90(x, 2, (-2, -1)),
        lambda x: np.rot90(x, 3, (-2, -1)),
    ),
    "invert": (lambda x: 255 - x,),
}
"""What a user may declare in `detector.declared`; each word stands for these functions of uint8 images (B, C, H, W)."""


def transformed(images: Images, declared: tuple[str, ...]) -> list[Images]:
    """The images under every declared transformation, one array each."""
    return [np.ascontiguousarray(change(images)) for word in declared for change in TRANSFORMATIONS[word]]


def fit_small_density(
    images: Images, *, channels: int, dilations: tuple[int, ...], steps: int, mutation: float, seed: int
) -> Arrays:
    """Train a small PixelCNN on `images` for `steps` batches of 32; its weights as arrays.

    `mutation`: the share of sub-pixels replaced by uniform noise, anew in every batch, which leaves a density of the
    background alone (Ren et al. 2019).
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _small_density(channels, dilations, images.shape[1], images.shape[2])

    def loss() -> Tensor:
        batch = np.array(images[rng.integers(0, len(images), 32)])
        if mutation:
            changed = rng.random(batch.shape) < mutation
            batch[changed] = rng.integers(0, 256, int(changed.sum()), dtype=np.uint8)
        return model.loss(torch.from_numpy(batch))[0]

    _descend(model, loss, steps, 4e-3)
    shape = np.array([channels, images.shape[1], images.shape[2], *dilations])
    return {"shape": shape, **_arrays(model)}


def small_density(fitted: Arrays) -> PixelCNN:
    """The network whose weights `fit_small_density` returned. Raises ValueError when they are of another one."""
    channels, colours, size, *dilations = (int(value) for value in fitted["shape"])
    weights = {key: value for key, value in fitted.items() if key != "shape"}
    with torch.device("meta"):  # without memory first: `shape` may say anything
        expected = _small_density(channels, tuple(dilations), colours, size).state_dict()
    if {key: value.shape for key, value in weights.items()} != {key: value.shape for key, value in expected.items()}:
        raise ValueError("the weights of its small density do not fit its shape")
    model = _small_density(channels, tuple(dilations), colours, size)
    _restore(model, weights)
    return model


def _small_density(channels: int, dilations: tuple[int, ...], colours: int, size: int) -> PixelCNN:
    return PixelCNN(
        Settings(channels=channels, dilations=dilations, components=3), channels=colours, size=size, classes=0
    )


class Judge(nn.Module):
    """Tells images as they are from declared transformations of them: log odds, higher is more transformed.

    A network u says how untransformed an image looks; the odds compare the image with its own transformations, log sum
    over T of exp(u(T x)) minus u(x). So u need only rank versions of one image, never different images, which takes
    far less training. The inverse of every T must be among the declared ones; each word of TRANSFORMATIONS has them.
    That mirror images can be told at all: Lin et al. 2020, "Visual chirality".
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

    def as_it_is(self, x: Tensor) -> Tensor:
        """u(x) of uint8 images, (B,)."""
        value: Tensor = self.body(scale_images(x).contiguous(memory_format=torch.channels_last))[:, 0]
        return value

    def forward(self, x: Tensor) -> Tensor:
        others = [self.as_it_is(torch.from_numpy(changed)) for changed in transformed(x.numpy(), self.declared)]
        return torch.stack(others).logsumexp(0) - self.as_it_is(x)


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]


def fit_judge(images: Source, declared: tuple[str, ...], *, steps: int, seed: int) -> Arrays:
    """Train a Judge: every image of a batch against one declared transformation of itself, log(1 + exp(u(T x) - u(x)))
    (the pairwise loss of Burges et al. 2005, "Learning to rank using gradient descent").

    Transformations are drawn anew for each batch, those that are hard to tell (a high loss of late) more often. That
    leaves the odds as they are, since each comparison is of one pair.
    """
    rng = np.random.default_rng(seed)
    losses = np.full(sum(len(TRANSFORMATIONS[word]) for word in declared), math.log(2.0))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Judge(images.shape[1], declared).to(memory_format=torch.channels_last)

        def loss() -> Tensor:
            batch = np.array(images[np.sort(rng.integers(0, len(images), 64))])
            drawn = rng.choice(len(losses), len(batch), p=0.8 * losses / losses.sum() + 0.2 / len(losses))
            changed = np.stack(transformed(batch, declared))[drawn, np.arange(len(batch))]
            normal, other = model.as_it_is(torch.from_numpy(np.concatenate([batch, changed]))).chunk(2)
            each = F.softplus(other - normal)
            for i, value in zip(drawn, each.tolist(), strict=True):
                losses[i] += 0.01 * (value - losses[i])
            return each.mean()

        _descend(model, loss, steps, 2e-3)
    return {"declared": np.array([list(TRANSFORMATIONS).index(word) for word in declared]), **_arrays(model)}


def judge(fitted: Arrays) -> Judge:
    """The network whose weights `fit_judge` returned."""
    weights = {key: value for key, value in fitted.items() if key != "declared"}
    words = list(TRANSFORMATIONS)
    model = Judge(weights["body.0.weight"].shape[1], tuple(words[int(i)] for i in fitted["declared"]))
    _restore(model, weights)
    return model.to(memory_format=torch.channels_last)


def _descend(model: nn.Module, loss: Any, steps: int, learning_rate: float) -> None:
    """`steps` of AdamW with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    warm = max(1, min(30, steps // 5))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _arrays(model: nn.Module) -> Arrays:
    return {name: value.detach().contiguous().numpy().copy() for name, value in model.state_dict().items()}


def _restore(model: nn.Module, arrays: Arrays) -> None:
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    model.eval()
