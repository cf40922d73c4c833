"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders").

Two stacks and no blind spot: the vertical one sees all rows above, the horizontal one the row so far.
What differs from the paper:
* kernels are cropped to the part that a mask would leave: (2, 3) and (1, 2) instead of masked (3, 3) and (1, 3), a
  third less arithmetic for the same function; dilations widen the view at no cost;
* a learned map of positions is added to the first features, since images are centred and of one size (beyond 32 pixels
  a side the sum of a map of rows and one of columns);
* a label enters after the masked layers, through gated 1x1 layers, not in every layer: what the pixels before say is
  computed once for all labels, and Bayes' rule costs little more than one density (docs/decisions/0012);
* next to the label enters what the rows above show as a whole, seen at half the resolution (RowContext);
* a conditional model's loss also asks that Bayes' rule give an image its own label (Raina et al. 2003);
* the head takes the colours in sequence in one place (pixel_head.PixelHead): 256-way softmax or logistic mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.autoregressive import PixelDensity, require_labels
from densitywatch.models.common.map_sizes import FULL_MAP
from densitywatch.models.common.pixel_head import PixelHead
from densitywatch.models.common.pixel_values import bits_per_dim, scale_images
from densitywatch.models.common.positions import position_map, positions
from densitywatch.models.common.sampling import bias_of, taps


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind pixelcnn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(default=32, ge=2, le=4096)
    dilations: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 2, 1, 4, 1), min_length=1, max_length=128
    )
    """One gated layer for each."""
    head: Literal["softmax", "logistic_mixture"] = "logistic_mixture"
    components: int = Field(default=5, ge=1, le=256)
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"
    conditional: bool = False
    """A density for every label; in a dataset without labels one density, as if it were false."""
    label_layers: int = Field(default=2, ge=1, le=128)
    """Gated layers that know the label; only for conditional models."""
    context_channels: int = Field(default=64, ge=1, le=4096)
    """Width of the network that sees the rows above at half the resolution; only for conditional models."""
    label_weight: float = Field(default=0.03, ge=0)
    """Bits/dim that the loss adds for a nat of -log p(label | a quarter of x); 0 is the likelihood alone."""


def gate(x: Tensor) -> Tensor:
    """The gated activation unit: tanh(a) * sigmoid(b), a and b the two halves of the channels."""
    a, b = x.chunk(2, 1)
    # tanh(a) = 2 sigmoid(2a) - 1: torch's tanh takes six times as long as its sigmoid on a CPU
    return (2.0 * torch.sigmoid(2.0 * a) - 1.0) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks; vertical row i sees rows up to i of its input, horizontal column j columns up to j."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        d = dilation
        self.vertical = nn.Conv2d(channels, 2 * channels, (2, 3), dilation=d)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, 2), dilation=d)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        d = self.vertical.dilation[0]
        # a masked 3 x 3 kernel is non-zero in two rows alone, and the masked 1 x 3 one in two columns: the kernels have
        # those alone, and zeros are padded above and to the left. So row i of the output sees input rows i - d and i
        # in columns j - d, j and j + d, and nothing is cropped away
        vertical = self.vertical(F.pad(v, (d, d, d, 0)))
        # column j of the output sees columns j - d and j of this row, and by the vertical stack the rows above
        horizontal = self.horizontal(F.pad(h, (d, 0, 0, 0))) + self.vertical_to_horizontal(vertical)
        return v + gate(vertical), h + self.out(gate(horizontal))


class RowContext(nn.Module):
    """What the rows above show as a whole: a plain residual network on pairs of rows, at half the resolution.

    A label shows in shapes more than in pixels. Here only rows are in sequence: a pair of rows sees the pairs above it,
    in all columns, and nothing of itself.
    """

    DILATIONS = (1, 2, 4, 4)

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        half = (size + 1) // 2
        self.first = nn.Conv2d(channels + 1, width, (2, 3))
        self.position = positions(width, half)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, (2, 3), dilation=d) for d in self.DILATIONS)
        self.mixers = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in self.DILATIONS)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), on the scale [-1, 1] -> (B, width, H / 2, W / 2), rounded up.

        Also of the first H rows of an image alone: what a row gets does not depend on the rows after it.
        """
        h = image.shape[2]
        pairs = F.pad(F.avg_pool2d(image, 2, ceil_mode=True), (0, 0, 0, 0, 0, 1), value=1.0)  # a channel of ones
        pairs = F.pad(pairs, (1, 1, 2, -1)).contiguous(memory_format=torch.channels_last)  # strictly above
        x: Tensor = self.first(pairs) + position_map(self.position)[:, :, : (h + 1) // 2]
        for layer, mixer, d in zip(self.layers, self.mixers, self.DILATIONS, strict=True):
            x = x + mixer(F.gelu(layer(F.pad(F.gelu(x), (d, d, d, 0)))))
        return x


def doubled(x: Tensor, size: int) -> Tensor:
    """Every row and every column twice, cropped to size x size: from pairs back to pixels."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :size, :size]


class LabelLayer(nn.Module):
    """A gated 1x1 layer that adds to a pixel's features what the label and the rows above say."""

    def __init__(self, channels: int, context: int, classes: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels + context, 2 * channels, 1)
        self.label = nn.Embedding(classes, 2 * channels)
        nn.init.normal_(self.label.weight, std=0.3)  # at first the labels' densities differ little
        self.out = nn.Conv2d(channels, channels, 1)

    def from_context(self, context: Tensor) -> Tensor:
        """The context's share of the first convolution, (B, 2 F, H, W): the same for every label, computed once."""
        return F.conv2d(context, self.inner.weight[:, self.out.in_channels :], self.inner.bias)

    def forward(self, h: Tensor, from_context: Tensor, labels: Tensor) -> Tensor:
        """h: (B, K, F, H, W), features under K labels or, K = 1, before any; labels: (B, 1), or (1, K) for all images.

        Returns them under K labels. What is the same for all labels is computed once and never laid out K times.
        """
        inner = each(lambda rows: F.conv2d(rows, self.inner.weight[:, : self.out.in_channels]), h)
        inner = inner + from_context.unsqueeze(1) + self.label(labels)[..., None, None]
        return h + each(lambda rows: self.out(gate(rows)), inner)


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of all images of all labels as one batch: (B, K, ...) to (B, K, ...)."""
    return torch.unflatten(function(x.flatten(0, 1)), 0, x.shape[:2])


class PixelCNN(PixelDensity):
    """p(x) = prod_i p(x_i | x_1 .. x_{i-1}) over pixels in raster order, exact; x is uint8 (B, C, H, W)."""

    OUTER_LAYERS = ("first_vertical", "first_horizontal", "context.first", "head.colours", "head.out")
    """What Muon leaves to AdamW: the layers that read pixels or write distribution parameters."""

    ROWS_AT_ONCE = 250
    """Rows of a chunk when every label is computed at once: 25 images under 10 labels. Fewer of large images."""

    IMAGES_AT_ONCE = 25
    """Images of such a chunk; a model that knows its number of labels has its own."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        width = settings.channels
        # the extra channel is 1 inside the image and 0 in the padding, which the image's own zero, middle grey, is not
        self.first_vertical = nn.Conv2d(channels + 1, width, (2, 3))
        self.first_horizontal = nn.Conv2d(channels + 1, width, (1, 2))
        self.position = positions(width, size)
        if classes:
            self.IMAGES_AT_ONCE = max(1, self.ROWS_AT_ONCE // classes)
        if size > FULL_MAP:
            self.IMAGES_AT_ONCE = max(1, self.IMAGES_AT_ONCE * FULL_MAP**2 // size**2)
        self.layers = nn.ModuleList(GatedLayer(width, d) for d in settings.dilations)
        self.context = RowContext(channels, settings.context_channels, size) if self.conditional else None
        self.label_layers = nn.ModuleList(
            LabelLayer(width, settings.context_channels, classes)
            for _ in range(settings.label_layers if self.conditional else 0)
        )
        self.head = PixelHead(
            width,
            channels,
            kind=settings.head,
            components=settings.components,
            colour_order=settings.colour_order,
        )

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What every pixel knows of the pixels before it: (B, F, H, W)."""
        return self.with_label(self.before_label(x), None if labels is None else labels.unsqueeze(1))

    def before_label(self, x: Tensor) -> Tensor:
        """What all labels share: the features, (B, F, H, W), then each label layer's share of the context."""
        scaled = scale_images(x, self.first_vertical.weight.dtype)
        image = F.pad(scaled, (0, 0, 0, 0, 0, 1), value=1.0).contiguous(memory_format=torch.channels_last)
        # strictly above, strictly left: input rows i - 2 and i - 1, columns j - 2 and j - 1
        v = self.first_vertical(F.pad(image, (1, 1, 2, -1))) + position_map(self.position)
        h: Tensor = v + self.first_horizontal(F.pad(image, (2, -1, 0, 0)))
        for layer in self.layers:
            v, h = layer(v, h)
        if self.context is None:
            return h
        context, layers = self.context(scaled), cast("list[LabelLayer]", list(self.label_layers))
        shared = torch.cat([h, *(doubled(layer.from_context(context), self.size) for layer in layers)], 1)
        return shared.contiguous(memory_format=torch.channels_last)

    def with_label(self, shared: Tensor, labels: Tensor | None) -> Tensor:
        """The features, from what all labels share of them.

        labels: one an image, (B, 1) -> (B, F, H, W); or K for all images, (1, K) -> (B K, F, H, W).
        """
        width = self.settings.channels
        h, *shares = torch.split(shared, [width] + [2 * width] * len(self.label_layers), 1)
        h = h.unsqueeze(1)
        for layer, share in zip(self.label_layers, shares, strict=True):
            h = layer(h, share, require_labels(labels, self.classes))
        return F.elu(h.flatten(0, 1))

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        """log p(x | label) for every label, (B, classes) nats; for conditional models.

        A few images at a time: under all labels they take as much memory as a batch.
        """
        return torch.cat([self.every_label(part) for part in torch.split(x, self.IMAGES_AT_ONCE)])

    def every_label(self, x: Tensor) -> Tensor:
        """The same for all images at once, as a batch of B times classes rows."""
        return self.pixels_by_label(self.before_label(x), x)

    def pixels_by_label(self, h: Tensor, x: Tensor) -> Tensor:
        """Nats of the pixels x, (B, C, h, w), under every label, (B, classes), from what all labels share of them."""
        labels = torch.arange(self.classes, device=x.device).unsqueeze(0)
        nats = self.head.log_prob(self.with_label(h, labels), x.repeat_interleave(self.classes, 0))
        return nats.sum((1, 2, 3)).view(len(x), self.classes)

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean bits per dimension, to minimise; with labels also a label's nats by Bayes' rule, weighted.

        The label's nats are those of every other row and column, beginning at random: a quarter of the arithmetic. A
        label that shows in every such quarter shows in the whole image.
        """
        if not self.conditional or not self.settings.label_weight:
            return super().loss(x, labels)
        labels = require_labels(labels, self.classes)
        h = self.before_label(x)
        given = self.head.log_prob(self.with_label(h, labels.unsqueeze(1)), x).sum((1, 2, 3))
        bits = bits_per_dim(given, x[0].numel()).mean()
        every_other = 2 * torch.arange(self.size // 2, device=x.device)
        rows, columns = every_other + torch.randint(2, (2, 1), device=x.device)
        some_h, some_x = (part.index_select(2, rows).index_select(3, columns) for part in (h, x))
        by_label = self.pixels_by_label(some_h, some_x)
        label_nats = F.cross_entropy(by_label, labels)
        right = (by_label.argmax(1) == labels).float().mean()
        logs = {
            "bits_per_dim": bits.detach(),
            "label_nats_of_a_quarter": label_nats.detach(),
            "label_accuracy_of_a_quarter": right,
        }
        return bits + self.settings.label_weight * label_nats, logs

    def steps(self, n: int, labels: Tensor | None = None) -> PixelCNNSteps:
        """The features one pixel at a time, with everything kept that later pixels need."""
        return PixelCNNSteps(self, n, labels)


# ------------------------------------------------------------------------------------------------------------------
# The same network one pixel at a time, for sampling, completing and coding (common/sampling.py).
#
# The vertical stack is computed for a whole row, then the horizontal stack column by column. Memory: for each layer
# about (2 + dilation) rows of activations of every image; for conditional models also the image itself, and at half the
# resolution the activations of one layer of the context.
# ------------------------------------------------------------------------------------------------------------------


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

        # this row: two zeros, then the columns; what the channel of ones adds is the same in every row
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
    """GatedLayer, one pixel at a time: keeps its input's rows for the vertical stack and columns for the horizontal."""

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

        # columns in an order in which j - d comes right before j, so that both taps are one (B, 2 F) matrix: d runs of
        # columns, each with a column of zeros before it
        run = -(-size // d) + 1
        self.columns = new_zeros(n, d * run, width)
        places = [(j % d) * run + j // d + 1 for j in range(size)]
        self.pairs = [self.columns[:, place - 1 : place + 1].flatten(1) for place in places]
        self.views = [self.columns[:, place] for place in places]

    def start_row(self, v: Tensor) -> Tensor:
        """The vertical stack's row (W, B, F): of this layer's input to its output. What the horizontal stack takes from
        it is kept for `step`."""
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
    """LabelLayer, one pixel at a time, for images of the given labels, (B,)."""

    def __init__(self, layer: LabelLayer, labels: Tensor | None) -> None:
        assert labels is not None
        width = layer.out.out_channels
        inner = layer.inner.weight.detach().flatten(1)
        self.inner, self.from_context = inner[:, :width].t(), inner[:, width:]
        self.bias = bias_of(layer.inner) + layer.label(labels).detach()
        self.out, self.out_bias = layer.out.weight.detach().flatten(1).t(), bias_of(layer.out)
        self.biases: list[Tensor] = []

    def start_row(self, context: Tensor) -> None:
        """`context`: of this row's pair in each column, (W, B, context channels)."""
        self.biases = list((self.bias + F.linear(context, self.from_context)).unbind(0))

    def step(self, j: int, h: Tensor) -> Tensor:
        """Column j's features, (B, F) to (B, F)."""
        a, b = torch.addmm(self.biases[j], h, self.inner).chunk(2, 1)
        return h + torch.addmm(self.out_bias, torch.tanh(a) * torch.sigmoid(b), self.out)


MODEL = PixelCNN
