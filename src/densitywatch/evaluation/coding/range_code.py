"""Range coding by a density whose values come one after the other, or many at a time in an order of its own.

Coder and decoder ask the model for probabilities in the walk that also samples it. The coder puts known values in the
place of drawn ones, the decoder those that it reads.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import torch
from torch import Tensor

from densitywatch.models.common.sampling import walk
from densitywatch.models.offers import ValueWalk

PARTS = 1 << 22
"""Probabilities are whole multiples of 1 / PARTS, at least one."""


def encode_pixels(model: Any, x: Tensor, labels: Tensor | None) -> np.ndarray:
    """Images (n, C, H, W) as uint32 words, pixel by pixel; the model offers PixelSteps."""
    coder = constriction.stream.queue.RangeEncoder()
    values = iter(x[:, model.head.sequence].permute(2, 3, 1, 0).reshape(-1, len(x)).long())

    def choose(cumulated: Tensor) -> Tensor:
        value: Tensor = next(values)
        coder.encode(value.numpy().astype(np.int32), _family(), probabilities(cumulated))
        return value

    walk(model, len(x), labels, choose)
    words: np.ndarray = coder.get_compressed()
    return words


def decode_pixels(model: Any, n: int, labels: Tensor | None, words: np.ndarray) -> Tensor:
    """The n images (n, C, H, W) of the words that `encode_pixels` gave."""
    coder = constriction.stream.queue.RangeDecoder(words)

    def choose(cumulated: Tensor) -> Tensor:
        return torch.from_numpy(coder.decode(_family(), probabilities(cumulated)).astype(np.int64))

    return walk(model, n, labels, choose)


def encode_walk(model: ValueWalk, x: Tensor) -> np.ndarray:
    """Images (n, C, H, W) of any size as uint32 words, in the model's own order of values."""
    coder = constriction.stream.queue.RangeEncoder()

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        coder.encode(known.numpy().astype(np.int32), _family(), probabilities(cumulated))
        return known

    n, _, height, width = x.shape
    model.walk(n, choose, height, width, given=x, rows=height)
    words: np.ndarray = coder.get_compressed()
    return words


def decode_walk(model: ValueWalk, n: int, height: int, width: int, words: np.ndarray) -> Tensor:
    """The n images (n, C, height, width) of the words that `encode_walk` gave."""
    coder = constriction.stream.queue.RangeDecoder(words)

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        return torch.from_numpy(coder.decode(_family(), probabilities(cumulated)).astype(np.int64))

    return model.walk(n, choose, height, width)


def probabilities(cumulated: Tensor) -> np.ndarray:
    """Cumulative probabilities (B, V - 1) of all values but the last as probabilities (B, V) of the values.

    They are whole multiples of 1 / PARTS, and none is zero.
    """
    # one part is reserved for each value; the running maximum removes rounding errors in the order
    parts = PARTS - cumulated.shape[1] - 1
    edges = (cumulated.clamp(0.0, 1.0) * parts).round_().cummax(1).values
    low = torch.zeros(len(edges), 1, dtype=edges.dtype)
    counts = torch.diff(edges, dim=1, prepend=low, append=low + parts) + 1
    table: np.ndarray = (counts / PARTS).numpy()
    return table


def _family() -> Any:
    """The family of distributions over a few values; their probabilities are given with each use."""
    return constriction.stream.model.Categorical(perfect=False)
