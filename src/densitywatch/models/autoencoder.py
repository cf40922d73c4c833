"""Convolutional autoencoder with an L2 loss (Hinton & Salakhutdinov 2006; denoising: Vincent et al. 2008).

The code is narrow, so it must hold what tells one image from another; that serves other tasks. With `noise` above 0
the encoder sees a noisy image and the loss still asks for the clean one, so copying does not pay.

What differs from the papers: strided convolutions instead of layers trained one by one, Gaussian noise instead of
masking.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.map_sizes import halvings
from densitywatch.models.common.pixel_values import scale_images, unscale_images


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind autoencoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: int = Field(default=64, ge=1, le=65536)
    """Numbers in the code of an image."""
    channels: int = Field(default=32, ge=4, le=4096)
    """After the first layer; every halving of the size doubles them, up to eight times as many."""
    noise: float = Field(default=0.0, ge=0, le=2)
    """Standard deviation of the noise on the encoder's input in training, where images span [-1, 1]; 0 for none."""


class Autoencoder(nn.Module):
    """A code (B, code) for every uint8 image (B, C, H, W), and back."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        # as many halvings as lead to a map of 4 to 8 pixels a side, and the same number of doublings back
        depth = halvings(size)
        self.start = -(-size // 2**depth)
        widths = [settings.channels * min(8, 2**i) for i in range(depth)]
        smallest = widths[-1] * self.start**2
        layers: list[nn.Module] = []
        for i, o in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.to_code = nn.Linear(smallest, settings.code)
        layers = [nn.Linear(settings.code, smallest), nn.Unflatten(1, (widths[-1], self.start, self.start))]
        for i, o in zip(widths[::-1], [*widths[-2::-1], channels], strict=True):
            layers += [nn.BatchNorm2d(i), nn.ReLU(), nn.ConvTranspose2d(i, o, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*layers, nn.Tanh())

    def code(self, images: Tensor) -> Tensor:
        """The code of images in [-1, 1], (B, code)."""
        h = self.convolutions(images.contiguous(memory_format=torch.channels_last))
        code: Tensor = self.to_code(h.flatten(1))
        return code

    def restore(self, code: Tensor) -> Tensor:
        """Images in [-1, 1] of codes."""
        # a size that is no multiple of 2^depth comes out larger and is cropped
        images: Tensor = self.decoder(code)[:, :, : self.size, : self.size]
        return images

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared error of a pixel that spans [0, 1], to minimise."""
        images = scale_images(x)
        seen = images + self.settings.noise * torch.randn_like(images) if self.training else images
        loss = F.mse_loss(self.restore(self.code(seen)), images) / 4.0  # [-1, 1] is twice as wide as [0, 1]
        return loss, {"reconstruction_mse": loss.detach()}

    def encode(self, x: Tensor) -> Tensor:
        """The code, (B, code)."""
        return self.code(scale_images(x))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images of codes (B, code), uint8."""
        return unscale_images(self.restore(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoded code of each image, uint8."""
        return self.decode(self.encode(x))


MODEL = Autoencoder
