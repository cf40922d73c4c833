"""What an exact density over pixels offers once it has features of the pixels before each pixel.

p(x) = prod_i p(x_i | x_1 .. x_{i-1}) in raster order; x is uint8 (B, C, H, W). PixelCNN and PixelRNN differ only in how
they compute features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.pixel_head import PixelHead
from densitywatch.models.common.pixel_values import bits_per_dim
from densitywatch.models.common.sampling import Steps, sample_pixels


def require_labels(labels: Tensor | None, classes: int) -> Tensor:
    """The labels, for a model that needs them. Raises ValueError where there are none."""
    if labels is None:
        raise ValueError(f"this model is conditional on {classes} labels: pass labels")
    return labels


class PixelDensity(nn.Module, ABC):
    """A model with a `head` and with `features(x, labels) -> (B, F, H, W)`, which see only the pixels before each."""

    head: PixelHead
    channels: int
    size: int
    classes: int
    settings: Any

    @property
    def conditional(self) -> bool:
        """Whether there is a density for every label: the settings ask for it and the dataset has labels."""
        return bool(self.settings.conditional and self.classes)

    @abstractmethod
    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What every pixel knows of the pixels before it: (B, F, H, W)."""

    @abstractmethod
    def steps(self, n: int, labels: Tensor | None = None) -> Steps:
        """The same features one pixel at a time, with everything kept that later pixels need."""

    def log_prob_map(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Nats of every pixel given those before it, (B, H, W), colours summed."""
        return self.head.log_prob(self.features(x, labels), x).sum(1)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Exact log-likelihood of uint8 images, (B,) nats.

        A conditional model without labels answers with the mixture over equally likely labels.
        """
        if self.conditional and labels is None:
            # log of the mean of p(x | label) over the labels
            return torch.logsumexp(self.log_prob_by_label(x), 1) - torch.log(torch.tensor(float(self.classes)))
        return self.log_prob_map(x, labels).sum((1, 2))

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        """log p(x | label) for every label, (B, classes) nats; for conditional models."""
        labels = torch.arange(self.classes, device=x.device)
        return torch.stack([self.log_prob(x, label.expand(len(x))) for label in labels], 1)

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean bits per dimension, to minimise."""
        bits = bits_per_dim(self.log_prob(x, labels), x[0].numel()).mean()
        return bits, {"bits_per_dim": bits.detach()}

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
        rows: int = 0,
    ) -> Tensor:
        """n images, uint8 (n, C, H, W), for about the arithmetic of one forward pass; see sampling.sample_pixels."""
        return sample_pixels(self, n, labels, generator, given, rows)

    def encode(self, x: Tensor) -> Tensor:
        """Features for other tasks: the last layer's, averaged over a 4 x 4 grid of the image, (B, 16 F)."""
        return F.adaptive_avg_pool2d(self.features(x), 4).flatten(1)

    def log_prob_and_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and `encode` of the same images in one pass; for models without labels."""
        features = self.features(x)
        code = F.adaptive_avg_pool2d(features, 4).flatten(1)
        return self.head.log_prob(features, x).sum((1, 2, 3)), code
