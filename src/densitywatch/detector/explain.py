"""Why an image was flagged, in words: which members score high, where it is unusual, what its texture is like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member import Member

HALVES = ("upper half", "lower half", "left half", "right half")
CONCENTRATED = 0.75
"""A half that holds this share of what is unusual is named."""
RARE = 0.02
"""A member is mentioned when fewer normal images than this share score as high."""
PLAIN, BUSY = 0.01, 0.99
"""Shares of normal images with a shorter compressed file, at which the texture is mentioned."""


def unusual_places(features: FeatureCache, density: str) -> Floats:
    """The share of surplus surprise in each of HALVES, (B, 4).

    The surplus of a pixel is the surprise beyond its expectation and one standard deviation, or 0.
    """
    surprise, expected, variance = features.surprise_statistics(density)
    return share_in_halves(np.maximum(surprise - expected - np.sqrt(variance), 0.0))


def share_in_halves(surplus: Floats) -> Floats:
    """The share of maps (B, H, W), none of them negative, that lies in each of HALVES, (B, 4)."""
    surplus = surplus.astype(np.float64)
    h, w = surplus.shape[1:]
    parts = (surplus[:, : h // 2], surplus[:, (h + 1) // 2 :], surplus[:, :, : w // 2], surplus[:, :, (w + 1) // 2 :])
    total = np.maximum(surplus.sum((1, 2)), 1e-9)
    return np.stack([part.sum((1, 2)) / total for part in parts], 1)


def fit_texture(validation: FeatureCache) -> Arrays:
    """Quantiles of the compressed length of normal images."""
    return {"quantiles": np.quantile(validation.webp_nats, np.linspace(0.0, 1.0, 201))}


def texture_rank(features: FeatureCache, fitted: Arrays) -> Floats:
    """The share of normal images whose compressed file is shorter, (B,): near 0 plain, near 1 busy."""
    return np.asarray(np.interp(features.webp_nats, fitted["quantiles"], np.linspace(0.0, 1.0, 201)))


def in_words(
    surprise: dict[str, float], members: Sequence[Member], places: Floats | None, texture: float, p_value: float
) -> str:
    """One or two sentences about one image.

    `surprise` is each member's -log P(a normal image scores as high), `places` the shares in HALVES, `texture` the
    share of normal images with a shorter compressed file.
    """
    rare = sorted(
        (m for m in members if surprise[m.name] > -np.log(RARE)), key=lambda m: surprise[m.name], reverse=True
    )
    phrases = [m.says for m in rare[:2]]
    if places is not None and rare:
        k = int(np.argmax(places))
        if places[k] >= CONCENTRATED:
            phrases.append(f"most of what is unexpected is in its {HALVES[k]}")
    if texture <= PLAIN:
        phrases.append("its texture is plainer than that of nearly all normal images")
    elif texture >= BUSY:
        phrases.append("its texture is busier than that of nearly all normal images")
    if not phrases:
        phrases.append("no single trait stands out" if p_value < 0.1 else "it looks like the normal images")
    sentence = "; ".join(phrases)
    return f"{sentence[0].upper()}{sentence[1:]}. {_share(p_value)}"


def _share(p_value: float) -> str:
    """The p-value as a share of normal images."""
    if p_value >= 0.1:
        return f"Of 100 normal images, about {100 * p_value:.0f} score as high."
    if p_value >= 0.001:
        return f"Of 1,000 normal images, at most about {max(1, round(1000 * p_value))} score as high."
    return "Hardly any normal image scores as high."
