"""A lossless pyramid of densities: exact likelihoods of large images, sampled in dozens of steps.

An image is halved until it has at most `coarsest` pixels a side. Each halving is two splits, of columns and of rows: a
pair of neighbours becomes its rounded mean m and its difference d (lossless_split.py). Nothing is lost, so
p(image) = p(coarsest means) * prod_splits p(differences | means), every factor a distribution over integers. The ideas
are from Reed et al. 2017, "Parallel Multiscale Autoregressive Density Estimation", Menick and Kalchbrenner 2019,
"Generating High Fidelity Images with Subscale Pixel Networks", Yu et al. 2020, "Wavelet Flow", and Cao et al. 2020,
"Lossless Image Compression through Super-Resolution". What is particular:
* the coarsest level is the PixelCNN as it is;
* a split's differences come in four groups, the places of a 2 x 2 grid. A group sees all means and the groups before
  it, on all sides. So a split is sampled in four steps, whatever its size;
* given m, d lies in -r .. r with r from m (`reach`): the logistic mixture has no mass elsewhere;
* an odd last row or column is its own mean: its difference is 0, known, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.errors import ModelError
from densitywatch.models import pixelcnn
from densitywatch.models.common.pixel_values import bits_per_dim
from densitywatch.models.common.sampling import check_request, walk
from densitywatch.models.lossless_split import GROUPS, LARGEST, Split, grouped, plan, spread, take_apart, ungrouped
from densitywatch.models.pixelcnn import PixelCNN

UNIT = 16.0
"""Grey levels that are 1 in the networks."""
PERIODS = (8, 16)
"""Pixels: a position is told within these as well, which are the squares that JPEG codes."""
PLACES = 8192
"""Differences whose distributions are tabulated at a time."""

Choose = Callable[[Tensor, Tensor], Tensor]
"""From the cumulated probabilities (N, V - 1) of N values 0 .. V - 1 and what is known of them, (N,), -1 where nothing
is, to the values, int64 (N,)."""


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind pixelcnn_pyramid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coarsest: int = Field(default=32, ge=1, le=64)
    """Most pixels a side of the coarsest level, which the PixelCNN takes."""
    coarse_channels: int = Field(default=32, ge=2, le=4096)
    """Of the PixelCNN."""
    coarse_dilations: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 2, 1, 4, 1), min_length=1, max_length=128
    )
    """Of the PixelCNN: one gated layer for each."""
    context_channels: int = Field(default=48, ge=1, le=4096)
    """Width of the network that sees the means of a split."""
    context_layers: int = Field(default=2, ge=0, le=64)
    """Its gated layers."""
    channels: int = Field(default=24, ge=1, le=4096)
    """Width of the network of a group of differences."""
    layers: int = Field(default=1, ge=0, le=64)
    """Its gated layers."""
    components: int = Field(default=5, ge=1, le=256)
    """Logistics in the mixture of a difference."""
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rgb"
    positions: bool = True
    """Whether the networks are told where in the image they are."""
    shared: bool = False
    """One pair of networks for all levels; else each level has its own."""
    crop: int | None = Field(default=64, ge=2)
    """Training sees of each split a window of at most this many means a side; null: all of it."""


# ------------------------------------------------------------------------------------------------------------------
# The distribution of a difference.
# ------------------------------------------------------------------------------------------------------------------


def difference_log_prob(d: Tensor, reach: Tensor, parameters: Tensor) -> Tensor:
    """Log-probability of integers d in -reach .. reach under a mixture of discretised logistics; nats, shape (...).

    d, reach: integers (...). parameters: (3, K, ...): mixture logits, means, log-scales, in grey levels. The first and
    the last value take the tails, so the probabilities of all 2 reach + 1 values sum to one. As
    pixel_head.logistic_mixture_log_prob, whose range is the same for all.
    """
    logits, means, log_scales = parameters.unbind(0)  # (K, ...) each
    inverse_scale = torch.exp(-log_scales)
    centred = d.to(parameters.dtype).unsqueeze(0) - means
    upper, lower = (centred + 0.5) * inverse_scale, (centred - 0.5) * inverse_scale
    first, last = (d == -reach).unsqueeze(0), (d == reach).unsqueeze(0)
    # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) * sigmoid(-lower) * (1 - exp(lower - upper))
    log_cdf = torch.where(last, 0.0, F.logsigmoid(upper))
    log_survival = torch.where(first, 0.0, F.logsigmoid(-lower))
    log_width = torch.where(first | last, 0.0, torch.log(-torch.expm1(-inverse_scale)))
    return torch.logsumexp(F.log_softmax(logits, 0) + log_cdf + log_survival + log_width, 0)


def cumulated_differences(reach: Tensor, parameters: Tensor) -> Tensor:
    """P(d <= v) for v = -255 .. 254, (N, 510), of N differences; reach: (N,), parameters: (3, K, N)."""
    logits, means, log_scales = parameters.unsqueeze(-1).unbind(0)  # (K, N, 1) each
    values = torch.arange(-LARGEST, LARGEST, device=parameters.device)
    found = means.new_zeros(len(reach), 2 * LARGEST)
    for weight, mean, inverse_scale in zip(torch.softmax(logits, 0), means, torch.exp(-log_scales), strict=True):
        found += weight * torch.sigmoid((values + 0.5 - mean) * inverse_scale)
    r = reach.unsqueeze(1)
    return found.masked_fill_(values < -r, 0.0).masked_fill_(values >= r, 1.0)


# ------------------------------------------------------------------------------------------------------------------
# The network of a split. Everything lies on the grid of 2 x 2 squares of means, (h / 2, w / 2).
# ------------------------------------------------------------------------------------------------------------------


def of_group(layer: nn.Conv2d, x: Tensor, group: int | None) -> Tensor:
    """The convolution, or with `group` only the outputs of this one of the four groups.

    x: all inputs, or, where the layer keeps the groups apart, those of the group.
    """
    if group is None:
        return cast("Tensor", layer(x))
    per_group = layer.out_channels // len(GROUPS)
    rows = slice(group * per_group, (group + 1) * per_group)
    bias = None if layer.bias is None else layer.bias[rows]
    return F.conv2d(x, layer.weight[rows], bias, padding=layer.padding, groups=max(1, layer.groups // len(GROUPS)))


class GatedResidual(nn.Module):
    """x + W (tanh(a) * sigmoid(b)), a and b from a 3 x 3 convolution; `parts` networks that do not see each other."""

    def __init__(self, width: int, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        self.inner = nn.Conv2d(parts * width, parts * 2 * width, 3, padding=1, groups=parts)
        self.mix = nn.Conv2d(parts * width, parts * width, 1, groups=parts)

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        inner = of_group(self.inner, x, group)
        a, b = torch.unflatten(inner, 1, (self.parts if group is None else 1, 2, -1)).unbind(2)
        # tanh(a) = 2 sigmoid(2a) - 1: torch's tanh takes six times as long as its sigmoid on a CPU
        gated = (2.0 * torch.sigmoid(2.0 * a) - 1.0) * torch.sigmoid(b)
        return x + of_group(self.mix, gated.flatten(1, 2), group)


class DifferenceHead(nn.Module):
    """The parameters of every difference's distribution: colours in sequence, as in pixel_head.PixelHead.

    A colour's means also move in proportion to the differences of the colours before it, at a rate that the features
    say.
    """

    mask: Tensor

    def __init__(self, features: int, channels: int, components: int) -> None:
        super().__init__()
        groups = len(GROUPS)
        self.channels, self.components = channels, components
        self.hidden = nn.Conv2d(groups * features, groups * channels * features, 1, groups=groups)
        self.colours = nn.Conv2d(groups * channels, groups * channels * features, 1, groups=groups, bias=False)
        outputs = 3 * components + channels
        self.out = nn.Conv2d(groups * channels * features, groups * channels * outputs, 1, groups=groups * channels)
        earlier = torch.tril(torch.ones(channels, channels), diagonal=-1)  # row k: the colours before colour k
        self.register_buffer("mask", earlier, persistent=False)
        with torch.no_grad():
            assert self.out.bias is not None
            bias = self.out.get_parameter("bias").view(groups * channels, outputs)
            bias[:, components : 2 * components] = torch.linspace(-1.0, 1.0, components + 2)[1:-1]
            bias[:, 2 * components : 3 * components] = 1.0

    def forward(self, features: Tensor, d: Tensor, group: int | None = None) -> Tensor:
        """(3, K, B, g, C, h, w): mixture logits, means and log-scales of the differences, colours in sequence.

        features: (B, g F, h, w); d: (B, g, C, h, w), integers, colours in sequence; g = 4, or 1 with `group`.
        """
        # bfloat16 has 8 binary digits, too few for a mean among 511 values: the head computes in float32
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.hidden.weight.dtype)
            rows = self.mask.repeat_interleave(features.shape[1] // d.shape[1], 0).repeat(d.shape[1], 1)
            weight = self.colours.weight
            if group is not None:
                weight = weight.chunk(len(GROUPS))[group]
            values = d.flatten(1, 2).to(features.dtype)
            from_colours = F.conv2d(squashed(values), weight * rows[:, :, None, None], groups=d.shape[1])
            found = of_group(self.out, F.elu(of_group(self.hidden, features, group) + from_colours), group)
            found = torch.unflatten(found, 1, (*d.shape[1:3], -1))  # (B, g, C, 3 K + C, h, w)
            found = found.to(torch.promote_types(found.dtype, torch.float32))
            mixture, rates = torch.split(found, [3 * self.components, self.channels], 3)
            logits, means, log_scales = torch.unflatten(mixture, 3, (3, -1)).movedim((3, 4), (0, 1)).unbind(0)
            rates = rates * self.mask[:, :, None, None]
            moved = (rates * torch.unflatten(values, 1, d.shape[1:3]).unsqueeze(2)).sum(3)  # (B, g, C, h, w)
        # narrower than a tenth of a grey level is no use
        return torch.stack([logits, UNIT * means + moved, log_scales.clamp(-2.3, 10.0)])


def squashed(d: Tensor) -> Tensor:
    """Differences as inputs: linear up to about half a unit, then like a logarithm."""
    return torch.asinh(d * (2.0 / UNIT))


class DifferenceNetwork(nn.Module):
    """p(differences | means) of a split: prod_g p(group g | all means, groups before g), colours in sequence."""

    mask: Tensor

    def __init__(self, settings: Settings, channels: int) -> None:
        super().__init__()
        groups, width, context = len(GROUPS), settings.channels, settings.context_channels
        self.channels, self.positions = channels, settings.positions
        self.sequence = [0] if channels == 1 else ["rgb".index(colour) for colour in settings.colour_order]
        inputs = 5 * channels + 1 + (2 + 4 * len(PERIODS) if settings.positions else 0)
        self.first = nn.Conv2d(inputs, context, 3, padding=1)
        self.context = nn.ModuleList(GatedResidual(context) for _ in range(settings.context_layers))
        self.to_groups = nn.Conv2d(context, groups * width, 1)
        self.known = nn.Conv2d(groups * channels, groups * width, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(GatedResidual(width, groups) for _ in range(settings.layers))
        self.head = DifferenceHead(width, channels, settings.components)
        before = torch.tril(torch.ones(groups, groups), diagonal=-1)  # row g: the groups before group g
        mask = before.repeat_interleave(width, 0).repeat_interleave(channels, 1)
        self.register_buffer("mask", mask[:, :, None, None], persistent=False)

    def see(self, means: Tensor, where: Tensor) -> Tensor:
        """What all groups know: (B, 4 F, h / 2, w / 2) from all means (B, C, h, w); where: `positions`."""
        x = means.to(self.first.weight.dtype)
        x = x[..., torch.arange(x.shape[3] + x.shape[3] % 2, device=x.device).clamp(max=x.shape[3] - 1)]
        x = x[:, :, torch.arange(x.shape[2] + x.shape[2] % 2, device=x.device).clamp(max=x.shape[2] - 1)]
        # brightness of the neighbourhood, and each mean against it: a step of one grey level is small in the first
        about = F.avg_pool2d(F.avg_pool2d(x, 2), 3, 1, 1, count_include_pad=False)
        relief = (F.pixel_unshuffle(x, 2) - about.repeat_interleave(4, 1)) / UNIT
        ones = torch.ones_like(about[:, :1])  # zero in the padding, which tells the border
        told = [where.to(x).expand(len(x), -1, -1, -1)] if self.positions else []
        seen: Tensor = self.first(torch.cat([relief, about / 127.5 - 1.0, ones, *told], 1))
        for layer in self.context:
            seen = layer(seen)
        return cast("Tensor", self.to_groups(seen))

    def features(self, seen: Tensor, d: Tensor, group: int | None = None) -> Tensor:
        """Features of all groups (B, 4 F, h, w), or of one, (B, F, h, w), from `see` and differences (B, 4, C, h, w).

        Those of a group depend on the differences of the groups before it alone.
        """
        per_group = seen.shape[1] // len(GROUPS)
        rows = slice(None) if group is None else slice(group * per_group, (group + 1) * per_group)
        weight = self.known.weight[rows] * self.mask[rows]
        x = seen[:, rows] + F.conv2d(squashed(d.flatten(1, 2).to(weight.dtype)), weight, padding=1)
        for layer in self.layers:
            x = layer(x, group)
        return x

    def log_prob(self, means: Tensor, d: Tensor, reach: Tensor, where: Tensor) -> Tensor:
        """Nats of every difference, colours summed, (B, h, w); means, d, reach: integers (B, C, h, w)."""
        values, reaches = grouped(d[:, self.sequence]), grouped(reach[:, self.sequence])
        parameters = self.head(self.features(self.see(means, where), values), values)
        nats = difference_log_prob(values, reaches, parameters).sum(2, keepdim=True)
        return ungrouped(nats, *d.shape[2:]).squeeze(1)

    def walk(self, means: Tensor, reach: Tensor, where: Tensor, known: Tensor, choose: Choose) -> Tensor:
        """Differences (B, C, h, w) that `choose` picks, a group and a colour at a time, every feature computed once.

        known: as `Choose` has it, of differences + 255.
        """
        seen = self.see(means, where)
        # an odd end that `grouped` fills with zeros has reach 0: its difference is known to be 0
        reaches = grouped(reach[:, self.sequence])
        knowns = grouped(known[:, self.sequence] - LARGEST) + LARGEST
        d = torch.zeros_like(reaches)
        for g in range(len(GROUPS)):
            features = self.features(seen, d, g)
            for k in range(self.channels):
                parameters = self.head(features, d[:, g : g + 1], g)[:, :, :, 0, k]  # (3, K, B, h, w)
                chosen = [
                    choose(cumulated_differences(r, p), some)
                    for r, p, some in zip(
                        torch.split(reaches[:, g, k].flatten(), PLACES),
                        torch.split(parameters.flatten(2), PLACES, 2),
                        torch.split(knowns[:, g, k].flatten(), PLACES),
                        strict=True,
                    )
                ]
                d[:, g, k] = torch.cat(chosen).view(d[:, g, k].shape).to(d.dtype) - LARGEST
        colours = torch.tensor(self.sequence, device=d.device).argsort()
        return ungrouped(d, *means.shape[2:])[:, colours]


# ------------------------------------------------------------------------------------------------------------------
# The model.
# ------------------------------------------------------------------------------------------------------------------


class PixelCNNPyramid(nn.Module):
    """p(x) = p(coarsest means) * prod_splits p(differences | means), exact; x is uint8 (B, C, H, W).

    H and W can be of any size, also other than the one it was made for: an image is halved until it fits the coarsest
    level, and levels beyond those that were trained take the networks of the last one.
    """

    conditional = False

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.coarsest = size
        while self.coarsest > settings.coarsest:
            self.coarsest = (self.coarsest + 1) // 2
        coarse = pixelcnn.Settings(
            channels=settings.coarse_channels, dilations=settings.coarse_dilations, colour_order=settings.colour_order
        )
        self.coarse = PixelCNN(coarse, channels=channels, size=self.coarsest, classes=0)
        splits = plan(size, size, self.coarsest)
        # two networks a level, of columns and of rows
        self.details = nn.ModuleList(
            DifferenceNetwork(settings, channels) for _ in (splits[:2] if settings.shared else splits)
        )
        self.OUTER_LAYERS = (
            *(f"coarse.{name}" for name in PixelCNN.OUTER_LAYERS),
            *(
                f"details.{number}.{name}"
                for number in range(len(self.details))
                for name in ("first", "known", "head.colours", "head.out")
            ),
        )
        """What Muon leaves to AdamW: the layers that read pixels or write distribution parameters."""

    def splits(self, height: int, width: int) -> list[Split]:
        """The splits of an image of this size, the finest first. Raises ModelError for one that is too large."""
        found = plan(height, width, self.coarsest)
        if found and not len(self.details):
            raise ModelError(
                f"this model was made for {self.size} x {self.size} pixels and has no networks for larger images than"
                f" {self.coarsest}, not {height} x {width}; train one with a larger size"
            )
        return found

    def network(self, split: Split) -> DifferenceNetwork:
        last = len(self.details) // 2 - 1
        return cast("DifferenceNetwork", self.details[2 * min(split.level, last) + int(split.dim == 2)])

    def factors(self, x: Tensor) -> tuple[Tensor, list[tuple[Split, Tensor]]]:
        """Nats of the coarsest means, (B, h, w), and of the differences of each split, the finest first."""
        splits = self.splits(*x.shape[2:])
        image, parts = take_apart(x, splits)
        found = []
        for split, (means, d) in zip(splits, parts, strict=True):
            where = positions(split, x.shape[2:], means.shape[2:]).to(x.device)
            found.append((split, self.network(split).log_prob(means, d, split.reach(means), where)))
        return self.coarse_log_prob(image), found

    def coarse_log_prob(self, image: Tensor) -> Tensor:
        """Nats of the coarsest means, (B, h, w).

        The PixelCNN knows one size. A smaller image lies at its top left, and the canvas repeats the image's last
        column and last row. What is repeated comes after what it repeats, so it costs nothing and tells nothing early.
        """
        h, w = image.shape[2:]
        places = torch.arange(self.coarsest, device=image.device)
        canvas = image[:, :, places.clamp(max=h - 1)][..., places.clamp(max=w - 1)]
        return self.coarse.log_prob_map(canvas.to(torch.uint8))[:, :h, :w]

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Exact log-likelihood of uint8 images, (B,) nats."""
        coarse, details = self.factors(x)
        return coarse.sum((1, 2)) + sum(nats.sum((1, 2)) for _, nats in details)

    def log_prob_map(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Nats at the image's own resolution, (B, H, W): those of a mean or a difference in equal parts on its pixels.

        Their sum is `log_prob`.
        """
        nats, details = self.factors(x)
        for split, more in reversed(details):
            nats = spread(nats + more, split)
        return nats

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean bits per dimension, to minimise. In training an estimate: of each split a random window, scaled up."""
        crop = self.settings.crop
        if not self.training or crop is None:
            bits = bits_per_dim(self.log_prob(x), x[0].numel()).mean()
            return bits, {"bits_per_dim": bits.detach()}
        splits = self.splits(*x.shape[2:])
        image, parts = take_apart(x, splits)
        nats = self.coarse_log_prob(image).sum((1, 2))
        for split, (means, d) in zip(splits, parts, strict=True):
            reach, (h, w) = split.reach(means), means.shape[2:]
            top, left = (2 * int(torch.randint(max(0, side - crop) // 2 + 1, ())) for side in (h, w))
            means, d, reach = (part[:, :, top : top + crop, left : left + crop] for part in (means, d, reach))
            where = positions(split, x.shape[2:], means.shape[2:], top, left).to(x.device)
            some = self.network(split).log_prob(means, d, reach, where)
            nats = nats + some.sum((1, 2)) * (h * w / some[0].numel())
        bits = bits_per_dim(nats, x[0].numel()).mean()
        return bits, {"bits_per_dim": bits.detach()}

    def encode(self, x: Tensor) -> Tensor:
        """Features for other tasks, (B, D): the PixelCNN's of the coarsest means, and the mean of each split's."""
        splits = self.splits(*x.shape[2:])
        image, parts = take_apart(x, splits)
        places = torch.arange(self.coarsest, device=x.device)
        canvas = image[:, :, places.clamp(max=image.shape[2] - 1)][..., places.clamp(max=image.shape[3] - 1)]
        found = [self.coarse.encode(canvas.to(torch.uint8))]
        for split, (means, d) in zip(splits, parts, strict=True):
            network = self.network(split)
            where = positions(split, x.shape[2:], means.shape[2:]).to(x.device)
            features = network.features(network.see(means, where), grouped(d[:, network.sequence]))
            found.append(F.elu(features).mean((2, 3)))
        return torch.cat(found, 1)

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
        rows: int = 0,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """n images, uint8 (n, C, H, W), by inversion; `size`: height and width, by default the model's own.

        given: uint8 (n, C, H, W), whose first `rows` rows are kept; rows must be a multiple of the pixels that a
        coarsest mean covers. Coarse comes before fine, so what is drawn below the kept rows follows from their means at
        first, and from their details only as each level comes: it is the model's own way on from what is kept, not a
        draw of p(rest | rows).

        Raises ModelError when labels or given pixels do not fit the model.
        """
        height, width = size or (self.size, self.size)
        if size is None:
            check_request(cast("Any", self), n, labels, given, rows)
        device = self.coarse.head.out.weight.device
        drawn_on = device if generator is None else generator.device

        def choose(cumulated: Tensor, known: Tensor) -> Tensor:
            # every value has its number, kept ones included, so that what is kept moves no other number
            number = torch.rand(len(cumulated), 1, generator=generator, device=drawn_on).to(cumulated)
            drawn = torch.searchsorted(cumulated, number, right=True).squeeze(1)
            return torch.where(known < 0, drawn, known)

        return self.walk(n, choose, height, width, None if given is None else given.to(device), rows)

    def walk(
        self, n: int, choose: Choose, height: int, width: int, given: Tensor | None = None, rows: int = 0
    ) -> Tensor:
        """n images, uint8 (n, C, H, W), whose means and differences `choose` picks, the coarsest first.

        `choose` gets the cumulated probabilities of several of them at once: of one colour of one place of the coarsest
        level in all images, or of many places of one group of differences. What it knows is from `given`.

        Raises ModelError when the kept rows cut through a coarsest mean.
        """
        splits = self.splits(height, width)
        covered = 1 << len(splits) // 2  # rows of the image that a coarsest mean covers
        if rows % covered and rows != height:
            raise ModelError(f"cannot keep {rows} rows of {height}: keep a multiple of {covered}, or all")
        device = self.coarse.head.out.weight.device
        kept = torch.zeros(n, self.channels, height, width, dtype=torch.uint8) if given is None else given
        known_means, parts = take_apart(kept.to(device), splits)
        with torch.inference_mode():
            image = self._walk_coarse(known_means, choose, -(-rows // covered))
            for split, (_, d) in zip(reversed(splits), reversed(parts), strict=True):
                known = d.long() + LARGEST
                known[:, :, -(-rows // split.scale[0]) :] = -1
                where = positions(split, (height, width), image.shape[2:]).to(device)
                reach = split.reach(image)
                image = split.join(image, self.network(split).walk(image, reach, where, known, choose))
        return image.to(torch.uint8).clone()

    def _walk_coarse(self, known: Tensor, choose: Choose, rows: int) -> Tensor:
        """The coarsest means, the first `rows` rows of them known; on the canvas of `coarse_log_prob`."""
        n, _, height, width = known.shape
        image = torch.zeros_like(known)
        unknown = torch.full((n,), -1, device=known.device)

        def places() -> Iterator[tuple[int, int, int]]:
            for i in range(self.coarsest):
                for j in range(self.coarsest):
                    for colour in self.coarse.head.sequence:
                        yield i, j, colour

        place = places()

        def pick(cumulated: Tensor) -> Tensor:
            i, j, colour = next(place)
            if i >= height or j >= width:
                return image[:, colour, min(i, height - 1), min(j, width - 1)].long()
            value = choose(cumulated, known[:, colour, i, j].long() if i < rows else unknown)
            image[:, colour, i, j] = value
            return value

        walk(self.coarse, n, None, pick)
        return image


def positions(split: Split, image: tuple[int, ...], window: tuple[int, ...], top: int = 0, left: int = 0) -> Tensor:
    """Where in the image each square of 2 x 2 means lies: (2 + 4 periods, h / 2, w / 2), rounded up.

    image: height and width in pixels. window: height and width of the means, whose first one is at (top, left). A
    square's row and column in -1 .. 1, and sine and cosine of each within the PERIODS.
    """
    rows, columns = (
        scale * (start + 2.0 * torch.arange((length + 1) // 2))
        for scale, start, length in zip(split.scale, (top, left), window, strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    turns = [(2.0 * torch.pi / period) * place for period in PERIODS for place in (y, x)]
    waves = [wave(turn) for turn in turns for wave in (torch.sin, torch.cos)]
    return torch.stack([2.0 * y / image[0] - 1.0, 2.0 * x / image[1] - 1.0, *waves])


MODEL = PixelCNNPyramid
