"""How alike images are: coarse pictures for distances, perceptual hashes for near-duplicates, and the name order.

Two images are called nearly equal when they are closer than all but 1 % of random pairs of the same source and label.
The measure is relative, so a fixed camera, whose images all look alike, is judged by its own standard.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import fft, stats

from densitywatch.arrays import Floats, Pixels

COARSE = 8
"""Pixels a side of the coarse pictures, and frequencies a side of the hash."""
CLOSE = 0.01
"""The share of random pairs that are called nearly equal."""
RANDOM_PAIRS = 20_000
PAIRS = 65_536
"""Pairs that are compared at once."""
FEWEST = 50
"""Of fewer neighbours than this nothing is said."""
LEAST_SHARE = 0.03
CHANCE = 1e-4
"""Neighbours count as alike when more than LEAST_SHARE of them are nearly equal and chance explains that with at most
this probability."""
HASH_BITS = 3
"""Near-duplicates differ in at most this many of the hash's 64 bits."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Looks:
    """What is compared of N images."""

    coarse: npt.NDArray[np.uint8]
    """(N, 64): grey means of 8 x 8 fields, rounded: 64 bytes an image are kept in memory."""
    hashes: npt.NDArray[np.uint64]
    """(N,)."""

    @classmethod
    def of(cls, images: Pixels) -> Looks:
        """Of images (N, C, H, W)."""
        grey = images.mean(axis=1, dtype=np.float32)
        down, across = (_field_means(side) for side in grey.shape[1:])
        # the low frequencies of a cosine transform: pHash (Zauner 2010), as the library imagehash computes it
        waves_down, waves_across = (
            fft.dct(np.eye(side, dtype=np.float32), axis=0, norm="ortho")[:COARSE] for side in grey.shape[1:]
        )
        low = (waves_down @ grey @ waves_across.T).reshape(len(grey), -1)
        bits = np.zeros((len(grey), 64), dtype=bool)
        bits[:, : low.shape[1]] = low > np.median(low, axis=1, keepdims=True)
        hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
        coarse = np.rint(down @ grey @ across.T).clip(0, 255).astype(np.uint8)
        return cls(coarse.reshape(len(grey), -1), hashes)

    @classmethod
    def joined(cls, parts: Sequence[Looks]) -> Looks:
        """Those of several blocks, one after the other."""
        return cls(np.concatenate([part.coarse for part in parts]), np.concatenate([part.hashes for part in parts]))


def _field_means(size: int) -> npt.NDArray[np.float32]:
    """(8, size): the weights of each pixel's row in 8 fields of equal height."""
    edges = np.linspace(0, size, COARSE + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = overlap.clip(0) / (size / COARSE)
    return np.asarray(weights, dtype=np.float32)


def name_key(path: str) -> list[tuple[int, int, str]]:
    """Sorts names as a person does: numbers in them by their value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path) if part]


@dataclass(frozen=True)
class Neighbours:
    """The images in name order, and which of them are nearly equal to the next one of the same source and label."""

    order: Numbers
    """(N,): the images' indices in name order, one source and label after the other."""
    stratum: Numbers
    """(N,): a number for each source and label, by image."""
    limit: float
    """Images closer than this are nearly equal; NaN where there are too few images to tell."""
    first: Numbers
    second: Numbers
    """(M,): the pairs of neighbours."""
    equal: npt.NDArray[np.bool_]
    """(M,): whether they are nearly equal."""

    @property
    def share(self) -> float:
        """The share of neighbours that are nearly equal; of random pairs it is CLOSE."""
        return float(self.equal.mean()) if len(self.equal) else 0.0

    @property
    def alike(self) -> bool:
        """Whether neighbours are more often nearly equal than random pairs."""
        return _more_than_chance(self.equal)

    def alike_across(self, groups: Sequence[str]) -> bool:
        """The same of those neighbours alone that are in different groups."""
        return _more_than_chance(self.equal[self._across(groups)])

    def share_across(self, groups: Sequence[str]) -> float:
        """The share of neighbours in different groups that are nearly equal."""
        across = self.equal[self._across(groups)]
        return float(across.mean()) if len(across) else 0.0

    def _across(self, groups: Sequence[str]) -> npt.NDArray[np.bool_]:
        return np.array([groups[i] != groups[j] for i, j in zip(self.first, self.second, strict=True)], dtype=bool)


def _more_than_chance(equal: npt.NDArray[np.bool_]) -> bool:
    count, total = int(equal.sum()), len(equal)
    if total == 0 or count <= LEAST_SHARE * total:
        return False
    return bool(stats.binom.sf(count - 1, total, CLOSE) < CHANCE)


def neighbours(looks: Looks, paths: Sequence[str], strata: Sequence[tuple[str, int]]) -> Neighbours:
    """Compare neighbours in name order with random pairs. `strata`: source and label of each image.

    The random pairs lie far apart in the name order, so few of them are frames of one scene. The pairs are drawn from a
    generator with a fixed seed.
    """
    numbers = {key: number for number, key in enumerate(sorted(set(strata)))}
    stratum = np.array([numbers[key] for key in strata], dtype=np.int64)
    order = np.array(
        sorted(range(len(paths)), key=lambda i: (stratum[i], name_key(paths[i]), paths[i])), dtype=np.int64
    )
    together = stratum[order[1:]] == stratum[order[:-1]]
    first, second = order[:-1][together], order[1:][together]
    if len(first) < FEWEST:
        return Neighbours(order, stratum, float("nan"), first, second, np.zeros(len(first), dtype=bool))
    limit = float(np.quantile(_random_distances(looks.coarse, stratum[order], order), CLOSE))
    return Neighbours(order, stratum, limit, first, second, distances(looks.coarse, first, second) < limit)


def _random_distances(coarse: npt.NDArray[np.uint8], stratum: Numbers, order: Numbers) -> Floats:
    """Distances of random pairs of one stratum, at least an eighth of it apart in the order."""
    rng = np.random.default_rng(0)
    sizes, starts = np.bincount(stratum), np.searchsorted(stratum, np.arange(stratum.max() + 1))
    one = rng.integers(0, len(order), RANDOM_PAIRS)
    size, start = sizes[stratum[one]], starts[stratum[one]]
    apart = size // 8 + rng.integers(0, np.maximum(1, size - 2 * (size // 8)))
    other = start + (one - start + apart) % size
    pairs = one != other
    return distances(coarse, order[one[pairs]], order[other[pairs]])


def distances(coarse: npt.NDArray[np.uint8], first: Numbers, second: Numbers) -> Floats:
    """The root of the mean squared difference of the coarse pictures, in pixel values: (M,)."""
    blocks = [
        np.sqrt(
            ((coarse[first[at : at + PAIRS]].astype(np.float32) - coarse[second[at : at + PAIRS]]) ** 2).mean(axis=1)
        )
        for at in range(0, len(first), PAIRS)
    ]
    return np.concatenate(blocks).astype(np.float64) if blocks else np.zeros(0)


def near_duplicates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of images whose hashes differ in at most HASH_BITS bits; enough of them to connect all that are alike.

    Hashes that differ in 3 bits at most agree in one of their four quarters at least, so only those are compared.
    """
    distinct, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    members: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(counts[where] > 1):
        members[int(where[index])].append(int(index))
    for equal in members.values():
        yield from pairwise(equal)
    some = np.zeros(len(distinct), dtype=np.int64)
    some[where] = np.arange(len(hashes))  # an image with each hash
    for quarter in range(HASH_BITS + 1):
        part = (distinct >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for at in range(len(bucket) - 1):
                differing = np.bitwise_count(distinct[bucket[at + 1 :]] ^ distinct[bucket[at]])
                for other in bucket[at + 1 :][differing <= HASH_BITS]:
                    yield int(some[bucket[at]]), int(some[other])
