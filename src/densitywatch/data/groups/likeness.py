"""How alike images are: coarse pictures for distances, perceptual hashes for near-duplicates, and the name order.

Two images are called nearly equal when they are closer than all but 1 % of random pairs of the same source and label.
The measure is relative, so a fixed camera, whose images all look alike, is judged by its own standard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
from scipy import fft, stats

from densitywatch.arrays import Floats, Numbers, Pixels
from densitywatch.data.image_table import Table

COARSE = 8
"""Pixels a side of the coarse pictures, and frequencies a side of the hash."""
CLOSE = 0.01
"""The share of random pairs that are called nearly equal."""
RANDOM_PAIRS = 20_000
BLOCK = 8192
"""Coarse pictures that are read at once."""
WINDOW = 5
"""Images this many places apart in the name order are compared when runs of alike images are looked for."""
FEWEST = 50
"""Of fewer neighbours than this nothing is said."""
LEAST_SHARE = 0.03
CHANCE = 1e-4
"""Neighbours count as alike when more than LEAST_SHARE of them are nearly equal and chance explains that with at most
this probability."""
HASH_BITS = 3
"""Near-duplicates differ in at most this many of the hash's 64 bits."""


@dataclass(frozen=True)
class Looks:
    """What is compared of a block of N images."""

    coarse: npt.NDArray[np.uint8]
    """(N, 64): grey means of 8 x 8 fields, rounded."""
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

    def write(self, table: Table, first: int) -> None:
        """Add them to the table `look` under the numbers `first`, `first` + 1, ..."""
        # SQL's whole numbers have a sign
        hashes = self.hashes.view(np.int64).tolist()
        rows = zip(range(first, first + len(hashes)), map(bytes, self.coarse), hashes, strict=True)
        table.executemany("INSERT INTO look VALUES (?, ?, ?)", rows)


def _field_means(size: int) -> npt.NDArray[np.float32]:
    """(8, size): the weights of each pixel's row in 8 fields of equal height."""
    edges = np.linspace(0, size, COARSE + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = overlap.clip(0) / (size / COARSE)
    return np.asarray(weights, dtype=np.float32)


LATER_BYTES = bytes(min(byte + 1, 255) for byte in range(256))
"""Every byte of UTF-8 to the next one, which leaves 0 for the end of a text. No byte of UTF-8 is 255."""


def name_key(path: str) -> bytes:
    """Sorts names as a person does: numbers in them by their value, and before letters."""
    return b"".join(
        _number_key(str(int(part))) if part.isdecimal() else b"\x02" + part.encode().translate(LATER_BYTES) + b"\x00"
        for part in re.split(r"(\d+)", path)
        if part
    )


def _number_key(digits: str) -> bytes:
    """Longer numbers are larger."""
    return b"\x01" + len(digits).to_bytes(2, "big") + digits.encode()


@dataclass(frozen=True)
class Neighbours:
    """Which images are nearly equal to the next one in name order, of the same source and label."""

    ends: Numbers
    """(S,): where each source and label ends in the table `by_name`."""
    limit: float
    """Images closer than this are nearly equal; NaN where there are too few images to tell."""
    equal: npt.NDArray[np.bool_]
    """(M,): whether the two of a pair of neighbours are nearly equal, in name order."""

    @property
    def share(self) -> float:
        """The share of neighbours that are nearly equal; of random pairs it is CLOSE."""
        return float(self.equal.mean()) if len(self.equal) else 0.0

    @property
    def alike(self) -> bool:
        """Whether neighbours are more often nearly equal than random pairs."""
        return _more_than_chance(self.equal)

    def alike_across(self, table: Table) -> bool:
        """The same of those neighbours alone that are in different groups of the table `named`."""
        return _more_than_chance(self.equal[self._across(table)])

    def share_across(self, table: Table) -> float:
        """The share of neighbours in different groups that are nearly equal."""
        across = self.equal[self._across(table)]
        return float(across.mean()) if len(across) else 0.0

    def _across(self, table: Table) -> npt.NDArray[np.bool_]:
        names = table.execute(
            """SELECT coalesce(name, by_name.number) FROM by_name LEFT JOIN named ON named.number = by_name.number
            ORDER BY place"""
        )
        differ = np.fromiter((one != other for one, other in pairwise(names)), dtype=np.bool_)
        return _of_one_stratum(differ, self.ends)


def _of_one_stratum(pairs: npt.NDArray[np.bool_], ends: Numbers) -> npt.NDArray[np.bool_]:
    """Of N - 1 pairs of neighbours those of one source and label: (M,)."""
    return np.delete(pairs, ends[:-1] - 1)


def _more_than_chance(equal: npt.NDArray[np.bool_]) -> bool:
    count, total = int(equal.sum()), len(equal)
    if total == 0 or count <= LEAST_SHARE * total:
        return False
    return bool(stats.binom.sf(count - 1, total, CLOSE) < CHANCE)


def neighbours(table: Table) -> Neighbours:
    """Compare neighbours in name order with random pairs. Fills the table `by_name`; one byte an image is in memory.

    The random pairs lie far apart in the name order, so few of them are frames of one scene. The pairs are drawn from a
    generator with a fixed seed.
    """
    table.create_function("name_key", 1, name_key, deterministic=True)
    table.execute(
        """INSERT INTO by_name (number)
        SELECT number FROM image ORDER BY source, label, name_key(plain(path)), plain(path), number"""
    )
    counted = table.execute("SELECT count(*) FROM image GROUP BY source, label ORDER BY source, label")
    sizes = np.array([size for (size,) in counted], dtype=np.int64)
    ends = np.cumsum(sizes)
    pairs = int(ends[-1]) - len(ends)
    if pairs < FEWEST:
        return Neighbours(ends, float("nan"), np.zeros(pairs, dtype=bool))
    limit = float(np.quantile(_random_distances(table, sizes), CLOSE))
    close = [distances(coarse[:-1], coarse[1:]) < limit for _, _, coarse in _in_name_order(table, overlap=1)]
    return Neighbours(ends, limit, _of_one_stratum(np.concatenate(close), ends))


def _random_distances(table: Table, sizes: Numbers) -> Floats:
    """Distances of random pairs of one source and label, at least an eighth of it apart in the order."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(sizes)
    one = rng.integers(0, ends[-1], RANDOM_PAIRS)
    stratum = np.searchsorted(ends, one, side="right")
    size, start = sizes[stratum], (ends - sizes)[stratum]
    apart = size // 8 + rng.integers(0, np.maximum(1, size - 2 * (size // 8)))
    other = start + (one - start + apart) % size
    pairs = one != other
    return distances(_coarse_at(table, one[pairs]), _coarse_at(table, other[pairs]))


def _coarse_at(table: Table, places: Numbers) -> npt.NDArray[np.uint8]:
    """(M, 64): the coarse pictures at these places of the name order."""
    query = "SELECT coarse FROM by_name CROSS JOIN look USING (number) WHERE place = ?"
    found = (table.execute(query, (place + 1,)).fetchone()[0] for place in places.tolist())
    return _pictures(found)


def _in_name_order(table: Table, overlap: int) -> Iterator[tuple[int, Numbers, npt.NDArray[np.uint8]]]:
    """Blocks of images in name order: the first place, the numbers (N,) and the coarse pictures (N, 64).

    Each block begins with the last `overlap` images of the one before.
    """
    rows = table.execute("SELECT number, coarse FROM by_name CROSS JOIN look USING (number) ORDER BY place")
    start, block = 0, rows.fetchmany(BLOCK)
    while block:
        yield start, np.array([number for number, _ in block]), _pictures(coarse for _, coarse in block)
        more = rows.fetchmany(BLOCK)
        start, block = start + len(block) - overlap, [*block[-overlap:], *more] if more else []


def _pictures(coarse: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(coarse), dtype=np.uint8).reshape(-1, COARSE**2)


def distances(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Floats:
    """The root of the mean squared difference of coarse pictures (M, 64), in pixel values: (M,)."""
    squares = (first.astype(np.float32) - second) ** 2
    return np.asarray(np.sqrt(squares.mean(axis=1)), dtype=np.float64)


def alike_pairs(table: Table, near: Neighbours) -> Iterator[tuple[int, int]]:
    """Pairs of images that are nearly equal and at most WINDOW places apart, of the same source and label."""
    for start, numbers, coarse in _in_name_order(table, overlap=WINDOW):
        stratum = np.searchsorted(near.ends, start + np.arange(len(numbers)), side="right")
        for apart in range(1, WINDOW + 1):
            close = distances(coarse[:-apart], coarse[apart:]) < near.limit
            close &= stratum[:-apart] == stratum[apart:]
            yield from zip(numbers[:-apart][close].tolist(), numbers[apart:][close].tolist(), strict=True)


def near_duplicates(table: Table) -> Iterator[tuple[int, int]]:
    """Pairs of images of one source whose hashes differ in at most HASH_BITS bits; enough to connect all alike ones.

    Hashes that differ in 3 bits at most agree in one of their four quarters at least, so only those are compared.
    Of another source's images none connects two, because no group spans two sources.
    """
    by_hash = table.execute("SELECT source, hash, number FROM image JOIN look USING (number) ORDER BY source, hash")
    for (source, its, one), (next_source, next_its, other) in pairwise(by_hash):
        if (source, its) == (next_source, next_its):
            yield one, other
    for quarter in range(HASH_BITS + 1):
        distinct = table.execute(
            """SELECT source, (hash >> ?) & 65535 AS part, hash, min(number) FROM image JOIN look USING (number)
            GROUP BY source, part, hash ORDER BY source, part""",
            (16 * quarter,),
        )
        for _, bucket in groupby(distinct, key=lambda row: row[:2]):
            hashes, numbers = np.array([row[2:] for row in bucket]).T
            for at in range(len(hashes) - 1):
                differing = np.bitwise_count((hashes[at + 1 :] ^ hashes[at]).view(np.uint64))
                for other in numbers[at + 1 :][differing <= HASH_BITS].tolist():
                    yield int(numbers[at]), other
