"""Generative adversarial nets (Goodfellow et al. 2014): the original two-player game, fully connected.

    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]

The discriminator ascends V. The generator descends V (`minimax`), or ascends E_z[log D(G(z))] (`non_saturating`). Both
have the same fixed point; the second one's gradient does not vanish while D wins easily (section 3 of the paper).

What differs from the paper: leaky ReLU for maxout in the discriminator, Gaussian noise, batch normalisation in the
generator (Ioffe & Szegedy 2015 came later), one discriminator step for one of the generator, Adam for momentum. Beyond
48 pixels a side the layers that touch pixels are factorised; as plain ones they would have 100 million weights.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.gan_losses import GeneratorLoss, discriminator_game_loss, game_logs, generator_game_loss
from densitywatch.models.common.latents import standard_normal
from densitywatch.models.common.pixel_values import scale_images, unscale_images

Width = Annotated[int, Field(ge=1, le=65536)]


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind gan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent: int = Field(default=64, ge=1, le=65536)
    generator: tuple[Width, ...] = Field(default=(256, 512), min_length=1, max_length=64)
    """Widths of the hidden layers."""
    discriminator: tuple[Width, ...] = Field(default=(512, 256), min_length=1, max_length=64)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """In the discriminator, as in the paper."""
    loss: GeneratorLoss = "non_saturating"


CORE = 48
"""The layers that touch pixels connect to at most this many rows and columns."""


class Separable(nn.Module):
    """A linear map of images (B, C, H, H) to (B, C, K, K): one matrix along the rows and one along the columns.

    It starts as bilinear interpolation, so that at first the game is played on smaller images.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        # interpolating the unit vectors gives the matrix of the interpolation
        each = torch.eye(before)[None, None]
        start = F.interpolate(each, size=(before, after), mode="bilinear", antialias=True)[0, 0].t()
        self.rows = nn.Parameter(start.contiguous())  # (after, before)
        self.columns = nn.Parameter(self.rows.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.t()


class GAN(nn.Module):
    """Samples without a density. Images are uint8 (B, C, H, W), latents z (B, latent) are standard normal."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        core = min(size, CORE)  # above it, images are core x core inside and Separable brings them to size
        pixels = channels * core * core
        layers: list[nn.Module] = []
        for i, o in pairwise((settings.latent, *settings.generator)):
            layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
        self.generator = nn.Sequential(
            *layers,
            nn.Linear(settings.generator[-1], pixels),
            *([] if core == size else [nn.Unflatten(1, (channels, core, core)), Separable(core, size)]),
            nn.Tanh(),
            *([nn.Unflatten(1, (channels, size, size))] if core == size else []),
        )
        layers = [nn.Flatten()] if core == size else [Separable(size, core), nn.Flatten()]
        for i, o in pairwise((pixels, *settings.discriminator)):
            layers += [nn.Linear(i, o), nn.LeakyReLU(0.2), nn.Dropout(settings.dropout)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(settings.discriminator[-1], 1), nn.Flatten(0))

    def latents(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the prior, (n, latent); labels are ignored."""
        device = next(self.parameters()).device
        return standard_normal(n, self.settings.latent, generator=generator, device=device)

    def discriminator_loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the game's value on a batch and as many generated images, for the discriminator to minimise."""
        images = scale_images(x)
        with torch.no_grad():  # the generator does not move in this step
            generated = self.generator(self.latents(len(x)))
        real, fake = self.discriminator(images), self.discriminator(generated)
        return discriminator_game_loss(real, fake), game_logs(images, generated, real, fake)

    def generator_loss(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `settings.loss` over n generated images, for the generator to minimise."""
        fake = self.discriminator(self.generator(self.latents(n)))
        return generator_game_loss(fake, self.settings.loss), {}

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images of latents (B, latent), uint8."""
        return unscale_images(self.generator(z))

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, uint8 (n, C, H, W)."""
        return self.decode(self.latents(n, generator=generator))


MODEL = GAN
