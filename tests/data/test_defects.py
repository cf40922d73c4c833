"""Defects made of a set's own images: they show, they are as small as declared, and they repeat."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from densitywatch.data.defects import AREA, DEFECTS, LINE_AREA, spoiled, with_defects


@cache
def textured(count: int, channels: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images of smooth blotches with a fine grain."""
    noise = np.random.default_rng(seed).normal(size=(2, count, channels, size, size))
    blotches = ndimage.gaussian_filter(noise[0], (0, 0, size / 12, size / 12))
    return np.clip(120 + 40 * blotches / blotches.std() + 12 * noise[1], 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("count", "channels", "size"), [(40, 1, 16), (40, 3, 28), (12, 3, 128), (1, 1, 1024)])
@pytest.mark.parametrize("kind", DEFECTS)
def test_every_defect_changes_its_image_within_the_declared_share(
    kind: str, count: int, channels: int, size: int
) -> None:
    images = textured(count, channels, size)
    before = images.copy()
    copies, rows = spoiled(images, kind, seed=1)
    assert (images == before).all(), "the originals stay"
    assert copies.dtype == np.uint8
    assert len(copies) == len(rows) == count
    changed = (copies != images[rows]).any(1)
    shares = changed.mean((1, 2))
    assert shares.min() > 0.001
    assert shares.max() <= DEFECTS[kind][1]
    levels = np.abs(copies.astype(int) - images[rows]).max(1)
    assert min(part[where].mean() for part, where in zip(levels, changed, strict=True)) >= 4
    for where in changed:  # one place, not spread over the image
        rows_of, columns_of = np.nonzero(where)
        assert np.ptp(rows_of) * np.ptp(columns_of) <= 0.7**2 * size**2


def test_rectangles_cover_two_to_ten_percent_and_lines_are_thin() -> None:
    images = textured(60, 1, 64)
    for kind in ("patch", "blurred_part", "erased_part"):
        shares = (spoiled(images, kind, 3)[0] != images).any(1).mean((1, 2))
        assert 0.8 * AREA[0] <= shares.min()
        assert shares.max() <= AREA[1] == 0.1
    for kind in ("scar", "scratch"):
        assert (spoiled(images, kind, 3)[0] != images).any(1).mean((1, 2)).max() <= LINE_AREA < AREA[1]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    images = textured(6, 3, 32)
    one, again, other = with_defects(images, 5), with_defects(images, 5), with_defects(images, 6)
    assert list(one) == list(DEFECTS)
    for kind in DEFECTS:
        assert (one[kind] == again[kind]).all()
        assert (one[kind] != other[kind]).any()


def test_what_would_not_show_is_no_defect() -> None:
    flat = np.full((5, 1, 32, 32), 90, np.uint8)
    assert with_defects(flat, 0) == {}
    half = np.concatenate([flat, textured(5, 1, 32)])
    _, rows = spoiled(half, "blurred_part", 0)
    assert rows.tolist() == [5, 6, 7, 8, 9], "nothing can be blurred in an even surface"


def test_a_patch_is_cut_from_the_set() -> None:
    """Images of two shades each: what is pasted has the shades of the image itself or of another."""
    rng = np.random.default_rng(0)
    shades = np.arange(10, 250, 20).reshape(6, 2)
    images = np.stack([rng.choice(pair, (1, 24, 24)) for pair in shades]).astype(np.uint8)
    copies, rows = spoiled(images, "patch", 0)
    pasted = [set(np.unique(copy[copy != images[row]])) for copy, row in zip(copies, rows, strict=True)]
    assert all(any(found <= set(pair) for pair in shades.tolist()) for found in pasted)
    assert any(not found & set(shades[row]) for found, row in zip(pasted, rows, strict=True)), "some of another image"


def test_an_erased_part_has_the_mean_of_what_is_around_it() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 3, (20, 1, 64, 64)).copy()
    copies, rows = spoiled(ramp, "erased_part", 0)
    assert len(rows) > 0
    for copy in copies:
        where = copy[0] != ramp[0, 0]
        top, bottom = np.flatnonzero(where.any(1))[[0, -1]]
        inner = top > 0 and bottom < 63  # else the ring is open at the image's edge
        if inner:
            assert np.allclose(copy[0][where], 3 * (top + bottom) / 2, atol=3.1)
        assert len(np.unique(copy[0][where])) == 1


def test_a_blurred_part_has_less_of_the_grain() -> None:
    images = textured(20, 1, 64)
    copies, rows = spoiled(images, "blurred_part", 0)
    for copy, image in zip(copies[:, 0].astype(float), images[rows, 0].astype(float), strict=True):
        where = copy != image
        grain = [np.abs(ndimage.laplace(picture))[where].mean() for picture in (copy, image)]
        assert grain[0] < 0.6 * grain[1]


@pytest.mark.parametrize("size", [4, 8, 14])
def test_very_small_images_get_defects_of_at_least_one_pixel(size: int) -> None:
    images = textured(30, 1, size)
    for kind, (_, most) in DEFECTS.items():
        copies, rows = spoiled(images, kind, 0)
        touched = (copies != images[rows]).any(1).sum((1, 2))
        assert touched.min() >= 1, kind
        assert touched.max() <= max(1, most * size * size), kind


def test_a_set_of_one_image_is_its_own_other() -> None:
    image = textured(1, 3, 32)
    assert set(with_defects(image, 0)) == set(DEFECTS)
