"""Surprise pixel by pixel under an autoregressive model, and how much of it the model itself expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.errors import ModelError

PIXELS = 512
"""Sub-pixels whose 256 probabilities are in memory at a time: half a MiB an array, for a core's own cache (L2)."""


def surprise_statistics(model: Any, x: Tensor) -> Tensor:
    """Of every pixel, -log p, its expectation and its variance under the model itself: (3, B, H, W), nats and nats^2.

    The expectation is the entropy of the pixel's distribution given the pixels before it; colours are summed. Under the
    model, surprise minus expectation is a martingale difference: zero on average whatever came before.

    Raises ModelError for a model without pixel distributions.
    """
    head = getattr(model, "head", None)
    if head is None or not hasattr(model, "features"):
        raise ModelError(
            f"{type(model).__name__} has no distribution for each pixel; take a model of kind pixelcnn or pixelrnn"
        )
    features = model.features(x)
    parameters = head.parameters_of(features, x).float()
    b, c, _, h, w = parameters.shape
    surprise = -head.log_prob(features, x)
    # one row of parameters for each sub-pixel, in the order (image, colour, row, column)
    flat = (
        parameters.transpose(1, 2).reshape(b, parameters.shape[2], c * h * w).transpose(1, 2).reshape(b * c * h * w, -1)
    )
    moments = torch.cat([_moments(part, head.kind) for part in flat.split(PIXELS)], 1)
    expected, variance = moments.view(2, b, c, h, w)
    return torch.stack([surprise.sum(1), expected.sum(1), variance.sum(1)])


def _moments(parameters: Tensor, kind: str) -> Tensor:
    """Mean and variance of -log p under N sub-pixels' own distributions, (N, outputs) -> (2, N).

    The mean is the entropy H = -sum p log p; the variance is sum p (log p)^2 - H^2.
    """
    if kind == "softmax":
        log_p = F.log_softmax(parameters, 1)
        p = log_p.exp()
    else:
        p = _bins(parameters)
        log_p = p.clamp(min=1e-12).log_()  # p log p of an impossible value is 0, not NaN
    # in place from here on: new arrays of this size cost more than the arithmetic
    weighted = p.mul_(log_p)
    entropy = -weighted.sum(1)
    return torch.stack([entropy, weighted.mul_(log_p).sum(1) - entropy.square()])


def _bins(parameters: Tensor) -> Tensor:
    """The 256 probabilities of N discretised logistic mixtures, (N, 256): F(upper edge) - F(lower edge) of each level.

    F is the mixture's distribution function, 0 below level 0 and 1 above level 255 (Salimans et al. 2017, PixelCNN++).
    Exact to about 1e-7, which is enough for moments, where rare values hardly count, and much faster than in logs.
    """
    logits, means, log_scales = parameters.view(len(parameters), 3, -1).unbind(1)
    weights, inverse = F.softmax(logits, 1), torch.exp(-log_scales.clamp(min=-7.0))
    # the 255 edges between levels, on the scale of the parameters, where level v is v / 127.5 - 1
    edges = (torch.arange(255, device=parameters.device) + 0.5) / 127.5 - 1.0
    below = torch.zeros(len(parameters), 257, device=parameters.device)
    below[:, 256] = 1.0
    inner, shares = below[:, 1:256], torch.empty(len(parameters), 255, device=parameters.device)
    offsets = means * inverse
    for k in range(weights.shape[1]):
        torch.mul(edges, inverse[:, k : k + 1], out=shares).sub_(offsets[:, k : k + 1]).sigmoid_()
        inner.addcmul_(weights[:, k : k + 1], shares)
    return below.diff(dim=1).clamp_(min=0.0)
