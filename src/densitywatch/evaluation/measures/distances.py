"""Distances between two sets of features.

None of these functions knows which network made the features; the caller says so where it names a figure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from densitywatch.arrays import Floats

ROWS = 1000
"""Rows whose distances are computed at once."""


class _AsTheyAre(nn.Module):
    """A network that returns its input: torchmetrics wants one that makes features, and ours are made already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). It is biased upwards, and more so with fewer images, so
    compare only figures of equal counts. Both sets need at least two rows.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsTheyAre(a.shape[1]))
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return max(0.0, float(metric.compute()))  # rounding leaves about -1e-9 between equal sets


def frechet_of_counts(a: Tensor, b: Tensor) -> Callable[[Floats], Floats]:
    """The same distance of resampled features (N, D) and (N, D), whose i-th rows are taken or left together.

    Returns a function from counts (B, N), how often each row is taken, to the distances (B,).
    """
    centre = a.double().mean(0)  # far from 0 the second moments below would lose digits
    sets = (a.double() - centre).numpy(), (b.double() - centre).numpy()

    def moments(x: Floats, counts: Floats) -> tuple[Floats, Floats]:
        """Means (B, D) and covariances (B, D, D)."""
        n = counts.sum(1)
        mean = counts @ x / n[:, None]
        products = np.stack([(counts * column) @ x for column in x.T], 1)
        covariance = products - n[:, None, None] * mean[:, :, None] * mean[:, None]
        return mean, covariance / (n - 1)[:, None, None]

    def distances(counts: Floats) -> Floats:
        (mean_a, cov_a), (mean_b, cov_b) = (moments(x, counts) for x in sets)
        # the eigenvalues of a product of two covariances are real and not negative, up to rounding
        roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0.0)).sum(1)
        traces = np.trace(cov_a, axis1=1, axis2=2) + np.trace(cov_b, axis1=1, axis2=2)
        return np.asarray((np.square(mean_a - mean_b).sum(1) + traces - 2 * roots).clip(min=0.0))

    return distances


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 50, subset_size: int = 1000) -> float:
    """Squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018).

    E[k(a, a')] + E[k(b, b')] - 2 E[k(a, b)] with k(x, y) = (x.y / D + 1)^3. The estimate is unbiased, so it may be
    below 0. It is the mean over random subsets, drawn by torch's global generator.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    subset_size = min(subset_size, len(a), len(b))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*", category=UserWarning)
        metric = KernelInceptionDistance(feature=_AsTheyAre(a.shape[1]), subsets=subsets, subset_size=subset_size)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute()[0])


def nearest_distances(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of b (M, D) for every row of a (N, D): Euclidean distances (N, k), ascending, and indices."""
    found = [torch.cdist(rows, b).topk(min(k, len(b)), dim=1, largest=False) for rows in torch.split(a, ROWS)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def manifold_figures(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    real, generated: features (N, D) and (M, D). A set's manifold is the union of balls around its points; the radius of
    a ball is the distance to the point's k-th nearest neighbour in its own set.

    * precision: share of generated points in the real manifold
    * recall: share of real points in the generated manifold
    * density: mean number of real balls around a generated point, over k; 1 is usual for real points
    * coverage: share of real balls that hold a generated point
    """
    k = min(k, len(real) - 1, len(generated) - 1)
    # k + 1, because the nearest point of its own set is the point itself
    real_radius = nearest_distances(real, real, k + 1)[0][:, -1]
    generated_radius = nearest_distances(generated, generated, k + 1)[0][:, -1]
    balls = torch.zeros(len(generated))  # number of real balls around each generated point
    recalled, covered = [], []
    for rows, radius in zip(torch.split(real, ROWS), torch.split(real_radius, ROWS), strict=True):
        distance = torch.cdist(rows, generated)  # (ROWS, M)
        inside = distance < radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance < generated_radius[None]).any(1))
    return {
        "precision": float((balls > 0).float().mean()),
        "recall": float(torch.cat(recalled).float().mean()),
        # a real point lies in about k balls of its own set
        "density": float(balls.mean() / k),
        "coverage": float(torch.cat(covered).float().mean()),
    }
