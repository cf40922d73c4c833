"""PixelRNN (van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks"), both of its recurrences.

An LSTM runs over the lines of an image, all pixels of a line at once; its input-to-state part is one matrix product
over all pixels beforehand. In the Row LSTM a line is a row, and a state sees the three states above it:

    r r r       In the Diagonal BiLSTM a line is a diagonal:     0 1 2    one pass from the left, as numbered, and one
    x x x       a state sees its left and its upper neighbour,   1 2 3    from the right, whose states move down a row,
    0 1 2       one diagonal before it.                          2 3 4    so that no pixel sees what comes after it.

What differs from the paper:
* masked convolutions are cropped to what their mask leaves, and the first one has a channel of ones beside the image,
  which tells the border from the middle grey; a learned map of positions is added to the first features;
* since its states move down a row, the pass from the right may see its own pixel: without that, the last pixel of a row
  would be hidden from most of the next row;
* only the pixels of a diagonal that lie in the image are computed, half of the skewed map;
* the colours meet in sequence in the head alone (layers.PixelHead), which keeps the masks in one place; it is the
  paper's 256-way softmax, or a logistic mixture as a setting, which learns faster;
* label conditioning as a setting (from the gated PixelCNN).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.autoregressive import PixelDensity
from densitywatch.models.layers import PixelHead, position_map, positions, require_labels, scale_images
from densitywatch.models.lstm_scan import lstm_scan
from densitywatch.models.pixelrnn_sampling import PixelRNNSteps


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind pixelrnn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recurrence: Literal["row_lstm", "diagonal_bilstm"] = "diagonal_bilstm"
    channels: int = Field(default=24, ge=2)
    """Of a state; the features between the layers have twice as many."""
    layers: int = Field(default=2, ge=1)
    head: Literal["softmax", "logistic_mixture"] = "softmax"
    components: int = Field(default=5, ge=1)
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"
    conditional: bool = False
    """Condition every layer on the image's label."""


def by_tap(*layers: nn.Module, taps: int) -> Tensor:
    """State-to-state layers, one a direction, as lstm_scan takes them: (D, taps, K, 4 K)."""
    weights = [layer.get_parameter("weight") for layer in layers]
    return torch.stack([weight.view(len(weight), taps, -1).permute(1, 2, 0) for weight in weights])


class RowLSTM(nn.Module):
    """Features (H, W, B, F) to features; a state sees its row so far and the triangle above it."""

    offsets = (-1, 0, 1)

    def __init__(self, channels: int, colours: int, classes: int) -> None:
        super().__init__()
        self.input_to_state = nn.Linear(2 * 2 * channels, 4 * channels)  # of the pixel to the left and of its own
        self.state_to_state = nn.Linear(3 * channels, 4 * channels, bias=False)
        self.out = nn.Linear(channels, 2 * channels)
        self.label = nn.Embedding(classes, 4 * channels) if classes else None

    def forward(self, x: Tensor, image: Tensor, labels: Tensor | None) -> Tensor:
        to_the_left = F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0))
        maps = self.input_to_state(torch.cat([to_the_left, x], 3))
        if self.label is not None and labels is not None:
            maps = maps + self.label(labels)
        states = lstm_scan(maps.unsqueeze(0), by_tap(self.state_to_state, taps=3), self.offsets, diagonal=False)
        return x + F.linear(states[0], self.out.weight, self.out.bias)


class DiagonalBiLSTM(nn.Module):
    """Features (H, W, B, F) to features; a state sees all that comes before it in the image (H, W, B, C)."""

    offsets = (-1, 0)

    def __init__(self, channels: int, colours: int, classes: int) -> None:
        super().__init__()
        self.left = nn.Linear(2 * channels, 4 * channels)
        self.right = nn.Linear(2 * channels + colours, 4 * channels)
        self.state_to_state = nn.ModuleList(nn.Linear(2 * channels, 4 * channels, bias=False) for _ in range(2))
        self.out = nn.Linear(channels, 2 * channels)
        self.label = nn.Embedding(classes, 4 * channels) if classes else None

    def forward(self, x: Tensor, image: Tensor, labels: Tensor | None) -> Tensor:
        maps = torch.stack([self.left(x), self.right(torch.cat([x, image], 3).flip(1))])
        if self.label is not None and labels is not None:
            maps = maps + self.label(labels)
        left, right = lstm_scan(maps, by_tap(*self.state_to_state, taps=2), self.offsets, diagonal=True)
        states = left + F.pad(right.flip(1)[:-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return x + F.linear(states, self.out.weight, self.out.bias)


class PixelRNN(PixelDensity):
    """p(x) = prod_i p(x_i | x_1 .. x_{i-1}) over pixels in raster order, exact; x is uint8 (B, C, H, W)."""

    OUTER_LAYERS = ("above", "left", "head.colours", "head.out")
    """What Muon leaves to AdamW: the layers that read pixels or write distribution parameters."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        width, labels = 2 * settings.channels, classes if settings.conditional else 0
        # what the first 7 x 7 convolution's mask leaves: three rows above, three pixels to the left
        self.above = nn.Conv2d(channels + 1, width, (3, 7), padding=(3, 3))
        self.left = nn.Conv2d(channels + 1, width, (1, 3), padding=(0, 3))
        self.position = positions(width, size)
        layer = RowLSTM if settings.recurrence == "row_lstm" else DiagonalBiLSTM
        self.layers = nn.ModuleList(layer(settings.channels, channels, labels) for _ in range(settings.layers))
        self.head = PixelHead(
            width,
            channels,
            kind=settings.head,
            components=settings.components,
            colour_order=settings.colour_order,
        )

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What every pixel knows of the pixels before it: (B, F, H, W)."""
        if self.conditional:
            labels = require_labels(labels, self.classes)
        image = scale_images(x, self.above.weight.dtype)
        with_ones = F.pad(image, (0, 0, 0, 0, 0, 1), value=1.0)
        first = self.above(with_ones)[:, :, : self.size] + self.left(with_ones)[..., : self.size]
        first = first + position_map(self.position)
        features, image = first.permute(2, 3, 0, 1).contiguous(), image.permute(2, 3, 0, 1)  # (H, W, B, F or C)
        for layer in self.layers:
            features = layer(features, image, labels)
        return F.elu(features).permute(2, 3, 0, 1)

    def steps(self, n: int, labels: Tensor | None = None) -> PixelRNNSteps:
        """The features one pixel at a time, with everything kept that later pixels need."""
        return PixelRNNSteps(self, n, labels)


MODEL = PixelRNN
