"""What an evaluator is given and what it returns.

An evaluator is a plain function `(Context) -> Result | None`. It returns None when the model does not offer what it
measures. It writes its pictures into `context.out` and names them in its result. The metrics file, figures.json, the
run in MLflow and the report page are made from the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densitywatch.data.dataset import DatasetInfo, Split, SplitName, batches, open_split
from densitywatch.data.reading import Images, Rows, images_at_once
from densitywatch.params import Params
from densitywatch.progress import track
from densitywatch.sizes import height_width

Metric = float | int | str


@dataclass(frozen=True)
class Figure:
    """A picture, chart or table: one `png`, `svg` or `csv` file in the evaluator's folder."""

    file: str
    title: str
    caption: str
    alt: str = ""
    """The text for a person who cannot see the picture; title and caption where it is empty."""
    rows: tuple[str, ...] = ()
    """Names of the picture's rows, evenly spaced from top to bottom; shown next to it."""


@dataclass(frozen=True)
class Result:
    metrics: dict[str, Metric]
    """Keys of metrics/<model>.json; no two evaluators may give the same one."""
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for the report: what was left out, and why."""


@dataclass(frozen=True)
class Context:
    """One model under evaluation."""

    name: str
    model: nn.Module
    """In eval mode, on `device`."""
    data: Path
    """The folder of prepared data."""
    info: DatasetInfo
    """The data as the model reads them: `size` is the model's."""
    params: Params
    out: Path
    """The folder for pictures; it becomes reports/models/<name> when every evaluator is done."""
    classifier: Path | None
    """The folder of the feature network, where there is one."""
    device: torch.device
    shared: dict[str, Any] = field(default_factory=dict)
    """What one evaluator computed and a later one may use.

    `history`: the rows of history.json, from the start. `test_log_prob`: (N,) nats of the test images.
    `test_log_prob_by_label`: (N, classes) nats, for a conditional density. `test_codes`: (n, D) features of the first
    test images, as many as fit into memory. `generated`: (samples, labels or None). `classifier`: the loaded feature
    network. `split_<name>`: an open split. Arrays are numpy's, in the order of `batches("test")`.
    """

    @property
    def dimensions(self) -> int:
        """Numbers in an image: C * H * W."""
        return self.info.channels * math.prod(height_width(self.info.size))

    def generator(self) -> torch.Generator:
        """A random generator with the seed of params; on the CPU, so that every device gets the same numbers."""
        return torch.Generator().manual_seed(self.params.seed)

    def batches(self, split: SplitName, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) uint8 and labels (B,) of a split's first `limit` images, on `device`."""
        for images, labels in batches(self.split(split), self.batch_size, limit):
            yield torch.from_numpy(images).to(self.device), torch.from_numpy(labels).to(self.device)

    @property
    def batch_size(self) -> int:
        """Images that the model reads at a time: `evaluate.batch_size`, or fewer if memory allows no more."""
        return images_at_once(self.params.evaluate.batch_size, self.info.size)

    def split(self, split: SplitName) -> Split:
        """A split at the model's size, opened once: resized images are kept for all evaluators."""
        if (key := f"split_{split}") not in self.shared:
            self.shared[key] = open_split(self.data, split, self.info.size)
        opened: Split = self.shared[key]
        return opened

    def pick(self, split: SplitName, limit: int | None = None) -> tuple[Images, np.ndarray]:
        """Images (n, C, H, W) uint8, read when indexed, and labels (n,): a split's first `limit`, or all of it.

        A split is in mixed order, so its first images have every label; evenly spaced ones may have only a few.
        """
        opened = self.split(split)
        count = len(opened) if limit is None else min(limit, len(opened))
        return Rows(opened.images, np.arange(count)), np.array(opened.labels[:count])

    def test_batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `test_count(limit)` test images; shows a progress bar."""
        count = self.test_count(limit)
        steps = math.ceil(count / self.batch_size)
        yield from track(self.batches("test", count), f"{self.name}: test images", steps)

    def test_count(self, limit: int | None = None) -> int:
        """Number of test images to use: `evaluate.test_images`, `limit` or all of them, whichever is least."""
        limits = (self.info.counts["test"], self.params.evaluate.test_images, limit)
        return min(n for n in limits if n is not None)

    def test_images(self, rows: np.ndarray | range) -> np.ndarray:
        """The test images (n, C, H, W) uint8 at these rows."""
        return np.asarray(self.split("test").images[np.asarray(rows)])


Evaluator = Callable[[Context], Result | None]


def spread(count: int, limit: int | None) -> np.ndarray:
    """`limit` evenly spaced indices below `count`; all of them when there are no more than `limit`."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)
