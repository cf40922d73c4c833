"""Why an image was flagged, in plain words: what spoke, where it sits, what its texture is like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.detector.feature_cache import Readings
from densitywatch.detector.member import Fitted, Member

Floats = NDArray[np.floating[Any]]

HALVES = ("upper half", "lower half", "left half", "right half")
CONCENTRATED = 0.75
"""A half that holds this share of what is unusual is named."""
SPOKE = 0.02
"""A member speaks when fewer normal images than this share score as high."""


def unusual_places(seen: Readings, density: str) -> NDArray[np.float64]:
    """The share in each of HALVES, (B, 4), of surplus surprise: what exceeds the model's own expectation."""
    surprise, expected, variance = seen.surprise_statistics(density)
    surplus = np.maximum(surprise - expected - np.sqrt(variance), 0.0).astype(np.float64)
    h, w = surplus.shape[1:]
    parts = (surplus[:, : h // 2], surplus[:, (h + 1) // 2 :], surplus[:, :, : w // 2], surplus[:, :, (w + 1) // 2 :])
    total = np.maximum(surplus.sum((1, 2)), 1e-9)
    return np.stack([part.sum((1, 2)) / total for part in parts], 1)


def fit_texture(validation: Readings) -> Fitted:
    """Quantiles of the compressed length of normal images."""
    return {"quantiles": np.quantile(validation.webp_nats, np.linspace(0.0, 1.0, 201))}


def texture_rank(seen: Readings, fitted: Fitted) -> NDArray[np.float64]:
    """The share of normal images whose compressed file is shorter, (B,): near 0 plain, near 1 busy."""
    return np.asarray(np.interp(seen.webp_nats, fitted["quantiles"], np.linspace(0.0, 1.0, 201)))


def in_words(
    surprise: dict[str, float], members: Sequence[Member], places: Floats | None, texture: float, p_value: float
) -> str:
    """One or two sentences. `surprise`: of each member, minus log of the share of normal images that score as high."""
    spoke = sorted(
        (m for m in members if surprise[m.name] > -np.log(SPOKE)), key=lambda m: surprise[m.name], reverse=True
    )
    phrases = [m.says for m in spoke[:2]]
    if places is not None and spoke:
        k = int(np.argmax(places))
        if places[k] >= CONCENTRATED:
            phrases.append(f"most of what is unexpected sits in its {HALVES[k]}")
    if texture <= 0.01:
        phrases.append("its texture is plainer than that of nearly all normal images")
    elif texture >= 0.99:
        phrases.append("its texture is busier than that of nearly all normal images")
    if not phrases:
        phrases.append("no single trait stands out" if p_value < 0.1 else "it looks like the normal images")
    sentence = "; ".join(phrases)
    return f"{sentence[0].upper()}{sentence[1:]}. {_share(p_value)}"


def _share(p_value: float) -> str:
    if p_value >= 0.1:
        return f"Of 100 normal images, {100 * p_value:.0f} score as high."
    if p_value >= 0.001:
        return f"Of 1,000 normal images, {1000 * p_value:.0f} score as high."
    return "Hardly any normal image scores as high."
