from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from densitywatch.pages import pictures


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_grid_keeps_every_pixel_and_its_order() -> None:
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2)
    sheet = opened(pictures.grid(images, 2, cell=2))
    assert sheet.shape == (2 + 2 + 2, 2 + 2 + 2, 4)
    assert (sheet[:2, :2, 0] == images[0, 0]).all()
    assert (sheet[:2, 4:, 1] == images[1, 0]).all()
    assert (sheet[4:, :2, 2] == images[2, 0]).all()
    assert (sheet[4:, 4:, 3] == 0).all(), "the place without an image is clear"


def test_colours_stay_what_they_are() -> None:
    red = np.zeros((1, 3, 1, 1), np.uint8)
    red[0, 0] = 200
    assert opened(pictures.grid(red, 1, cell=1))[0, 0].tolist() == [200, 0, 0, 255]


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    assert opened(pictures.grid(np.zeros((1, 1, 28, 28), np.uint8), 1)).shape == (56, 56, 4)
    assert opened(pictures.grid(np.zeros((1, 1, 200, 200), np.uint8), 1)).shape == (200, 200, 4)


def test_heat_is_brighter_where_values_are_higher_and_stops_at_the_top() -> None:
    maps = np.linspace(-1, 12, 50).reshape(1, 1, 50)
    light = pictures.heat(maps, top=10.0)[0].astype(float).mean(0)[0]
    assert (np.diff(light) >= -1e-9).all()
    assert light[0] == pictures.HEAT[0].mean()
    assert light[-1] == pictures.HEAT[-1].mean()


def test_a_map_of_zeros_is_black() -> None:
    assert pictures.heat(np.zeros((1, 2, 2)), top=0.0).max() <= 4


def test_a_map_over_a_picture_is_clear_where_nothing_is_unusual_and_never_hides_the_picture() -> None:
    over = opened(pictures.map_over(np.array([[0.0, 0.2, 0.7, 1.0], [np.nan, -1.0, 9.0, np.inf]])))
    assert over.shape == (2, 4, 4)
    assert over[0, 0].tolist() == over[1, 0].tolist() == over[1, 1].tolist() == [0, 0, 0, 0]
    alpha = over[..., 3].astype(int)
    assert (np.diff(alpha[0]) > 0).all()
    assert alpha.max() == alpha[1, 2] == round(255 * pictures.DENSEST)


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask that an outline is of: a place is marked when an odd number of vertical borders is to its left."""
    mask = np.zeros(shape, dtype=bool)
    for x, y, length in re.findall(r"M(\d+) (\d+)v(\d+)", path):
        mask[int(y) : int(y) + int(length), int(x) :] ^= True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_goes_round_the_marked_places_and_no_others(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 13)) < 0.4
    path = pictures.outline(mask)
    assert (filled(path, mask.shape) == mask).all()
    # the horizontal borders alone say the same
    only = "".join(re.findall(r"M\d+ \d+h\d+", path))
    only = re.sub(r"M(\d+) (\d+)h(\d+)", r"M\2 \1v\3", only)
    assert (filled(only, mask.T.shape) == mask.T).all()


def test_outlines_are_short_and_the_edge_of_the_picture_is_a_border() -> None:
    assert pictures.outline(np.zeros((4, 4), dtype=bool)) == ""
    assert pictures.outline(np.ones((2, 3), dtype=bool)) == "M0 0h3M0 2h3M0 0v2M3 0v2"
