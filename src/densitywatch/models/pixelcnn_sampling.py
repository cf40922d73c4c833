"""PixelCNN one pixel at a time: a row of the vertical stack, then the horizontal stack column by column.

Memory: for each layer about (2 + dilation) rows of activations of every image; for conditional models also the image
itself, and at half the resolution the activations of one layer of the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.models.layers import position_map
from densitywatch.models.sampling import bias_of, taps

if TYPE_CHECKING:
    from densitywatch.models.pixelcnn import GatedLayer, LabelLayer, PixelCNN


class PixelCNNSteps:
    """sampling.Steps of a PixelCNN for n images."""

    def __init__(self, model: PixelCNN, n: int, labels: Tensor | None) -> None:
        self.size, channels = model.size, model.channels
        self.position = position_map(model.position).detach()[0].permute(1, 2, 0).unsqueeze(2)  # (H, W, 1, F)
        width = self.position.shape[-1]
        new_zeros = self.position.new_zeros

        # the image above as (W, B, C + 1) rows with a border of zeros; the last channel is the channel of ones
        self.above = [new_zeros(self.size + 2, n, channels + 1) for _ in range(2)]
        self.first_vertical = taps(model.first_vertical.weight)
        self.first_vertical_bias = bias_of(model.first_vertical)

        # this row: two zeros, then the columns; the ones' share of the first horizontal layer is the same in every row
        self.row = new_zeros(n, self.size + 2, channels)
        self.row_views = [self.row[:, j : j + 2].flatten(1) for j in range(self.size)]
        weight = model.first_horizontal.weight.detach()
        self.first_horizontal = taps(weight[:, :channels])
        ones = torch.ones(1, 1, 1, self.size, dtype=weight.dtype, device=weight.device)
        from_ones = F.conv2d(F.pad(ones, (2, 0)), weight[:, channels:], bias_of(model.first_horizontal))
        self.ones_row = from_ones[0, :, 0, : self.size].t().unsqueeze(1).contiguous()  # (W, 1, F)

        self.layers = [LayerSteps(cast("GatedLayer", layer), self.size, n, width) for layer in model.layers]
        last = list(new_zeros(self.size, n, width).unbind(0))
        self.outputs = [layer.views for layer in self.layers[1:]] + [last]
        self.row_places = [self.row[:, j + 2].unbind(1) for j in range(self.size)]
        self.label_layers = [LabelSteps(cast("LabelLayer", layer), labels) for layer in model.label_layers]
        self.context = model.context
        self.image = new_zeros(n, channels, self.size, self.size)  # the rows above, for the context
        self.first = new_zeros(self.size, n, width)
        self.first_views = list(self.first.unbind(0))

    def start_row(self, i: int) -> None:
        if i:
            self.image[:, :, i - 1] = self.row[:, 2:].transpose(1, 2)
            two_above, one_above = self.above
            two_above[1:-1, :, :-1] = self.row[:, 2:].transpose(0, 1)
            two_above[1:-1, :, -1] = 1.0
            self.above = [one_above, two_above]
        self.row.zero_()
        windows = [above[c : c + self.size] for above in self.above for c in range(3)]
        v = F.linear(torch.cat(windows, 2), self.first_vertical.t(), self.first_vertical_bias) + self.position[i]
        torch.add(v, self.ones_row, out=self.first)
        for layer in self.layers:
            v = layer.start_row(v)
        if self.context is not None and i % 2 == 0:  # a pair of rows has one context
            context = self.context(self.image[:, :, : i + 1])[:, :, -1].permute(2, 0, 1)
            context = context.repeat_interleave(2, 0)[: self.size]
            for label_layer in self.label_layers:
                label_layer.start_row(context)

    def features(self, j: int) -> Tensor:
        torch.addmm(self.first_views[j], self.row_views[j], self.first_horizontal, out=self.layers[0].views[j])
        for layer, outputs in zip(self.layers, self.outputs, strict=True):
            layer.step(j, outputs[j])
        h = self.outputs[-1][j]
        for label_layer in self.label_layers:
            h = label_layer.step(j, h)
        return F.elu_(h)  # nothing else reads the last layer's output

    def put(self, j: int, channel: int, level: Tensor) -> None:
        self.row_places[j][channel].copy_(level)


class LayerSteps:
    """pixelcnn.GatedLayer: its input's rows for the vertical stack and its input's columns for the horizontal one."""

    def __init__(self, layer: GatedLayer, size: int, n: int, width: int) -> None:
        self.size, d = size, layer.vertical.dilation[0]
        self.dilation = d
        new_zeros = layer.out.weight.detach().new_zeros
        self.rows = [new_zeros(size + 2 * d, n, width) for _ in range(d + 1)]  # rows i - d .. i, zeros on both ends
        self.vertical, self.vertical_bias = taps(layer.vertical.weight).t(), bias_of(layer.vertical)
        # one sigmoid serves both halves of the gate: tanh(a) = 2 sigmoid(2 a) - 1, so a's weights are doubled, the gate
        # is 2 s_a s_b - s_b, and the 1x1 after it takes the columns [s_a s_b, s_b, 1] with weights [2 w, -w, bias]
        double = torch.cat([new_zeros(width) + 2.0, new_zeros(width) + 1.0])
        self.horizontal = taps(layer.horizontal.weight) * double
        self.from_vertical = layer.vertical_to_horizontal.weight.detach().flatten(1) * double.unsqueeze(1)
        bias = bias_of(layer.horizontal) + bias_of(layer.vertical_to_horizontal)
        self.bias = bias * double
        self.from_above = new_zeros(size, n, 2 * width)
        self.from_above_views = list(self.from_above.unbind(0))
        out = layer.out.weight.detach().flatten(1).t()
        self.out = torch.cat([2.0 * out, -out, bias_of(layer.out).unsqueeze(0)])
        self.gates = new_zeros(n, 2 * width + 1)
        self.gates[:, -1] = 1.0
        self.both, self.a, self.b = self.gates[:, :-1], self.gates[:, :width], self.gates[:, width:-1]

        # columns in an order that puts j - d beside j, so that the two taps are one (B, 2 F) matrix; a zero column
        # stands before each of the d runs
        run = -(-size // d) + 1
        self.columns = new_zeros(n, d * run, width)
        places = [(j % d) * run + j // d + 1 for j in range(size)]
        self.pairs = [self.columns[:, place - 1 : place + 1].flatten(1) for place in places]
        self.views = [self.columns[:, place] for place in places]

    def start_row(self, v: Tensor) -> Tensor:
        """The vertical stack's row (W, B, F) of this layer's input -> of its output; the horizontal part is kept."""
        d, size = self.dilation, self.size
        self.rows.append(self.rows.pop(0))
        self.rows[-1][d : d + size] = v
        windows = [row[c * d : c * d + size] for row in (self.rows[0], self.rows[-1]) for c in range(3)]
        vertical = F.linear(torch.cat(windows, 2), self.vertical, self.vertical_bias)
        torch.add(F.linear(vertical, self.from_vertical), self.bias, out=self.from_above)
        a, b = vertical.chunk(2, 2)
        return v + torch.tanh(a) * torch.sigmoid(b)

    def step(self, j: int, out: Tensor) -> None:
        """The horizontal stack's column j, from `views[j]` to `out`, (B, F) both."""
        torch.addmm(self.from_above_views[j], self.pairs[j], self.horizontal, out=self.both)
        self.both.sigmoid_()
        self.a.mul_(self.b)
        torch.addmm(self.views[j], self.gates, self.out, out=out)


class LabelSteps:
    """pixelcnn.LabelLayer for images of the given labels, (B,)."""

    def __init__(self, layer: LabelLayer, labels: Tensor | None) -> None:
        assert labels is not None
        width = layer.out.out_channels
        inner = layer.inner.weight.detach().flatten(1)
        self.inner, self.from_context = inner[:, :width].t(), inner[:, width:]
        self.bias = bias_of(layer.inner) + layer.label(labels).detach()
        self.out, self.out_bias = layer.out.weight.detach().flatten(1).t(), bias_of(layer.out)
        self.biases: list[Tensor] = []

    def start_row(self, context: Tensor) -> None:
        """Takes the context of the row's pair in each column, (W, B, context channels)."""
        self.biases = list((self.bias + F.linear(context, self.from_context)).unbind(0))

    def step(self, j: int, h: Tensor) -> Tensor:
        """Column j's features, (B, F) to (B, F)."""
        a, b = torch.addmm(self.biases[j], h, self.inner).chunk(2, 1)
        return h + torch.addmm(self.out_bias, torch.tanh(a) * torch.sigmoid(b), self.out)
