"""The kinds of outliers in words, as tables show them."""

from __future__ import annotations

KINDS = {
    "mnist": "MNIST digits",
    "hflip": "horizontal flip",
    "vflip": "vertical flip",
    "rot90": "rotation by 90°",
    "rot180": "rotation by 180°",
    "rot270": "rotation by 270°",
    "invert": "inversion",
    "uniform_noise": "uniform noise",
    "constant": "an image of one shade",
    "patch": "a patch from elsewhere",
    "scar": "a scar",
    "scratch": "a scratch",
    "blurred_part": "a blurred part",
    "erased_part": "an erased part",
    "brightness_of_a_part": "a part lighter or darker",
}
"""Kind of outlier -> words; the panels' foreign images first, then defects (data/defects.py)."""


def in_words(kind: str) -> str:
    """The kind in words; the key itself for one that has none."""
    return KINDS.get(kind, kind.replace("_", " "))
