"""Conditional GAN: samples of a given label.

* a projection discriminator (Miyato & Koyama 2018) under spectral normalisation (Miyato et al. 2018);
* a generator with conditional batch normalisation (Dumoulin et al. 2017, de Vries et al. 2017): a scale and a shift for
  each label.

What differs from the papers:
* DCGAN's strided blocks instead of residual ones, which is enough for small images;
* the label also enters the generator next to the latent, as in BigGAN (Brock et al. 2019): scales and shifts start out
  equal, and alone they grow apart too slowly;
* the discriminator's last layer sees the whole map instead of a sum over it;
* a label may be a mixture of labels, so that one can walk from one label to another;
* samples come from an exponential average of the generator's weights.

In a dataset without labels all images have one label: it is an unconditional GAN.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from densitywatch.models.common.gan_losses import (
    discriminator_game_loss,
    discriminator_hinge_loss,
    game_logs,
    generator_game_loss,
    generator_hinge_loss,
)
from densitywatch.models.common.latents import standard_normal
from densitywatch.models.common.map_sizes import FULL_MAP, halvings
from densitywatch.models.common.pixel_values import scale_images, unscale_images


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind conditional_gan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent: int = Field(default=64, ge=1, le=65536)
    generator_channels: int = Field(default=128, ge=16, le=4096)
    """At the smallest map; every doubling of the size halves them, down to 16."""
    discriminator_channels: int = Field(default=64, ge=4, le=4096)
    """After the first layer; every halving of the size doubles them, up to eight times as many."""
    discriminator_features: int = Field(default=128, ge=4, le=4096)
    """The width of the layer that is projected on the label."""
    loss: Literal["hinge", "minimax", "non_saturating"] = "hinge"


WIDEST = 512
"""Channels that the discriminator has at most for images beyond 32 pixels a side."""


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation of (B, F, H, W) with a scale and a shift for every label."""

    def __init__(self, features: int, labels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=False)
        self.scale = nn.Parameter(torch.ones(labels, features))
        self.shift = nn.Parameter(torch.zeros(labels, features))

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        """weights: (B, labels), how much of each label; one-hot for an image of one label."""
        # (B, labels) @ (labels, F): the row of the image's label, or a mixture of rows
        scale, shift = weights @ self.scale, weights @ self.shift
        # mean 0 and variance 1 over the whole batch, whatever the labels; then the label's scale and shift
        normalised: Tensor = self.norm(h)
        return normalised * scale[:, :, None, None] + shift[:, :, None, None]


class Generator(nn.Module):
    """Latents (B, latent) and label weights (B, labels) to images in [-1, 1], (B, C, size, size)."""

    def __init__(self, settings: Settings, channels: int, size: int, labels: int) -> None:
        super().__init__()
        doublings = halvings(size)
        self.size, self.start = size, -(-size // 2**doublings)
        widths = [max(16, settings.generator_channels // 2**i) for i in range(doublings + 1)]
        self.project = nn.Linear(settings.latent + labels, widths[0] * self.start**2, bias=False)
        self.norms = nn.ModuleList(ConditionalBatchNorm(width, labels) for width in widths)
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, stride=2, padding=1) for i, o in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, weights: Tensor) -> Tensor:
        h = self.project(self.joined(z, weights)).view(len(z), -1, self.start, self.start)
        h = h.contiguous(memory_format=torch.channels_last)
        for norm, double in zip(self.norms[:-1], self.doublings, strict=True):
            h = double(F.relu(norm(h, weights)))
        # a last convolution at full size smooths the checkerboard that transposed convolutions leave
        h = self.out(F.relu(self.norms[-1](h, weights)))
        return torch.tanh(h[:, :, : self.size, : self.size].float())

    def joined(self, z: Tensor, weights: Tensor) -> Tensor:
        """Latents and label weights in one vector, (B, latent + labels).

        A standard normal latent of D numbers has a length of about sqrt(D), so a one-hot label is scaled to that.
        """
        return torch.cat([z, weights * math.sqrt(z.shape[1])], 1)


class Discriminator(nn.Module):
    """Images in [-1, 1] and labels to logits (B,): psi(phi(x)) + <embedding of the label, phi(x)>.

    phi: the features of an image. psi: how real they are whatever the label. The inner product: how well they fit the
    label. Spectral normalisation divides each weight, as a matrix (out, rest), by its largest singular value, which
    bounds how far a layer stretches a difference. One step of power iteration a forward pass estimates that value.
    """

    def __init__(self, settings: Settings, channels: int, size: int, labels: int) -> None:
        super().__init__()
        depth = halvings(size)
        widths = [settings.discriminator_channels * min(8, 2**i) for i in range(depth)]
        if size > FULL_MAP:
            widths = [min(WIDEST, width) for width in widths]
        self.convolutions = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 4, stride=2, padding=1))
            for i, o in zip([channels, *widths], widths, strict=False)
        )
        # a layer over the whole map: with a sum over positions only local texture would count
        self.last = spectral_norm(nn.Linear(widths[-1] * (size // 2**depth) ** 2, settings.discriminator_features))
        self.out = spectral_norm(nn.Linear(settings.discriminator_features, 1))
        self.embedding = spectral_norm(nn.Embedding(labels, settings.discriminator_features))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = x.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            h = F.leaky_relu(convolution(h), 0.1)
        features = F.leaky_relu(self.last(h.flatten(1)), 0.1)
        logits: Tensor = self.out(features).squeeze(1) + (self.embedding(labels) * features).sum(1)
        return logits.float()


class ConditionalGAN(nn.Module):
    """Samples of a given label. Images are uint8 (B, C, H, W).

    Latents are (B, latent + labels): a standard normal part and the label's weights, one-hot for an image of one label.
    """

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.conditional = classes > 0
        self.labels = max(1, classes)
        self.generator = Generator(settings, channels, size, self.labels)
        self.discriminator = Discriminator(settings, channels, size, self.labels)

    def latents(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the prior, (n, latent + labels), with the given labels or with equally likely ones."""
        device = next(self.parameters()).device
        z = standard_normal(n, self.settings.latent, generator=generator, device=device)
        if labels is None or not self.conditional:
            drawn_on = device if generator is None else generator.device
            labels = torch.randint(self.labels, (n,), generator=generator, device=drawn_on)
        return torch.cat([z, F.one_hot(labels.to(device), self.labels).to(z.dtype)], 1)

    def generate(self, z: Tensor) -> Tensor:
        """Images in [-1, 1] of latents (B, latent + labels)."""
        images: Tensor = self.generator(z[:, : self.settings.latent], z[:, self.settings.latent :])
        return images

    def discriminator_loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over a batch and as many generated images of the same labels, for the discriminator to minimise."""
        labels = self.labels_of(len(x), labels)
        images = scale_images(x)
        with torch.no_grad():
            generated = self.generate(self.latents(len(x), labels))
        # one pass for both: a second one would see weights after one more power iteration
        real, fake = self.discriminator(torch.cat([images, generated]), labels.repeat(2)).chunk(2)
        logs = game_logs(images, generated, real, fake)
        if self.settings.loss == "hinge":
            return discriminator_hinge_loss(real, fake), logs
        return discriminator_game_loss(real, fake), logs

    def generator_loss(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over n generated images, for the generator to minimise."""
        labels = self.labels_of(n, labels)
        fake = self.discriminator(self.generate(self.latents(n, labels)), labels)
        if self.settings.loss == "hinge":
            return generator_hinge_loss(fake), {}
        return generator_game_loss(fake, self.settings.loss), {}

    def labels_of(self, n: int, labels: Tensor | None) -> Tensor:
        """The labels of a batch: those given, or equally likely ones; in a dataset without labels all are 0."""
        if self.conditional and labels is not None:
            return labels
        return torch.randint(self.labels, (n,), device=next(self.parameters()).device)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images of latents (B, latent + labels), uint8."""
        return unscale_images(self.generate(z))

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, uint8 (n, C, H, W), of the given labels (n,) or of equally likely ones."""
        return self.decode(self.latents(n, labels, generator))


MODEL = ConditionalGAN
