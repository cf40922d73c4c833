"""Densities over local features: a Gaussian for each place, and one mixture for all places.

Objects that lie in the same way in every image want the first, textures the second. Features are (B, P, D): B images,
P places, D dimensions. A place's Gaussian may be one of what the image shows as a whole: its code, (B, K). Then the
mean is a linear function of the code, and the covariance is what the code leaves.
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
    """Mean and covariance at every place, from one pass over the images; memory does not grow with their number.

    With codes of K > 0 numbers, theirs too, and the covariance of each place's features with them.
    """

    def __init__(self, places: int, dimensions: int, codes: int = 0) -> None:
        self.count, self.codes = 0, codes
        self.total = torch.zeros(places, dimensions, dtype=torch.float64)
        self.products = torch.zeros(places, dimensions, dimensions, dtype=torch.float64)
        self.code_total = torch.zeros(codes, dtype=torch.float64)
        self.code_products = torch.zeros(codes, codes, dtype=torch.float64)
        self.cross_products = torch.zeros(places, dimensions, codes, dtype=torch.float64)

    def add(self, features: Tensor, code: Tensor | None = None) -> None:
        """Count in features (B, P, D) and, where there are codes, those of their images, (B, K)."""
        x = features.transpose(0, 1).double()
        self.count += x.shape[1]
        self.total += x.sum(1)
        self.products.baddbmm_(x.transpose(1, 2), x)
        if code is not None:
            c = code.double()
            self.code_total += c.sum(0)
            self.code_products += c.T @ c
            self.cross_products += torch.matmul(x.transpose(1, 2), c)

    def mean(self) -> Tensor:
        """(P, D)."""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """E[x x'] - m m' at each place, (P, D, D)."""
        mean = self.mean()
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]

    def code_mean(self) -> Tensor:
        """(K,)."""
        return self.code_total / self.count

    def code_covariance(self) -> Tensor:
        """(K, K)."""
        mean = self.code_mean()
        return self.code_products / self.count - torch.outer(mean, mean)

    def cross_covariance(self) -> Tensor:
        """Of each place's features with the code, (P, D, K)."""
        return self.cross_products / self.count - self.mean()[:, :, None] * self.code_mean()


def place_gaussian(moments: PlaceMoments, strength: float) -> Arrays:
    """A Gaussian at each place: its mean, and L^-1 of its covariance C = L L'.

    C = (n S + k W) / (n + k): S is the covariance of the n images at the place, W the mean of S over places and k the
    `strength`, the number of images that W counts as. This is the mean of the posterior under an inverse Wishart prior
    around W, up to its constant; n images in D > n dimensions give an invertible C.

    With codes, S and W are those of features and code together. The features' Gaussian given the code c has the mean
    m + B (c - c0), where B (`slope`) is their covariance with the code times the inverse of the code's own, and what is
    left of C. `code_whitening` is L^-1 of the code's covariance, which is the same at every place.
    """
    shrunk = _shrunk(moments.covariance(), moments.count, strength)
    _add_floor(shrunk, float(torch.diagonal(shrunk, dim1=1, dim2=2).mean()))
    fitted = {"mean": moments.mean().float().numpy()}
    if moments.codes:
        codes, cross = moments.code_covariance(), _shrunk(moments.cross_covariance(), moments.count, strength)
        _add_floor(codes, float(torch.diagonal(codes).mean()))
        slope = torch.linalg.solve(codes, cross, left=False)
        shrunk -= slope @ cross.transpose(1, 2)
        fitted |= {
            "slope": slope.float().numpy(),
            "code_mean": moments.code_mean().float().numpy(),
            "code_whitening": _whitening(codes).numpy(),
        }
    return fitted | {_whitening_name(moments.codes > 0): _whitening(shrunk).numpy()}


def _whitening_name(with_code: bool) -> str:
    # so that a version that knows no codes refuses such Gaussians, and does not score without the code
    return "whitening_given_code" if with_code else "whitening"


def _shrunk(own: Tensor, count: int, strength: float) -> Tensor:
    """(n S + k W) / (n + k) of S at each place, (P, ...)."""
    return (count * own + strength * own.mean(0)) / (count + strength)


def _add_floor(covariance: Tensor, spread: float) -> None:
    covariance.diagonal(dim1=-2, dim2=-1).add_(FLOOR * spread + TINY)


def _whitening(covariance: Tensor) -> Tensor:
    """L^-1 of C = L L', (..., D, D)."""
    # single precision halves the memory of what follows; the floor keeps every variance far above its error
    lower = torch.linalg.cholesky(covariance.float())
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype).expand_as(lower)
    whitening: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return whitening


def place_distance(features: Tensor, fitted: Arrays, code: Tensor | None = None) -> Tensor:
    """Mahalanobis distance of features (B, P, D) from the mean of their place: |L^-1 (x - m - B (c - c0))|, (B, P)."""
    whitening = torch.as_tensor(fitted[_whitening_name(code is not None)])
    x = (features - torch.as_tensor(fitted["mean"])).transpose(0, 1)
    if code is not None:
        x = x - torch.matmul(code - torch.as_tensor(fitted["code_mean"]), torch.as_tensor(fitted["slope"]).mT)
    white = torch.bmm(x, whitening.transpose(1, 2))
    distance: Tensor = torch.linalg.vector_norm(white, dim=2)
    return distance.T


def code_distance(code: Tensor, fitted: Arrays) -> Tensor:
    """Mahalanobis distance of codes (B, K) from their mean, (B,)."""
    centred = code - torch.as_tensor(fitted["code_mean"])
    distance: Tensor = torch.linalg.vector_norm(centred @ torch.as_tensor(fitted["code_whitening"]).T, dim=1)
    return distance


def left_out(distance: Tensor, count: int, strength: float, code: Tensor | None = None) -> Tensor:
    """The distances that images would have, had each been left out of its places' Gaussians.

    `distance`: as `place_distance` gives it, of images that are among the n = `count` ones of `place_gaussian`. Without
    image x the mean is m - (x - m) / (n - 1), and n S is less c (x - m) (x - m)', where c = n / (n - 1). Sherman and
    Morrison's formula inverts what is left. What W and the floor owe to one image is taken for nothing.

    `code`: the distances of the images' codes (B,), where there are any. The square of the distance of features and
    code together is the sum of both squares, and the formula gives it and the code's without the image.
    """
    if code is None:
        without = _squared_without(distance.double().square(), count, strength)
    else:
        of_code = code.double().square()[:, None]
        together = _squared_without(distance.double().square() + of_code, count, strength)
        without = together - _squared_without(of_code, count, strength)
    return without.clamp(min=0).sqrt().to(distance.dtype)


def _squared_without(squared: Tensor, count: int, strength: float) -> Tensor:
    c = count / (count - 1)
    q = squared / (count + strength)
    # c q < 1 up to rounding, as n S holds c (x - m) (x - m)'
    return (count - 1 + strength) * c**2 * q / (1 - c * q).clamp(min=1e-6)


def place_nll(features: Tensor, fitted: Arrays, code: Tensor | None = None) -> Tensor:
    """Minus log density of features (B, P, D) under the Gaussian of their place, without log(2 pi) D / 2, (B, P)."""
    # distance^2 / 2 + log |C| / 2, and log |C| / 2 is minus the sum of the logs of L^-1's diagonal
    whitening = torch.as_tensor(fitted[_whitening_name(code is not None)])
    logs = torch.diagonal(whitening, dim1=1, dim2=2).log().sum(1)
    return 0.5 * place_distance(features, fitted, code).square() - logs


def choose_strength(moments: PlaceMoments, held_out: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[float, Arrays]:
    """The one of STRENGTHS under which held-out normal images are most probable, and its Gaussians.

    `held_out` are features (B, P, D) that the moments have not seen, with the codes of their images or None. Too little
    shrinkage and too much both make them less probable, so the search starts in the middle and goes on while it gets
    better: three to five of the seven are tried.
    """

    def tried(number: int) -> tuple[float, int, Arrays]:
        fitted = place_gaussian(moments, STRENGTHS[number])
        return float(sum(place_nll(x, fitted, code).double().sum() for x, code in held_out)), number, fitted

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
