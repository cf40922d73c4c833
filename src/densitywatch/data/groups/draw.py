"""One image of each group, where images that are alike must not count as several."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def one_of_each_group(groups: ArrayLike, seed: int) -> NDArray[np.int64]:
    """The index of one image of each group, drawn at random, ascending: (K,) for K groups among N images.

    `groups`: the number of each image's group, (N,). detector/conformal.py says what holds for such a draw and why.
    """
    numbers = np.asarray(groups, dtype=np.int64)
    mixed = np.random.default_rng(seed).permutation(len(numbers))
    _, firsts = np.unique(numbers[mixed], return_index=True)
    return np.asarray(np.sort(mixed[firsts]), dtype=np.int64)
