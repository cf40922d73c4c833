"""The distribution of the differences of a lossless split, given the means: the networks of pixelcnn_pyramid."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.lossless_split import GROUPS, LARGEST, Split, grouped, ungrouped

UNIT = 16.0
"""Grey levels that are 1 in the networks."""
PERIODS = (8, 16)
"""Pixels: a position is told within these as well, which are the squares that JPEG codes."""
PLACES = 8192
"""Differences whose distributions are tabulated at a time."""
GUESSES = 4
"""Linear predictions of each difference."""

CUTS = ((-5.0, -0.5), (-1.6, 0.0), (1.6, 0.0), (5.0, 0.5))
"""Where a logistic's range is cut to sum over it: its scales, and grey levels, from its mean."""
SUMMED = 2048
"""Differences whose sums are in memory at a time: half a MB an array, for a core's own cache (L2)."""

Choose = Callable[[Tensor, Tensor], Tensor]
"""From the cumulated probabilities (N, V - 1) of N values 0 .. V - 1 and what is known of them, (N,), -1 where nothing
is, to the values, int64 (N,)."""


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


def difference_moments(reach: Tensor, parameters: Tensor) -> Tensor:
    """Mean and variance of -log p under N differences' own distributions, (2, N); reach: (N,), parameters: (3, K, N).

    The range is cut at CUTS of each logistic, and in front of its two ends, which take the tails. A part's share of p
    is exact. Within a part of several values log p is taken for a straight line; a part of one value needs no guess.
    With the sums over all values, a hundred times as many, it agrees to some hundredths of a nat.
    """
    parts = zip(torch.split(reach, SUMMED), torch.split(parameters, SUMMED, 2), strict=True)
    return torch.cat([_moments(some, of_them) for some, of_them in parts], 1)


def _moments(reach: Tensor, parameters: Tensor) -> Tensor:
    logits, means, log_scales = parameters.unbind(0)  # (K, N) each
    weights, scales = torch.softmax(logits, 0), log_scales.exp()
    end = reach.to(means.dtype) + 0.5
    # cuts lie between whole numbers; one row of them for each difference, ascending
    inner = torch.cat([torch.floor(means + scales * at + more) + 0.5 for at, more in CUTS])
    inner = torch.maximum(torch.minimum(inner, end - 1.0), 1.0 - end)
    cuts = torch.stack([-end, 1.0 - end, *inner, end - 1.0, end], 1).sort(1).values  # (N, K Q + 4)
    below, density = torch.zeros_like(cuts), torch.zeros_like(cuts)
    narrow, offsets = (1.0 / scales).unsqueeze(2), (-means / scales).unsqueeze(2)
    for weight, inverse, offset in zip(weights.unsqueeze(2), narrow, offsets, strict=True):
        share = torch.addcmul(offset, cuts, inverse).sigmoid_()
        below.addcmul_(weight, share)
        density.addcmul_(weight * inverse, share.addcmul_(share, share, value=-1.0))
    below.masked_fill_(cuts <= -end[:, None], 0.0).masked_fill_(cuts >= end[:, None], 1.0)
    width, p = cuts.diff(dim=1).clamp_(min=1.0), below.diff(dim=1).clamp_(min=0.0)
    # log p falls by t over a part of w values, so by t / w from one to the next: p is a cut geometric distribution. Its
    # log has about the mean log(p / w) + f(t) - f(t / w), f(t) = log(1 + t^2 / 12) / 2, and the variance
    # g(t) - g(t / w), g(t) = t^2 / (12 + t^2); both are exact for w = 1
    whole = density.clamp(min=1e-30).log_().diff(dim=1).square_().div_(12.0)
    step = whole / width.square()
    log_p = (p / width).clamp_(min=1e-30).log_() + 0.5 * (torch.log1p(whole) - torch.log1p(step))
    spread = whole / (1.0 + whole) - step / (1.0 + step)
    surprise = -(p * log_p).sum(1)
    square = (p * (log_p.square_() + spread)).sum(1)
    return torch.stack([surprise, (square - surprise.square()).clamp_(min=0.0)])


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


class LinearGuesses(nn.Module):
    """GUESSES predictions of each difference, linear in the means around it and in the groups before its own.

    Most of what a photograph's differences have in common is linear, and to a fraction of a grey level. A network of
    gates learns that slowly. The first guess begins as the slope between the two neighbours of a mean, and it is
    subtracted wherever a network looks at a difference.
    """

    STEP = 0.1
    """How much less a weight moves in a training step than the weights of other layers: it multiplies grey levels."""
    mask: Tensor

    def __init__(self, sequence: list[int], dim: int) -> None:
        super().__init__()
        self.channels = len(sequence)
        values = len(GROUPS) * self.channels
        self.of_means = nn.Conv2d(values, values * GUESSES, 3, padding=1, bias=False)
        self.of_known = nn.Conv2d(values, values * GUESSES, 3, padding=1, bias=False)
        self.register_buffer("mask", groups_before(self.channels * GUESSES, self.channels), persistent=False)
        with torch.no_grad():
            weight = self.of_means.weight.view(len(GROUPS), self.channels, GUESSES, self.channels, 2, 2, 3, 3)
            weight[:, :, 0] = 0.0
            for g, place in enumerate(GROUPS):
                for k, colour in enumerate(sequence):
                    for side, slope in ((-1, 0.25), (1, -0.25)):
                        row, column = (at + side * (axis == dim) for axis, at in enumerate(place, 2))
                        # place 2 q + r of the 2 x 2 squares is place r of square q, and the kernel's middle is 1
                        square = (1 + row // 2, 1 + column // 2)
                        weight[(g, k, 0, colour, row % 2, column % 2, *square)] = slope / self.STEP

    def forward(self, means: Tensor, about: Tensor) -> Tensor:
        """What the means say, (B, 4 C G, h, w), grey levels: the same for images of another brightness.

        means: (B, 4 C, h, w), in squares of 2 x 2; about: the brightness around each square, (B, C, h, w).
        """
        weight = self.of_means.weight * self.STEP
        whole = torch.unflatten(weight, 1, (self.channels, 4)).sum((2, 3, 4))[:, :, None, None]
        # each mean against the brightness in the middle of the kernel
        return F.conv2d(F.pad(means, (1, 1, 1, 1), mode="replicate"), weight) - F.conv2d(about, whole)

    def known(self, of_means: Tensor, d: Tensor) -> Tensor:
        """The guesses, (B, 4, C, G, h, w); d: differences (B, 4, C, h, w)."""
        more = F.conv2d(d.flatten(1, 2) * self.STEP, self.of_known.weight * self.mask, padding=1)
        return torch.unflatten(of_means + more, 1, (len(GROUPS), self.channels, GUESSES))


class DifferenceHead(nn.Module):
    """The parameters of every difference's distribution: colours in sequence, as in pixel_head.PixelHead.

    A difference's means are the linear guesses, and what the differences of the colours before it were beside their
    guesses, at rates that the features say; and the features move each mean on its own.
    """

    mask: Tensor

    def __init__(self, features: int, channels: int, components: int) -> None:
        super().__init__()
        groups = len(GROUPS)
        self.channels, self.components = channels, components
        self.hidden = nn.Conv2d(groups * features, groups * channels * features, 1, groups=groups)
        self.colours = nn.Conv2d(groups * channels, groups * channels * features, 1, groups=groups, bias=False)
        outputs = 3 * components + GUESSES + channels
        self.out = nn.Conv2d(groups * channels * features, groups * channels * outputs, 1, groups=groups * channels)
        earlier = torch.tril(torch.ones(channels, channels), diagonal=-1)  # row k: the colours before colour k
        self.register_buffer("mask", earlier, persistent=False)
        with torch.no_grad():
            bias = self.out.get_parameter("bias").view(groups * channels, outputs)
            bias.zero_()
            bias[:, components : 2 * components] = torch.linspace(-1.0, 1.0, components + 2)[1:-1] / 4.0
            bias[:, 2 * components : 3 * components] = 2.0
            bias[:, 3 * components] = 1.0  # the first guess

    def forward(self, features: Tensor, guesses: Tensor, d: Tensor, group: int | None = None) -> Tensor:
        """(3, K, B, g, C, h, w): mixture logits, means and log-scales of the differences, colours in sequence.

        features: (B, g F, h, w); guesses: (B, g, C, G, h, w), grey levels; d: (B, g, C, h, w), integers, colours in
        sequence; g = 4, or 1 with `group`.
        """
        # bfloat16 has 8 binary digits, too few for a mean among 511 values: the head computes in float32
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.hidden.weight.dtype)
            rows = self.mask.repeat_interleave(features.shape[1] // d.shape[1], 0).repeat(d.shape[1], 1)
            weight = self.colours.weight
            if group is not None:
                weight = weight.chunk(len(GROUPS))[group]
            guesses = guesses.to(features.dtype)
            missed = d.to(features.dtype) - guesses[:, :, :, 0]  # (B, g, C, h, w)
            from_colours = F.conv2d(squashed(missed.flatten(1, 2)), weight * rows[:, :, None, None], groups=d.shape[1])
            found = of_group(self.out, F.silu(of_group(self.hidden, features, group) + from_colours), group)
            found = torch.unflatten(found, 1, (*d.shape[1:3], -1))  # (B, g, C, 3 K + G + C, h, w)
            found = found.to(torch.promote_types(found.dtype, torch.float32))
            mixture, rates, of_colours = torch.split(found, [3 * self.components, GUESSES, self.channels], 3)
            logits, means, log_scales = torch.unflatten(mixture, 3, (3, -1)).movedim((3, 4), (0, 1)).unbind(0)
            of_colours = of_colours * self.mask[:, :, None, None]
            moved = (rates * guesses).sum(3) + (of_colours * missed.unsqueeze(2)).sum(3)  # (B, g, C, h, w)
        # narrower than a tenth of a grey level is no use
        return torch.stack([logits, UNIT * means + moved, log_scales.clamp(-2.3, 10.0)])


def squashed(d: Tensor) -> Tensor:
    """Grey levels as inputs: linear up to about two, then like a logarithm."""
    return torch.asinh(d * 0.5)


def groups_before(rows: int, columns: int) -> Tensor:
    """A mask of weights, (4 rows, 4 columns, 1, 1): 1 from a group to the groups after it."""
    before = torch.tril(torch.ones(len(GROUPS), len(GROUPS)), diagonal=-1)  # row g: the groups before group g
    return before.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:, :, None, None]


class DifferenceNetwork(nn.Module):
    """p(differences | means) of a split: prod_g p(group g | all means, groups before g), colours in sequence."""

    mask: Tensor

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        context_channels: int,
        context_layers: int,
        width: int,
        layers: int,
        components: int,
        colour_order: str,
        positions: bool,
    ) -> None:
        super().__init__()
        groups, context = len(GROUPS), context_channels
        self.channels, self.positions = channels, positions
        self.sequence = [0] if channels == 1 else ["rgb".index(colour) for colour in colour_order]
        inputs = 5 * channels + 1 + (2 + 4 * len(PERIODS) if positions else 0)
        self.guesses = LinearGuesses(self.sequence, dim)
        self.first = nn.Conv2d(inputs, context, 3, padding=1)
        self.context = nn.ModuleList(GatedResidual(context) for _ in range(context_layers))
        self.to_groups = nn.Conv2d(context, groups * width, 1)
        self.known = nn.Conv2d(2 * groups * channels, groups * width, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(GatedResidual(width, groups) for _ in range(layers))
        self.head = DifferenceHead(width, channels, components)
        self.register_buffer("mask", groups_before(width, channels).repeat(1, 2, 1, 1), persistent=False)

    def see(self, means: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """What all groups know from all means (B, C, h, w): features (B, 4 F, h / 2, w / 2), and linear guesses.

        where: `positions`.
        """
        x = means.to(self.first.weight.dtype)
        x = x[..., torch.arange(x.shape[3] + x.shape[3] % 2, device=x.device).clamp(max=x.shape[3] - 1)]
        x = x[:, :, torch.arange(x.shape[2] + x.shape[2] % 2, device=x.device).clamp(max=x.shape[2] - 1)]
        # brightness of the neighbourhood, and each mean against it: a step of one grey level is small in the first
        about = F.avg_pool2d(F.avg_pool2d(x, 2), 3, 1, 1, count_include_pad=False)
        squares = F.pixel_unshuffle(x, 2)
        relief = squares - about.repeat_interleave(4, 1)
        ones = torch.ones_like(about[:, :1])  # zero in the padding, which tells the border
        told = [where.to(x).expand(len(x), -1, -1, -1)] if self.positions else []
        seen: Tensor = self.first(torch.cat([squashed(relief), about / 127.5 - 1.0, ones, *told], 1))
        for layer in self.context:
            seen = layer(seen)
        with torch.autocast(x.device.type, enabled=False):
            guesses = self.guesses(squares, about)
        return self.to_groups(seen), guesses

    def features(self, seen: tuple[Tensor, Tensor], d: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, 4 F, h, w) and guesses (B, 4, C, G, h, w) of all groups, from `see` and differences.

        d: (B, 4, C, h, w), colours in sequence. Those of a group depend on the groups before it alone. With `group`
        they are of this one: (B, F, h, w) and (B, 1, C, G, h, w).
        """
        context, of_means = seen
        per_group = context.shape[1] // len(GROUPS)
        rows = slice(None) if group is None else slice(group * per_group, (group + 1) * per_group)
        weight = self.known.weight[rows] * self.mask[rows]
        values = d.to(weight.dtype)
        with torch.autocast(d.device.type, enabled=False):
            guesses = self.guesses.known(of_means, values)
        told = torch.cat([values.flatten(1, 2), (values - guesses[:, :, :, 0]).flatten(1, 2)], 1)
        x = context[:, rows] + F.conv2d(squashed(told), weight, padding=1)
        for layer in self.layers:
            x = layer(x, group)
        return x, guesses if group is None else guesses[:, group : group + 1]

    def log_prob(self, means: Tensor, d: Tensor, reach: Tensor, where: Tensor) -> Tensor:
        """Nats of every difference, colours summed, (B, h, w); means, d, reach: integers (B, C, h, w)."""
        nats = difference_log_prob(*self.distributions(means, d, reach, where)).sum(2, keepdim=True)
        return ungrouped(nats, *d.shape[2:]).squeeze(1)

    def distributions(self, means: Tensor, d: Tensor, reach: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Differences and reaches (B, 4, C, h / 2, w / 2), colours in sequence, and parameters (3, K, ...) of each."""
        values, reaches = grouped(d[:, self.sequence]), grouped(reach[:, self.sequence])
        return values, reaches, self.head(*self.features(self.see(means, where), values), values)

    def surprise(self, means: Tensor, d: Tensor, reach: Tensor, where: Tensor) -> Tensor:
        """-log p of every difference, its expectation and its variance (`difference_moments`), (3, B, h, w).

        Colours are summed. Given all that comes before a difference, its surprise less the expectation is 0 on average.
        """
        values, reaches, parameters = self.distributions(means, d, reach, where)
        moments = difference_moments(reaches.flatten(), parameters.flatten(2)).view(2, *reaches.shape)
        found = torch.stack([-difference_log_prob(values, reaches, parameters), *moments])
        return torch.stack([ungrouped(part, *d.shape[2:]).squeeze(1) for part in found.sum(3, keepdim=True)])

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
                parameters = self.head(*features, d[:, g : g + 1], g)[:, :, :, 0, k]  # (3, K, B, h, w)
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
