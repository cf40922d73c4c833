"""Variational autoencoder (Kingma & Welling 2014) with diagonal Gaussians and a likelihood of the 8-bit image.

    log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))        the ELBO: reconstruction and KL, logged apart
    log p(x) >= log mean_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x)    the importance-weighted bound (Burda et al. 2016)

What differs from the paper: a convolutional encoder and decoder; and p(x|z) is a discrete distribution over 0..255 for
every sub-pixel (pixel_head.PixelHead), so its bounds have the unit of the exact densities and compare with them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.latents import standard_normal
from densitywatch.models.common.map_sizes import FULL_MAP, halvings
from densitywatch.models.common.pixel_head import PixelHead
from densitywatch.models.common.pixel_values import bits_per_dim, scale_images


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind vae."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(default=32, ge=4, le=4096)
    latent: int = Field(default=32, ge=1, le=65536)
    head: Literal["softmax", "logistic_mixture"] = "logistic_mixture"
    components: int = Field(default=5, ge=1, le=256)
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"


def diagonal_gaussian_log_prob(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Nats of z (..., D) under N(mean, diag(exp(log_variance))), summed over D."""
    return -0.5 * (log_variance + (z - mean) ** 2 / log_variance.exp() + math.log(2 * math.pi)).sum(-1)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log_variance))) || N(0, I)) in nats, summed over the last axis."""
    # of one dimension: (mean^2 + variance - 1 - log variance) / 2
    return 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).sum(-1)


def half(size: int) -> int:
    return (size + 1) // 2


class VAE(nn.Module):
    """Bounds on log p(x) of uint8 images (B, C, H, W), and a latent space z of (B, latent) to walk in."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        c = settings.channels
        depth = 2 if size <= FULL_MAP else halvings(size)  # the smallest map has at most 8 pixels a side
        widths = [c * min(4, 2**i) for i in range(depth)]
        self.sizes = [size]
        for _ in range(depth):
            self.sizes.insert(0, half(self.sizes[0]))
        smallest = widths[-1] * self.sizes[0] ** 2
        layers: list[nn.Module] = []
        for i, o in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.SiLU(), nn.Flatten()]
        self.encoder = nn.Sequential(*layers, nn.Linear(smallest, 256), nn.SiLU(), nn.Linear(256, 2 * settings.latent))
        self.OUTER_LAYERS = (
            "encoder.0",
            f"encoder.{len(self.encoder) - 1}",
            "decoder_in.0",
            "head.colours",
            "head.out",
        )
        """What Muon leaves to AdamW: the layers that read or write pixels, latents or distribution parameters."""
        self.decoder_in = nn.Sequential(nn.Linear(settings.latent, 256), nn.SiLU(), nn.Linear(256, smallest), nn.SiLU())
        self.decoder_convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise([widths[-1], *widths[::-1], c])
        )
        self.head = PixelHead(
            c, channels, kind=settings.head, components=settings.components, colour_order=settings.colour_order
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, latent); a width of at most e^4 and at least e^-6."""
        image = scale_images(x, self.head.hidden.weight.dtype).contiguous(memory_format=torch.channels_last)
        out = self.encoder(image)
        mean, log_variance = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2, 1)
        return mean, log_variance.clamp(-12.0, 8.0)

    def decoder_features(self, z: Tensor) -> Tensor:
        """The features from which the head computes the pixels' distributions, (B, F, H, W)."""
        h: Tensor = self.decoder_in(z).view(len(z), -1, self.sizes[0], self.sizes[0])
        h = h.contiguous(memory_format=torch.channels_last)
        for size, convolution in zip(self.sizes, self.decoder_convolutions, strict=True):
            if h.shape[-1] != size:
                h = F.interpolate(h, size=(size, size), mode="nearest")
            h = F.silu(convolution(h))
        return h

    def conditional_log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), (B,) nats."""
        log_prob: Tensor = self.head.log_prob(self.decoder_features(z), x)
        return log_prob.sum((1, 2, 3))

    def elbo_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, KL), each (B,) nats, with one z of torch's global generator; ELBO = reconstruction - KL."""
        mean, log_variance = self.posterior(x)
        # z ~ q(z|x) as a function of mean and variance, through which the gradient passes (the paper's section 2.4)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        # E_q[log p(x|z)] is estimated by this one z; the KL of two Gaussians is known exactly
        return self.conditional_log_prob(x, z), kl_to_standard_normal(mean, log_variance)

    def elbo(self, x: Tensor) -> Tensor:
        """A lower bound on log p(x), (B,) nats."""
        reconstruction, kl = self.elbo_terms(x)
        return reconstruction - kl

    def importance_bound(self, x: Tensor, samples: int = 64) -> Tensor:
        """The importance-weighted lower bound on log p(x), (B,) nats; tighter with more samples."""
        mean, log_variance = self.posterior(x)
        weights = []
        for _ in range(samples):
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            prior = diagonal_gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z))
            # log of p(x|z) p(z) / q(z|x)
            weights.append(self.conditional_log_prob(x, z) + prior - diagonal_gaussian_log_prob(z, mean, log_variance))
        return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the ELBO in bits per dimension, to minimise; its two terms are logged apart."""
        dimensions = x[0].numel()
        reconstruction, kl = self.elbo_terms(x)
        loss = bits_per_dim(reconstruction - kl, dimensions).mean()
        return loss, {
            "elbo_bits_per_dim": loss.detach(),
            "reconstruction_bits_per_dim": bits_per_dim(reconstruction.detach(), dimensions).mean(),
            "kl_bits_per_dim": -bits_per_dim(kl.detach(), dimensions).mean(),
        }

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), (B, latent)."""
        return self.posterior(x)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The expected image of p(x|z), uint8; colours in sequence, each given the ones before it."""
        features = self.decoder_features(z)
        x = torch.zeros(len(z), self.channels, self.size, self.size, dtype=torch.uint8, device=z.device)
        for k, colour in enumerate(self.head.sequence):
            x[:, colour] = self.head.expected(features, x, k).round().to(torch.uint8)
        return x

    def reconstruct(self, x: Tensor) -> Tensor:
        """The expected image given the mean of q(z|x), uint8."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, uint8 (n, C, H, W): the expected image for z drawn from the prior."""
        device = self.head.hidden.weight.device
        return self.decode(standard_normal(n, self.settings.latent, generator=generator, device=device))


MODEL = VAE
