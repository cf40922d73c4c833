"""Densities over local features: a Gaussian for each place, and one mixture for all places.

Objects that lie in the same way in every image want the first, textures the second. Features are (B, P, D): B images,
P places, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll

STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10000.0)
"""Numbers of images that the covariance of all places may count as, at a place."""
FLOOR = 1e-2
"""Added to every variance, as a share of the mean variance within places."""
TINY = 1e-9
"""The least variance: features that never change must not divide by zero."""
COMPONENTS, MIXTURE_DIMENSIONS = 10, 100


class PlaceMoments:
    """Mean and covariance at every place, from one pass over the images; memory does not grow with their number."""

    def __init__(self, places: int, dimensions: int) -> None:
        self.count = 0
        self.total = torch.zeros(places, dimensions, dtype=torch.float64)
        self.products = torch.zeros(places, dimensions, dimensions, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Count in features (B, P, D)."""
        x = features.transpose(0, 1).double()
        self.count += x.shape[1]
        self.total += x.sum(1)
        self.products.baddbmm_(x.transpose(1, 2), x)

    def mean(self) -> Tensor:
        """(P, D)."""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """E[x x'] - m m' at each place, (P, D, D)."""
        mean = self.mean()
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]


def place_gaussian(moments: PlaceMoments, strength: float) -> Arrays:
    """A Gaussian at each place: its mean, and L^-1 of its covariance C = L L'.

    C = (n S + k W) / (n + k): S is the covariance of the n images at the place, W the mean of S over places and k the
    `strength`, the number of images that W counts as. This is the mean of the posterior under an inverse Wishart prior
    around W, up to its constant; n images in D > n dimensions give an invertible C.
    """
    own = moments.covariance()
    within = own.mean(0)
    # single precision halves the memory of what follows; the floor keeps every variance far above its error
    shrunk = ((moments.count * own + strength * within) / (moments.count + strength)).float()
    spread = float(torch.diagonal(within).mean())
    shrunk.diagonal(dim1=1, dim2=2).add_(FLOOR * spread + TINY)
    lower = torch.linalg.cholesky(shrunk)
    identity = torch.eye(shrunk.shape[1], dtype=lower.dtype).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return {"mean": moments.mean().float().numpy(), "whitening": inverse.float().numpy()}


def place_distance(features: Tensor, fitted: Arrays) -> Tensor:
    """Mahalanobis distance of features (B, P, D) from the mean of their place: |L^-1 (x - m)|, (B, P)."""
    mean, whitening = torch.as_tensor(fitted["mean"]), torch.as_tensor(fitted["whitening"])
    white = torch.bmm((features - mean).transpose(0, 1), whitening.transpose(1, 2))
    distance: Tensor = torch.linalg.vector_norm(white, dim=2)
    return distance.T


def left_out(distance: Tensor, count: int, strength: float) -> Tensor:
    """The distances that images would have, had each been left out of its places' Gaussians.

    `distance`: as `place_distance` gives it, of images that are among the n = `count` ones of `place_gaussian`. Without
    image x the mean is m - (x - m) / (n - 1), and n S is less c (x - m) (x - m)', where c = n / (n - 1). Sherman and
    Morrison's formula inverts what is left. What W and the floor owe to one image is taken for nothing.
    """
    c = count / (count - 1)
    q = distance.double().square() / (count + strength)
    # c q < 1 up to rounding, as n S holds c (x - m) (x - m)'
    return ((count - 1 + strength) * c**2 * q / (1 - c * q).clamp(min=1e-6)).sqrt().to(distance.dtype)


def place_nll(features: Tensor, fitted: Arrays) -> Tensor:
    """Minus log density of features (B, P, D) under the Gaussian of their place, without log(2 pi) D / 2, (B, P)."""
    # distance^2 / 2 + log |C| / 2, and log |C| / 2 is minus the sum of the logs of L^-1's diagonal
    logs = torch.diagonal(torch.as_tensor(fitted["whitening"]), dim1=1, dim2=2).log().sum(1)
    return 0.5 * place_distance(features, fitted).square() - logs


def choose_strength(moments: PlaceMoments, held_out: Sequence[Tensor]) -> tuple[float, Arrays]:
    """The one of STRENGTHS under which held-out normal images are most probable, and its Gaussians.

    `held_out` are features (B, P, D) that the moments have not seen. Too little shrinkage and too much both make them
    less probable, so the search starts in the middle and goes on while it gets better: three to five of the seven are
    tried.
    """

    def tried(number: int) -> tuple[float, int, Arrays]:
        fitted = place_gaussian(moments, STRENGTHS[number])
        return float(sum(place_nll(x, fitted).double().sum() for x in held_out)), number, fitted

    start = len(STRENGTHS) // 2
    best = tried(start)
    for step in (-1, 1):
        number = start + step
        while 0 <= number < len(STRENGTHS) and (other := tried(number))[0] < best[0]:
            best, number = other, number + step
        if best[1] != start:
            break
    return STRENGTHS[best[1]], best[2]


def anywhere_mixture(rows: Floats, seed: int) -> Arrays:
    """A Gaussian mixture for all places, fitted to rows (N, D)."""
    return fit_mixture(
        rows, dimensions=MIXTURE_DIMENSIONS, components=COMPONENTS, seed=seed, floor=FLOOR, iterations=10
    )


def anywhere_nll(features: Tensor, fitted: Arrays) -> Tensor:
    """Minus log density of features (B, P, D) under the mixture, nats, (B, P)."""
    b, places, dimensions = features.shape
    nll = mixture_nll(features.reshape(-1, dimensions).numpy(), fitted)
    return torch.from_numpy(nll.astype(np.float32).reshape(b, places))
