"""What a model may offer, one protocol an offer: `isinstance(model, Sampler)` asks whether it draws samples.

A model offers what it can do and nothing more, so a measure or a member first asks for what it needs. No model inherits
from these: a method of the right name is enough, and a check at run time sees names alone. Images are uint8
(B, C, H, W), likelihoods are natural logarithms for a whole image, (B,), unless a line says otherwise.

No protocol that is checked names a part of the network such as `discriminator`: `hasattr` finds those, `isinstance`
does not from Python 3.12 on. `Players` and `Model` are for annotations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn


class Model(Protocol):
    """What every model has; for annotations."""

    settings: Any
    channels: int
    size: int
    classes: int
    """Number of labels of the dataset; 0 where there are none."""


# likelihoods


@runtime_checkable
class ExactDensity(Protocol):
    """A density that can be computed."""

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x), (B,) nats."""


@runtime_checkable
class PixelwiseDensity(Protocol):
    """A density of one pixel after another. It samples pixel by pixel, so its samples are slow."""

    def log_prob_map(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Nats of every pixel given those before it, (B, H, W)."""


@runtime_checkable
class LabelDensity(Protocol):
    """A density for every label. Whether this model was made with labels, `takes_labels` says."""

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        """log p(x | label) for every label, (B, classes) nats."""


@runtime_checkable
class EveryLabel(Protocol):
    """A density for every label that computes all labels of a few images in one pass."""

    IMAGES_AT_ONCE: int

    def every_label(self, x: Tensor) -> Tensor:
        """log p(x | label) for every label, (B, classes) nats; at most IMAGES_AT_ONCE images."""


@runtime_checkable
class DensityAndCode(Protocol):
    """A density whose features come from the same pass."""

    def log_prob_and_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` (B,) and `encode` (B, D) of the same images."""


@runtime_checkable
class Bounded(Protocol):
    """A lower bound on the likelihood."""

    def elbo(self, x: Tensor) -> Tensor:
        """A lower bound on log p(x), (B,) nats."""


@runtime_checkable
class BoundTerms(Protocol):
    """The two terms of the ELBO apart."""

    def elbo_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, KL), each (B,) nats; ELBO = reconstruction - KL."""


@runtime_checkable
class ImportanceBounded(Protocol):
    """A bound that gets tighter with more samples."""

    def importance_bound(self, x: Tensor, samples: int = 64) -> Tensor:
        """The importance-weighted lower bound on log p(x), (B,) nats."""


# samples, codes, coding


@runtime_checkable
class Sampler(Protocol):
    """Draws images."""

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, uint8 (n, C, H, W)."""


@runtime_checkable
class LatentPrior(Protocol):
    """Draws latents."""

    def latents(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the prior, (n, D)."""


@runtime_checkable
class Encoder(Protocol):
    """Features for other tasks."""

    def encode(self, x: Tensor) -> Tensor:
        """The code of every image, (B, D)."""


@runtime_checkable
class Decoder(Protocol):
    """Images from codes or latents."""

    def decode(self, z: Tensor) -> Tensor:
        """uint8 images of codes (B, D)."""


@runtime_checkable
class Reconstructor(Protocol):
    """Images through a narrow code and back."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image that its own code gives back, uint8."""


@runtime_checkable
class PixelSteps(Protocol):
    """A network that can go one pixel at a time: see common/sampling.py."""

    def steps(self, n: int, labels: Tensor | None = None) -> Any:
        """The features one pixel at a time, with everything kept that later pixels need."""


@runtime_checkable
class ValueWalk(Protocol):
    """A network whose values come in an order of its own, many of them at a time."""

    def walk(
        self,
        n: int,
        choose: Callable[[Tensor, Tensor], Tensor],
        height: int,
        width: int,
        given: Tensor | None = None,
        rows: int = 0,
    ) -> Tensor:
        """n images, uint8 (n, C, height, width), of values that `choose` picks.

        It gets the cumulated probabilities (N, V - 1) of N values 0 .. V - 1 and what is known of them, (N,), from the
        first `rows` rows of `given`, -1 where nothing is.
        """


@runtime_checkable
class Posterior(Protocol):
    """A distribution of latents given an image."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, D)."""


# training


@runtime_checkable
class SingleLoss(Protocol):
    """A model that one loss trains: likelihood, bound or reconstruction."""

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(the scalar to minimise, scalars to log)."""


@runtime_checkable
class Game(Protocol):
    """Two players: each minimises its own loss."""

    def discriminator_loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(the discriminator's scalar on these images and as many generated ones, scalars to log)."""

    def generator_loss(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(the generator's scalar over n generated images, scalars to log)."""


class Players(Game, Protocol):
    """A game with the two networks that play it; for annotations."""

    generator: nn.Module
    discriminator: nn.Module


def is_game(model: object) -> TypeGuard[Players]:
    """Whether two players train this model, `model.generator` and `model.discriminator`."""
    return isinstance(model, Game)


def takes_labels(model: object) -> bool:
    """Whether this model was made with labels: its `conditional`, or else its settings'."""
    settings = getattr(model, "settings", None)
    return bool(getattr(model, "conditional", getattr(settings, "conditional", False)))
