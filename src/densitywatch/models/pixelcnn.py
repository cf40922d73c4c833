"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders").

Two stacks and no blind spot: the vertical one sees all rows above, the horizontal one the row so far.
What differs from the paper:
* kernels are cropped to the part that a mask would leave: (2, 3) and (1, 2) instead of masked (3, 3) and (1, 3), a
  third less arithmetic for the same function; dilations widen the view at no cost;
* a learned map of positions is added to the first features, since images are centred and of one size;
* the head takes the colours in sequence in one place (layers.PixelHead): 256-way softmax or logistic mixture.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.autoregressive import PixelDensity
from densitywatch.models.layers import PixelHead, require_labels, scale_images
from densitywatch.models.pixelcnn_sampling import PixelCNNSteps


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind pixelcnn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(default=32, ge=2)
    dilations: tuple[int, ...] = Field(default=(1, 2, 1, 4, 1), min_length=1)
    """One gated layer for each."""
    head: Literal["softmax", "logistic_mixture"] = "logistic_mixture"
    components: int = Field(default=5, ge=1)
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"
    conditional: bool = False
    """Condition every layer on the image's label."""


def gate(x: Tensor) -> Tensor:
    """tanh of the one half times sigmoid of the other."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks; vertical row i sees rows up to i of its input, horizontal column j columns up to j."""

    def __init__(self, channels: int, dilation: int, classes: int) -> None:
        super().__init__()
        d = dilation
        self.vertical = nn.Conv2d(channels, 2 * channels, (2, 3), dilation=d)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, 2), dilation=d)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.label = nn.Embedding(classes, 4 * channels) if classes else None

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        d = self.vertical.dilation[0]
        # zeros above and to the left alone: row i of the output sees input rows i - d and i; nothing is cropped away
        vertical = self.vertical(F.pad(v, (d, d, d, 0)))
        horizontal = self.horizontal(F.pad(h, (d, 0, 0, 0))) + self.vertical_to_horizontal(vertical)
        if self.label is not None and labels is not None:
            for_v, for_h = self.label(labels)[:, :, None, None].chunk(2, 1)
            vertical, horizontal = vertical + for_v, horizontal + for_h
        return v + gate(vertical), h + self.out(gate(horizontal))


class PixelCNN(PixelDensity):
    """p(x) = prod_i p(x_i | x_1 .. x_{i-1}) over pixels in raster order, exact; x is uint8 (B, C, H, W)."""

    OUTER_LAYERS = ("first_vertical", "first_horizontal", "head.colours", "head.out")
    """What Muon leaves to AdamW: the layers that read pixels or write distribution parameters."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        if settings.conditional and not classes:
            raise ValueError("conditional: the dataset has no labels")
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        width, labels = settings.channels, classes if settings.conditional else 0
        # the channel of ones beside the image tells zero padding from a pixel of the middle grey
        self.first_vertical = nn.Conv2d(channels + 1, width, (2, 3))
        self.first_horizontal = nn.Conv2d(channels + 1, width, (1, 2))
        self.position = nn.Parameter(torch.zeros(1, width, size, size))
        self.layers = nn.ModuleList(GatedLayer(width, d, labels) for d in settings.dilations)
        self.head = PixelHead(
            width,
            channels,
            kind=settings.head,
            components=settings.components,
            colour_order=settings.colour_order,
        )

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What every pixel knows of the pixels before it: (B, F, H, W)."""
        if self.settings.conditional:
            labels = require_labels(labels, self.classes)
        image = F.pad(scale_images(x, self.position.dtype), (0, 0, 0, 0, 0, 1), value=1.0)
        image = image.contiguous(memory_format=torch.channels_last)
        # strictly above, strictly left: input rows i - 2 and i - 1, columns j - 2 and j - 1
        v = self.first_vertical(F.pad(image, (1, 1, 2, -1))) + self.position
        h = v + self.first_horizontal(F.pad(image, (2, -1, 0, 0)))
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return F.elu(h)

    def steps(self, n: int, labels: Tensor | None = None) -> PixelCNNSteps:
        """The features one pixel at a time, with everything kept that later pixels need."""
        return PixelCNNSteps(self, n, labels)


MODEL = PixelCNN
