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

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.errors import ModelError
from densitywatch.models import pixelcnn
from densitywatch.models.common.pixel_values import bits_per_dim
from densitywatch.models.common.sampling import check_request, walk
from densitywatch.models.difference_network import Choose, DifferenceNetwork, positions
from densitywatch.models.lossless_split import LARGEST, Split, grouped, plan, spread, take_apart
from densitywatch.models.pixelcnn import PixelCNN


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
    colour_order: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rbg"
    positions: bool = True
    """Whether the networks are told where in the image they are."""
    shared: bool = False
    """One pair of networks for all levels; else each level has its own."""
    crop: int | None = Field(default=64, ge=2)
    """Training sees of each split a window of at most this many means a side; null: all of it."""


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
        self.details = nn.ModuleList(self._network(split.dim) for split in (splits[:2] if settings.shared else splits))
        self.OUTER_LAYERS = (
            *(f"coarse.{name}" for name in PixelCNN.OUTER_LAYERS),
            *(
                f"details.{number}.{name}"
                for number in range(len(self.details))
                for name in ("first", "known", "guesses.of_means", "guesses.of_known", "head.colours", "head.out")
            ),
        )
        """What Muon leaves to AdamW: the layers that read pixels or write distribution parameters."""

    def _network(self, dim: int) -> DifferenceNetwork:
        settings = self.settings
        return DifferenceNetwork(
            self.channels,
            dim,
            context_channels=settings.context_channels,
            context_layers=settings.context_layers,
            width=settings.channels,
            layers=settings.layers,
            components=settings.components,
            colour_order=settings.colour_order,
            positions=settings.positions,
        )

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
        return self.coarse.log_prob_map(self.canvas(image))[:, :h, :w]

    def canvas(self, image: Tensor) -> Tensor:
        """The coarsest means (B, C, h, w) as the PixelCNN reads them, uint8 (B, C, coarsest, coarsest)."""
        places = torch.arange(self.coarsest, device=image.device)
        h, w = image.shape[2:]
        return image[:, :, places.clamp(max=h - 1)][..., places.clamp(max=w - 1)].to(torch.uint8)

    def surprise(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, list[tuple[Split, Tensor]]]:
        """The coarsest means (B, C, h, w), and of the differences of each split, the finest first, -log p, its
        expectation and its variance, (3, B, h, w), one value for each mean. Of the `levels` coarsest levels alone, or
        of all."""
        splits = self.splits(*x.shape[2:])
        image, parts = take_apart(x, splits)
        found = []
        for split, (means, d) in zip(splits, parts, strict=True):
            if levels is None or split.level > splits[-1].level - levels:
                where = positions(split, x.shape[2:], means.shape[2:]).to(x.device)
                found.append((split, self.network(split).surprise(means, d, split.reach(means), where)))
        return image, found

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
        """Mean bits per dimension, to minimise. In training an estimate: of each split a random window (`estimate`)."""
        if not self.training or self.settings.crop is None:
            nats = self.log_prob(x)
        else:
            splits = self.splits(*x.shape[2:])
            image, parts = take_apart(x, splits)
            nats = self.coarse_log_prob(image).sum((1, 2))
            for split, (means, d) in zip(splits, parts, strict=True):
                nats = nats + self.estimate(split, means, d, x.shape[2:], self.settings.crop)
        bits = bits_per_dim(nats, x[0].numel()).mean()
        return bits, {"bits_per_dim": bits.detach()}

    def estimate(self, split: Split, means: Tensor, d: Tensor, image: tuple[int, ...], crop: int) -> Tensor:
        """Nats of a split's differences, (B,), from a random window of at most `crop` means a side.

        Each place's nats are divided by the share of windows that contain it, so every place has the same weight in the
        mean over all windows. Only a place near a window's border sees less than in the whole image. image: height and
        width in pixels.
        """
        reach, sides = split.reach(means), means.shape[2:]
        # even, as the starts are, so that a place keeps its group; a side that fits is taken whole
        sizes = [side if side <= crop else crop - crop % 2 for side in sides]
        starts = [window_starts(side, size) for side, size in zip(sides, sizes, strict=True)]
        top, left = (some[int(torch.randint(len(some), ()))] for some in starts)
        rows, columns = (slice(start, start + size) for start, size in zip((top, left), sizes, strict=True))
        means, d, reach = (part[:, :, rows, columns] for part in (means, d, reach))
        where = positions(split, image, means.shape[2:], top, left).to(means.device)
        nats = self.network(split).log_prob(means, d, reach, where)
        of_rows, of_columns = (coverage(side, size).to(nats) for side, size in zip(sides, sizes, strict=True))
        return (nats / (of_rows[rows, None] * of_columns[columns])).sum((1, 2))

    def encode(self, x: Tensor) -> Tensor:
        """Features for other tasks, (B, D): the PixelCNN's of the coarsest means, and the mean of each split's."""
        splits = self.splits(*x.shape[2:])
        image, parts = take_apart(x, splits)
        found = [self.coarse.encode(self.canvas(image))]
        for split, (means, d) in zip(splits, parts, strict=True):
            network = self.network(split)
            where = positions(split, x.shape[2:], means.shape[2:]).to(x.device)
            features, _ = network.features(network.see(means, where), grouped(d[:, network.sequence]))
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


# ------------------------------------------------------------------------------------------------------------------
# The windows of training.
# ------------------------------------------------------------------------------------------------------------------


def window_starts(side: int, size: int) -> list[int]:
    """The equally likely starts of a window of `size` places on a side; the first and the last are listed many times.

    Starts are two places apart and go as far out as a window touches the side; those outside move to the nearest end.
    Without the repeats a corner would be in one of thousands of windows, and count thousands of times in that one. On
    an odd side the last window is one place short.
    """
    if size >= side:
        return [0]
    last = side - size + side % 2
    return [min(max(start, 0), last) for start in range(2 - size, side, 2)]


def coverage(side: int, size: int) -> Tensor:
    """The share of `window_starts` whose window has each place, (side,)."""
    starts, places = torch.tensor(window_starts(side, size)).unsqueeze(1), torch.arange(side)
    return ((starts <= places) & (places < starts + size)).double().mean(0)


MODEL = PixelCNNPyramid
