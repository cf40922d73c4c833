"""How far two sets of features lie apart. None of these knows where the features come from: whoever names a figure says
it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

ROWS = 1000
"""Rows whose distances are computed at once."""


class _AsTheyAre(nn.Module):
    """torchmetrics takes a network that makes features of images; these features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); biased upwards, the more the fewer images, so compare
    figures of equal counts. Both need at least two rows.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsTheyAre(a.shape[1]))
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return max(0.0, float(metric.compute()))  # rounding leaves about -1e-9 between equal sets


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 50, subset_size: int = 1000) -> float:
    """Squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018); unbiased, so it may fall below 0.

    The mean over random subsets, drawn by torch's global generator.
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
    """The k smallest Euclidean distances (N, k) from every row of a (N, D) to rows of b, ascending, and those rows'
    indices.
    """
    found = [torch.cdist(rows, b).topk(min(k, len(b)), dim=1, largest=False) for rows in torch.split(a, ROWS)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def manifold_figures(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features (N, D), (M,
    D).

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    precision: share of generated points in the real manifold; recall: share of real points in the generated one;
    density: by how many real balls a generated point is covered, 1 being as usual for real ones; coverage: share of
    real balls with a generated point in them.
    """
    k = min(k, len(real) - 1, len(generated) - 1)
    # the nearest of a point's own set is the point itself
    real_radius = nearest_distances(real, real, k + 1)[0][:, -1]
    generated_radius = nearest_distances(generated, generated, k + 1)[0][:, -1]
    balls = torch.zeros(len(generated))
    recalled, covered = [], []
    for rows, radius in zip(torch.split(real, ROWS), torch.split(real_radius, ROWS), strict=True):
        distance = torch.cdist(rows, generated)
        inside = distance < radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance < generated_radius[None]).any(1))
    return {
        "precision": float((balls > 0).float().mean()),
        "recall": float(torch.cat(recalled).float().mean()),
        "density": float(balls.mean() / k),
        "coverage": float(torch.cat(covered).float().mean()),
    }
