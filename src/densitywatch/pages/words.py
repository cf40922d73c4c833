"""Keys and figures as text for people."""

from __future__ import annotations

import re
from typing import Any

_NAMES = {
    "bits per dim": "bits/dim",
    "elbo": "ELBO",
    "kl": "KL",
    "iwae": "importance bound",
    "mse": "MSE",
    "fid": "FID",
    "kid": "KID",
    "gan": "GAN",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "fpr": "FPR",
    "tpr": "TPR",
    "mlflow": "MLflow",
    "mnist": "MNIST",
    "fashion MNIST": "Fashion-MNIST",
    "stderr": "standard error",
    "of a quarter": "from a quarter of the pixels",
}

DASH = "–"


def readable(key: str) -> str:
    """A key of params or metrics as words: elbo_bits_per_dim -> ELBO bits/dim."""
    words = key.replace("_", " ")
    for plain, shown in _NAMES.items():
        words = re.sub(rf"\b{plain}\b", shown, words)
    return words[:1].upper() + words[1:]


def number(value: Any) -> str:
    """A figure with at most four significant digits, a whole number in full, text as it is, None as an en dash."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def share(value: float) -> str:
    """0.923 -> 92.3 %."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them: 12 ms, 3.4 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested mappings and lists as (key, value) pairs in order: {"a": {"b": 1}} -> [("a b", 1)]."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in flat(item, f"{name} {key}".strip())]
    if isinstance(value, list):
        if any(isinstance(item, dict | list) for item in value):
            return [pair for i, item in enumerate(value) for pair in flat(item, f"{name} {i + 1}".strip())]
        return [(name, ", ".join(number(item) for item in value) or None)]
    return [(name, value)]
