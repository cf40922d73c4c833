"""Likelihood of the test images in bits per dimension: exact where there is a density, a bound where there is an ELBO.

bits/dim = -log2 p(x) / (C * H * W), where p is of the discrete 8-bit image. It is the length of the best code that the
model gives, in bits for each number of the image. Smaller is better; 8 is no compression at all. An ELBO or importance
bound is a lower bound on log p(x), so it gives an upper bound on bits/dim, and is always named as a bound.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densitywatch.data.reading import images_within
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.context import Context, Figure, Metric, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import (
    Bounded,
    BoundTerms,
    DensityAndCode,
    ExactDensity,
    ImportanceBounded,
    LabelDensity,
    PixelwiseDensity,
    takes_labels,
)
from densitywatch.pages import charts, pictures

SHOWN = 8


def exact_likelihood(context: Context) -> Result | None:
    """Mean bits/dim with its standard error, its histogram, and maps of where in an image the bits are spent.

    Model: `log_prob(x) -> (B,)` nats, and for the maps `log_prob_map(x) -> (B, H, W)` nats. A conditional density gets
    two figures: `bits_per_dim` of its mixture over equally likely labels, which compares with other models, and
    `bits_per_dim_given_label`, given the right label.
    """
    if not isinstance(context.model, ExactDensity):
        return None
    by_label = takes_labels(context.model) and isinstance(context.model, LabelDensity)
    nats, labels, speed = _score(context, by_label=by_label)
    metrics: dict[str, Metric] = {"score_images_per_second": speed}
    if by_label:
        context.shared["test_log_prob_by_label"] = nats
        if (labels >= 0).all():
            given = to_bits(nats[np.arange(len(nats)), labels], context.dimensions)
            metrics["bits_per_dim_given_label"] = float(given.mean())
        # p(x) = sum_y p(x|y) / classes
        nats = np.logaddexp.reduce(nats, axis=1) - math.log(nats.shape[1])
    context.shared["test_log_prob"] = nats
    bits = to_bits(nats, context.dimensions)
    _refuse_nan(context, "bits/dim", bits)
    metrics |= with_error("bits_per_dim", bits)
    write_whole(context.out / "bits_per_dim.svg", charts.histogram(bits, title="bits/dim of a test image"))
    figures = [
        Figure(
            "bits_per_dim.svg",
            "Bits per dimension",
            f"{len(bits):,} test images; the line marks the mean, {bits.mean():.3f}.",
            alt=f"Histogram from {bits.min():.2f} to {bits.max():.2f} bits/dim with its mean at {bits.mean():.3f}",
        )
    ]
    if isinstance(context.model, PixelwiseDensity):
        figures.append(_surprise(context, bits))
    return Result(metrics, figures)


def bounds(context: Context) -> Result | None:
    """Upper bounds on bits/dim: from the ELBO, with its two terms apart, and from the importance-weighted bound.

        log p(x) >= E[log mean_k p(x, z_k) / q(z_k|x)]      K draws z_k of q(z|x); with K = 1 it is the ELBO

    Model: `elbo_terms(x) -> (reconstruction, kl)` or `elbo(x)`, and `importance_bound(x, samples)`; (B,) nats. A model
    with an exact density needs no bounds and is left out.
    """
    model = context.model
    if isinstance(model, ExactDensity) or not isinstance(model, Bounded | BoundTerms):
        return None
    limits = context.params.evaluate
    parts: list[np.ndarray] = []
    started = time.perf_counter()
    for x, _ in context.test_batches():
        if isinstance(model, BoundTerms):
            reconstruction, kl = model.elbo_terms(x)
            parts.append(_numpy(torch.stack([reconstruction, -kl])))
        else:
            parts.append(_numpy(model.elbo(x)[None]))
    seconds = time.perf_counter() - started
    terms = np.concatenate(parts, 1)  # (1, N), or (2, N) of reconstruction and -KL: the ELBO is the sum
    elbo = to_bits(terms.sum(0), context.dimensions)
    _refuse_nan(context, "the ELBO", elbo)
    metrics = with_error("elbo_bits_per_dim", elbo) | {"score_images_per_second": len(elbo) / seconds}
    if len(terms) == 2:
        metrics["elbo_reconstruction_bits_per_dim"] = float(to_bits(terms[0], context.dimensions).mean())
        metrics["elbo_kl_bits_per_dim"] = float(to_bits(terms[1], context.dimensions).mean())
    write_whole(context.out / "elbo.svg", charts.histogram(elbo, title="ELBO of a test image, bits/dim"))
    figures = [
        Figure(
            "elbo.svg",
            "ELBO: an upper bound on bits/dim",
            f"{len(elbo):,} test images; the line marks the mean, {elbo.mean():.3f}.",
            alt=f"Histogram from {elbo.min():.2f} to {elbo.max():.2f} bits/dim with its mean at {elbo.mean():.3f}",
        )
    ]
    if isinstance(model, ImportanceBounded):
        nats = [
            _numpy(model.importance_bound(x, limits.importance_samples))
            for x, _ in context.test_batches(limits.importance_images)
        ]
        tight = to_bits(np.concatenate(nats), context.dimensions)
        _refuse_nan(context, "the importance-weighted bound", tight)
        metrics |= with_error("iwae_bits_per_dim", tight)
        metrics |= {"iwae_samples": limits.importance_samples, "iwae_images": len(tight)}
    return Result(metrics, figures)


def to_bits(nats: np.ndarray, dimensions: int) -> np.ndarray:
    """Log-likelihoods in nats as bits per dimension. The sign changes: smaller is better."""
    return -nats / (dimensions * math.log(2))


def with_error(key: str, values: np.ndarray) -> dict[str, Metric]:
    """The mean of `values` (N,) under `key`, and its standard error where there is more than one value."""
    error = {f"{key}_stderr": standard_error(values)} if len(values) > 1 else {}
    return {key: float(values.mean()), **error}


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of `values` (N,), N at least 2."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _score(context: Context, *, by_label: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Nats (N,) or (N, classes) in float64, labels (N,), and images per second of the model."""
    model: Any = context.model
    probed = len(context.info.class_names) > 1
    nats, labels, codes, took = [], [], [], []
    kept = 0
    for x, y in context.test_batches():
        started = time.perf_counter()
        if by_label:
            nats.append(_numpy(model.log_prob_by_label(x)))
        elif isinstance(model, DensityAndCode):
            log_prob, code = model.log_prob_and_code(x)
            nats.append(_numpy(log_prob))
            # the linear probe needs the features of the same images, as many as fit into memory
            if probed and kept < images_within(context.test_count(), 4 * code[0].numel()):
                codes.append(code.float().cpu().numpy())
                kept += len(code)
        else:
            nats.append(_numpy(model.log_prob(x)))
        took.append((len(x), time.perf_counter() - started))
        labels.append(y.cpu().numpy())
    if codes:
        context.shared["test_codes"] = np.concatenate(codes)
    timed = took[1:] or took  # a compiled model is compiled in the first batch
    speed = sum(count for count, _ in timed) / sum(seconds for _, seconds in timed)
    return np.concatenate(nats), np.concatenate(labels), speed


def _surprise(context: Context, bits: np.ndarray) -> Figure:
    """The least and the most likely test images, each above its map of bits per pixel, all maps on one scale."""
    model: Any = context.model
    order = np.argsort(bits, kind="stable")
    count = min(SHOWN, len(bits))
    chosen = np.concatenate([order[::-1][:count], order[:count]])
    images = context.test_images(chosen)
    given = []
    if "test_log_prob_by_label" in context.shared:  # for a conditional density, the map of the likeliest label
        likeliest = context.shared["test_log_prob_by_label"][chosen].argmax(1)
        given = [torch.from_numpy(likeliest).to(context.device)]
    maps = _numpy(-model.log_prob_map(torch.from_numpy(np.array(images)).to(context.device), *given)) / math.log(2)
    top = float(np.quantile(maps, 0.995))
    coloured, images = pictures.heat(maps, top), pictures.as_rgb(images)
    sheet = np.concatenate([images[:count], coloured[:count], images[count:], coloured[count:]])
    write_whole(context.out / "surprise.png", pictures.grid(sheet, count))
    return Figure(
        "surprise.png",
        "Where the surprise sits",
        f"The least and the most likely test images, from {bits[chosen[0]]:.2f} and {bits[order[0]]:.2f} bits/dim on,"
        f" above the bits that each pixel costs given the pixels before it: black 0, brightest {top:.1f} and more.",
        rows=("least likely", "bits a pixel", "most likely", "bits a pixel"),
    )


def _refuse_nan(context: Context, what: str, bits: np.ndarray) -> None:
    if bad := int((~np.isfinite(bits)).sum()):
        raise ModelError(
            f"{context.name}: {what} is not a finite number for {bad} of {len(bits)} test images; train the model again"
            " (lower learning rate?)"
        )


def _numpy(values: Tensor) -> np.ndarray:
    """A tensor as a float64 array: a sum over ten thousand images keeps its digits."""
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array
