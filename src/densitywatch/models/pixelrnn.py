"""PixelRNN (van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks"), both of its recurrences.

An LSTM runs over the lines of an image, all pixels of a line at once; its input-to-state part is one matrix product
over all pixels beforehand. In the Row LSTM a line is a row, and a state sees the three states above it:

    r r r       In the Diagonal BiLSTM a line is a diagonal:     0 1 2    one pass from the left, as numbered, and one
    x x x       a state sees its left and its upper neighbour,   1 2 3    from the right, whose states move down a row,
    0 1 2       one diagonal before it.                          2 3 4    so that no pixel sees what comes after it.

What differs from the paper:
* masked convolutions are cropped to what their mask leaves, and the first one has a channel of ones next to the image,
  which tells the border from the middle grey; a learned map of positions is added to the first features;
* the pass from the right sees its own pixel, which it may, since its states move down a row: otherwise most of the next
  row would not see the last pixel of a row;
* only the pixels of a diagonal that lie in the image are computed, half of the skewed map;
* the colours are in sequence in the head alone (pixel_head.PixelHead), which keeps the masks in one place; the head is
  the paper's 256-way softmax or, as a setting, a logistic mixture, which learns faster;
* label conditioning as a setting (from the gated PixelCNN).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.autoregressive import PixelDensity, require_labels
from densitywatch.models.common.lstm_scan import lstm_scan
from densitywatch.models.common.pixel_head import PixelHead
from densitywatch.models.common.pixel_values import scale_images
from densitywatch.models.common.positions import position_map, positions
from densitywatch.models.common.sampling import bias_of, taps


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind pixelrnn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recurrence: Literal["row_lstm", "diagonal_bilstm"] = "diagonal_bilstm"
    channels: int = Field(default=24, ge=2, le=4096)
    """Of a state; the features between the layers have twice as many."""
    layers: int = Field(default=2, ge=1, le=128)
    head: Literal["softmax", "logistic_mixture"] = "softmax"
    components: int = Field(default=5, ge=1, le=256)
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"
    conditional: bool = False
    """Condition every layer on the image's label."""


def by_tap(*layers: nn.Module, taps: int) -> Tensor:
    """The weights of the state-to-state layers, one layer a direction, as lstm_scan takes them: (D, taps, K, 4 K)."""
    weights = [layer.get_parameter("weight") for layer in layers]
    return torch.stack([weight.view(len(weight), taps, -1).permute(1, 2, 0) for weight in weights])


class RowLSTM(nn.Module):
    """Features (H, W, B, F) to features; a state sees its row so far and the triangle above it."""

    offsets = (-1, 0, 1)

    def __init__(self, channels: int, colours: int, classes: int) -> None:
        super().__init__()
        self.input_to_state = nn.Linear(2 * 2 * channels, 4 * channels)  # of the left pixel and of this one
        self.state_to_state = nn.Linear(3 * channels, 4 * channels, bias=False)
        self.out = nn.Linear(channels, 2 * channels)
        self.label = nn.Embedding(classes, 4 * channels) if classes else None

    def forward(self, x: Tensor, image: Tensor, labels: Tensor | None) -> Tensor:
        # the input-to-state convolution of 1 x 3, cropped to what its mask leaves: the pixel to the left and its own
        to_the_left = F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0))
        maps = self.input_to_state(torch.cat([to_the_left, x], 3))
        if self.label is not None and labels is not None:
            maps = maps + self.label(labels)
        # row by row; each state sees three states of the row above
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
        # the pass from the right is one from the left over the image with its columns reversed
        maps = torch.stack([self.left(x), self.right(torch.cat([x, image], 3).flip(1))])
        if self.label is not None and labels is not None:
            maps = maps + self.label(labels)
        left, right = lstm_scan(maps, by_tap(*self.state_to_state, taps=2), self.offsets, diagonal=True)
        # columns back in order and a row down: a pixel sees the row above from the right, never its own row
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
        with_ones = F.pad(image, (0, 0, 0, 0, 0, 1), value=1.0)  # a channel of ones: outside of the image it is 0
        # both are padded on all sides and cropped: row i sees rows i - 3 .. i - 1, column j columns j - 3 .. j - 1
        first = self.above(with_ones)[:, :, : self.size] + self.left(with_ones)[..., : self.size]
        first = first + position_map(self.position)
        features, image = first.permute(2, 3, 0, 1).contiguous(), image.permute(2, 3, 0, 1)  # (H, W, B, F or C)
        for layer in self.layers:
            features = layer(features, image, labels)
        return F.elu(features).permute(2, 3, 0, 1)

    def steps(self, n: int, labels: Tensor | None = None) -> PixelRNNSteps:
        """The features one pixel at a time, with everything kept that later pixels need."""
        return PixelRNNSteps(self, n, labels)


# ------------------------------------------------------------------------------------------------------------------
# The same network one pixel at a time, for sampling, completing and coding (common/sampling.py).
#
# What comes from the row above is computed for a whole row, then the LSTMs' states column by column. Memory: for each
# layer about three rows of activations of every image.
# ------------------------------------------------------------------------------------------------------------------


class PixelRNNSteps:
    """sampling.Steps of a PixelRNN for n images."""

    def __init__(self, model: PixelRNN, n: int, labels: Tensor | None) -> None:
        self.size, channels = model.size, model.channels
        self.position = position_map(model.position).detach()[0].permute(1, 2, 0).unsqueeze(2)  # (H, W, 1, F)
        width = self.position.shape[-1]
        new_zeros = self.position.new_zeros

        # the three rows above as (W, B, C + 1) with a border of zeros; the last channel is the channel of ones
        self.above = [new_zeros(self.size + 6, n, channels + 1) for _ in range(3)]
        self.from_above, bias = taps(model.above.weight).t(), bias_of(model.above) + bias_of(model.left)

        # this row: three zeros, then the columns; what the channel of ones adds is the same in every row
        self.row = new_zeros(n, self.size + 3, channels)
        self.last_row = new_zeros(self.size, n, channels)
        self.row_views = [self.row[:, j : j + 3].flatten(1) for j in range(self.size)]
        self.row_places = [self.row[:, j + 3].unbind(1) for j in range(self.size)]
        weight = model.left.weight.detach()
        self.from_left = taps(weight[:, :channels])
        ones = F.pad(new_zeros(1, 1, 1, self.size) + 1.0, (3, 0))
        from_ones = F.conv2d(ones, weight[:, channels:], bias)
        self.ones_row = from_ones[0, :, 0, : self.size].t().unsqueeze(1).contiguous()  # (W, 1, F)
        self.first = new_zeros(self.size, n, width)
        self.first_views = list(self.first.unbind(0))

        steps = RowSteps if model.settings.recurrence == "row_lstm" else DiagonalSteps
        self.layers = [steps(layer, self.size, n, labels) for layer in model.layers]
        last = list(new_zeros(self.size, n, width).unbind(0))
        self.outputs = [layer.inputs for layer in self.layers[1:]] + [last]

    def start_row(self, i: int) -> None:
        self.last_row.copy_(self.row[:, 3:].transpose(0, 1))
        if i:
            three_above = self.above.pop(0)
            three_above[3:-3, :, :-1] = self.last_row
            three_above[3:-3, :, -1] = 1.0
            self.above.append(three_above)
        self.row.zero_()
        windows = torch.cat([above[c : c + self.size] for above in self.above for c in range(7)], 2)
        torch.add(F.linear(windows, self.from_above) + self.position[i], self.ones_row, out=self.first)
        for layer in self.layers:
            layer.start_row(i, self.last_row)

    def features(self, j: int) -> Tensor:
        torch.addmm(self.first_views[j], self.row_views[j], self.from_left, out=self.layers[0].inputs[j])
        for layer, outputs in zip(self.layers, self.outputs, strict=True):
            layer.step(j, outputs[j])
        return F.elu(self.outputs[-1][j])

    def put(self, j: int, channel: int, level: Tensor) -> None:
        self.row_places[j][channel].copy_(level)


class Cell:
    """The gates of an LSTM for one pixel of n images; the last gate's weights are doubled (see lstm_scan)."""

    def __init__(self, like: Tensor, n: int, k: int) -> None:
        self.gates, self.squashed = like.new_zeros(n, 4 * k), like.new_zeros(n, k)
        self.i, self.f, self.o, self.g = self.gates.chunk(4, 1)

    def step(self, cell: Tensor, state: Tensor) -> None:
        """From `gates`, filled and before their sigmoid: `cell` in place, the new state into `state`, (B, K) both."""
        # c = f c + i g with g = 2 sigmoid(2 a_g) - 1
        self.gates.sigmoid_()
        cell.mul_(self.f).addcmul_(self.i, self.g, value=2.0).sub_(self.i)
        torch.tanh(cell, out=self.squashed)
        torch.mul(self.o, self.squashed, out=state)


def doubled(weight: Tensor) -> Tensor:
    """Weights (..., 4 K) of the gates, those of the last gate doubled."""
    factor = torch.ones_like(weight)
    factor[..., 3 * weight.shape[-1] // 4 :] = 2.0
    return weight * factor


class RowSteps:
    """RowLSTM, one pixel at a time; its input at column j is written to `inputs[j]`, (B, F)."""

    def __init__(self, layer: Any, size: int, n: int, labels: Tensor | None) -> None:
        self.size = size
        self.state_to_state = doubled(layer.state_to_state.weight.detach().t())  # (3 K, 4 K)
        self.input_to_state = doubled(layer.input_to_state.weight.detach().t())  # (2 F, 4 K)
        bias = layer.input_to_state.bias.detach()
        if layer.label is not None and labels is not None:
            bias = bias + layer.label(labels).detach()
        self.bias = doubled(bias)
        self.out, self.out_bias = layer.out.weight.detach().t().contiguous(), layer.out.bias.detach()
        k, f = self.out.shape
        new_zeros = self.out.new_zeros
        columns = new_zeros(n, size + 1, f)  # a zero column, then the row
        self.inputs = [columns[:, j + 1] for j in range(size)]
        self.pairs = [columns[:, j : j + 2].flatten(1) for j in range(size)]
        self.states = new_zeros(size + 2, n, k)  # the row above's, overwritten column by column by this row's
        self.state_views = list(self.states[1:-1].unbind(0))
        self.cells = new_zeros(size, n, k)
        self.cell_views = list(self.cells.unbind(0))
        self.from_above = new_zeros(size, n, 4 * k)
        self.from_above_views = list(self.from_above.unbind(0))
        self.cell = Cell(self.out, n, k)

    def start_row(self, i: int, last_row: Tensor) -> None:
        windows = torch.cat([self.states[c : c + self.size] for c in range(3)], 2)
        torch.add(windows @ self.state_to_state, self.bias, out=self.from_above)

    def step(self, j: int, out: Tensor) -> None:
        torch.addmm(self.from_above_views[j], self.pairs[j], self.input_to_state, out=self.cell.gates)
        self.cell.step(self.cell_views[j], self.state_views[j])
        torch.addmm(self.inputs[j], self.state_views[j], self.out, out=out)
        out.add_(self.out_bias)


class DiagonalSteps:
    """DiagonalBiLSTM, one pixel at a time: from the left with each pixel, from the right once a row is known."""

    def __init__(self, layer: Any, size: int, n: int, labels: Tensor | None) -> None:
        self.size = size
        for_left, for_right = (doubled(one.weight.detach().t()) for one in layer.state_to_state)
        (self.left_from_above, left), (self.right_from_above, self.right) = for_left.chunk(2), for_right.chunk(2)
        bias_left, bias_right = layer.left.bias.detach(), layer.right.bias.detach()
        if layer.label is not None and labels is not None:
            for_label = layer.label(labels).detach()
            bias_left, bias_right = bias_left + for_label, bias_right + for_label
        self.bias_left, self.bias_right = doubled(bias_left), doubled(bias_right)
        self.left = torch.cat([doubled(layer.left.weight.detach().t()), left])
        self.input_to_right = doubled(layer.right.weight.detach().t())
        self.out, self.out_bias = layer.out.weight.detach().t().contiguous(), layer.out.bias.detach()
        k, f = self.out.shape
        new_zeros = self.out.new_zeros
        # a column's input and the state of the pixel to its left in one matrix (B, F + K)
        self.columns = new_zeros(n, size + 1, f + k)
        self.both = [self.columns[:, j] for j in range(size)]
        self.inputs = [self.columns[:, j, :f] for j in range(size)]
        self.passed_on = [self.columns[:, j + 1, f:] for j in range(size)]
        self.row_of_inputs = self.columns[:, :size, :f].transpose(0, 1)
        self.states = new_zeros(size, n, k)
        self.state_views = list(self.states.unbind(0))
        self.right_states = new_zeros(size + 1, n, k)  # the last stays zero: there is nothing to the right
        self.right_views = list(self.right_states.unbind(0))
        self.from_above, self.right_in = new_zeros(size, n, 4 * k), new_zeros(size, n, 4 * k)
        self.from_above_views, self.right_in_views = list(self.from_above.unbind(0)), list(self.right_in.unbind(0))
        self.from_right = new_zeros(size, n, f)
        self.from_right_views = list(self.from_right.unbind(0))
        self.memory = new_zeros(n, k)
        self.cell = Cell(self.out, n, k)

    def start_row(self, i: int, last_row: Tensor) -> None:
        """last_row: the image's row above, (W, B, C); now that it is known, the pass from the right goes over it."""
        if i:
            inputs = torch.cat([self.row_of_inputs, last_row], 2) @ self.input_to_right + self.bias_right
            torch.add(inputs, self.right_states[:-1] @ self.right_from_above, out=self.right_in)
            self.memory.zero_()
            for j in reversed(range(self.size)):
                torch.addmm(self.right_in_views[j], self.right_views[j + 1], self.right, out=self.cell.gates)
                self.cell.step(self.memory, self.right_views[j])
        torch.add(self.right_states[:-1] @ self.out, self.out_bias, out=self.from_right)
        torch.add(self.states @ self.left_from_above, self.bias_left, out=self.from_above)
        self.memory.zero_()

    def step(self, j: int, out: Tensor) -> None:
        torch.addmm(self.from_above_views[j], self.both[j], self.left, out=self.cell.gates)
        self.cell.step(self.memory, self.state_views[j])
        self.passed_on[j].copy_(self.state_views[j])
        torch.addmm(self.from_right_views[j], self.state_views[j], self.out, out=out)
        out.add_(self.inputs[j])


MODEL = PixelRNN
