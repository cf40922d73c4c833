"""Images one pixel after another, with every activation kept: for sampling, completing and coding.

A naive sampler runs the whole network once a pixel and throws away all but one pixel of its output. `walk` asks a model
for `Steps` instead: an object that keeps every layer's activations and computes one pixel's features from what is new
(Ramachandran et al. 2017, "Fast Generation for Convolutional Autoregressive Models"). An image then takes about the
arithmetic of one forward pass, and the overhead of calls is most of the time. So buffers and views are made once,
matrices are laid out for `addmm(out=)`, and what depends only on the rows above is computed a row at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.errors import ModelError
from densitywatch.models.common.pixel_head import PixelHead
from densitywatch.models.common.pixel_values import scale_images

Choose = Callable[[Tensor], Tensor]
"""From the cumulated probabilities (B, 255) of a sub-pixel's values 0..254 to the values it takes, int64 (B,)."""


class Steps(Protocol):
    """A network's features, one pixel at a time in raster order."""

    def start_row(self, i: int) -> None:
        """All rows above i are known."""

    def features(self, j: int) -> Tensor:
        """Features (B, F) of column j of this row; the pixels before it are known. Valid until the next call."""

    def put(self, j: int, channel: int, level: Tensor) -> None:
        """A sub-pixel of column j becomes known: its value on the [-1, 1] scale, (B,)."""


class PixelModel(Protocol):
    """What `walk` needs of a model of one pixel after another."""

    head: PixelHead
    channels: int
    size: int
    classes: int

    @property
    def conditional(self) -> bool:
        """Whether there is a density for every label."""

    def steps(self, n: int, labels: Tensor | None = None) -> Steps:
        """The features one pixel at a time, with everything kept that later pixels need."""


def walk(model: PixelModel, n: int, labels: Tensor | None, choose: Choose) -> Tensor:
    """n images, uint8 (n, C, H, W), whose sub-pixels `choose` picks, in raster order and by colour sequence."""
    weight = model.head.out.weight
    with torch.inference_mode():
        steps, head = model.steps(n, labels), HeadSteps(model.head, n)
        levels = scale_images(torch.arange(256, device=weight.device), weight.dtype)
        chosen = []
        for i in range(model.size):
            steps.start_row(i)
            for j in range(model.size):
                head.start(steps.features(j))
                for k, colour in enumerate(model.head.sequence):
                    values = choose(head.cumulated(k))
                    level = levels.index_select(0, values)
                    if k + 1 < model.channels:
                        head.put(k, level)
                    steps.put(j, colour, level)
                    chosen.append(values)
        in_sequence = torch.stack(chosen).view(model.size, model.size, model.channels, n).to(torch.uint8)
        colours = torch.tensor(model.head.sequence, device=weight.device).argsort()
        images = in_sequence.index_select(2, colours).permute(3, 2, 0, 1)
    return images.clone(memory_format=torch.contiguous_format)  # outside of inference mode: an ordinary tensor


def sample_pixels(
    model: PixelModel,
    n: int,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    given: Tensor | None = None,
    rows: int = 0,
) -> Tensor:
    """n images, uint8 (n, C, H, W), drawn by inversion with one uniform number a sub-pixel.

    labels: int64 (n,), only for conditional models. given: uint8 (n, C, H, W), whose first `rows` rows are kept. The
    uniform numbers of all sub-pixels, kept ones included, are drawn at once: a sub-pixel has the same number whatever
    `rows` is.

    Raises ModelError when labels or given pixels do not fit the model.
    """
    check_request(model, n, labels, given, rows)
    size, device = model.size, model.head.out.weight.device
    drawn_on = device if generator is None else generator.device  # a generator on the CPU: the same on every device
    uniform = torch.rand(size * size * model.channels, n, generator=generator, device=drawn_on).to(device)
    numbers = iter(uniform.unsqueeze(2))
    kept: list[Tensor] = []
    if given is not None:
        in_sequence = given[:, model.head.sequence, :rows].permute(2, 3, 1, 0).reshape(-1, n)
        kept = list(in_sequence.to(device, torch.long).flip(0))

    def choose(cumulated: Tensor) -> Tensor:
        # inversion: the first value whose cumulated probability exceeds the number
        number = next(numbers)
        return kept.pop() if kept else torch.searchsorted(cumulated, number, right=True).squeeze(1)

    return walk(model, n, None if labels is None else labels.to(device), choose)


def check_request(model: PixelModel, n: int, labels: Tensor | None, given: Tensor | None, rows: int) -> None:
    """Raises ModelError when what is asked for does not fit the model."""
    if n < 1:
        raise ModelError(f"asked for {n} images: ask for at least one")
    if model.conditional:
        if labels is None:
            raise ModelError(f"this model is conditional on {model.classes} labels: say which label to draw")
        if labels.shape != (n,) or labels.is_floating_point():
            raise ModelError(
                f"labels must be {n} whole numbers, one an image, not {tuple(labels.shape)} {labels.dtype}"
            )
        if labels.min() < 0 or labels.max() >= model.classes:
            raise ModelError(f"labels must lie in 0..{model.classes - 1}, not {int(labels.min())}..{int(labels.max())}")
    elif labels is not None:
        raise ModelError("labels were given to a model without labels: leave them out or use a conditional model")
    if given is None:
        if rows:
            raise ModelError(f"asked to keep {rows} rows of no image: pass the given image too")
        return
    expected = (n, model.channels, model.size, model.size)
    if tuple(given.shape) != expected or given.dtype != torch.uint8:
        raise ModelError(
            f"given pixels must be uint8 {expected}, this model's size, not {given.dtype} {tuple(given.shape)}"
        )
    if not 0 <= rows <= model.size:
        raise ModelError(f"cannot keep {rows} rows of images with {model.size}: choose 0..{model.size}")


class HeadSteps:
    """pixel_head.PixelHead for one pixel at a time: the cumulated distribution of each colour in sequence."""

    def __init__(self, head: PixelHead, n: int) -> None:
        channels, mixture = head.channels, head.kind == "logistic_mixture"
        self.hidden_weight = head.hidden.weight.detach().flatten(1).t().contiguous()
        self.hidden_bias = bias_of(head.hidden)
        out = head.out.weight.detach().view(channels, head.outputs, -1).transpose(1, 2).clone()  # (C, F, outputs)
        self.out_bias = bias_of(head.out).view(channels, head.outputs).clone()
        if mixture:  # the inverse scale is used: the sign of the log-scale's weights is turned once
            out[..., -head.components :].neg_()
            self.out_bias[:, -head.components :].neg_()
        self.out_weight = out
        self.hidden = out.new_empty(n, self.hidden_bias.numel())
        self.blocks = self.hidden.chunk(channels, 1)
        self.parameters = out.new_empty(n, head.outputs)
        self.colours = out.new_zeros(n, channels)
        if channels > 1:
            masked = (head.colours.weight * head.mask).detach().view(channels, -1, channels)
            self.colour_weight = masked.transpose(1, 2).contiguous()
        self.mixture = mixture
        if mixture:
            self.edges = scale_images(torch.arange(255, device=out.device), out.dtype) + 1.0 / 255.0
            self.logits, self.means, self.log_inverse_scales = self.parameters.view(n, 3, -1, 1).unbind(1)  # (n, K, 1)
            self.below = out.new_empty(n, head.components, 255)
            self.weights, self.mixed = out.new_empty(n, head.components, 1), out.new_empty(n, 1, 255)
            self.weights_row, self.mixed_row = self.weights.mT, self.mixed.squeeze(1)

    def start(self, features: Tensor) -> None:
        """A new pixel with these features (B, F)."""
        torch.addmm(self.hidden_bias, features, self.hidden_weight, out=self.hidden)

    def put(self, k: int, level: Tensor) -> None:
        """Colour k of this pixel becomes known."""
        self.colours[:, k] = level

    def cumulated(self, k: int) -> Tensor:
        """Probabilities (B, 255) that colour k of the sequence is at most 0..254. Valid until the next call."""
        hidden = self.blocks[k]
        if k:
            hidden.addmm_(self.colours[:, :k], self.colour_weight[k, :k])
        torch.addmm(self.out_bias[k], F.elu_(hidden), self.out_weight[k], out=self.parameters)
        if not self.mixture:
            return self.parameters.softmax(1)[:, :255].cumsum(1)
        # P(colour <= v) = sum over components of weight * sigmoid((upper edge of v - mean) / scale)
        inverse_scales = self.log_inverse_scales.clamp_(max=7.0).exp_()
        torch.sub(self.edges, self.means, out=self.below)
        self.below.mul_(inverse_scales).sigmoid_()
        torch.softmax(self.logits, 1, out=self.weights)
        torch.bmm(self.weights_row, self.below, out=self.mixed)
        return self.mixed_row


def bias_of(layer: nn.Conv2d) -> Tensor:
    """A convolution's bias, outside of autograd."""
    if layer.bias is None:
        raise TypeError(f"{layer} has no bias")
    return layer.bias.detach()


def taps(weight: Tensor) -> Tensor:
    """A convolution's weights (O, I, rows, columns) as a matrix (rows * columns * I, O)."""
    return weight.detach().permute(2, 3, 1, 0).flatten(0, 2).contiguous()
