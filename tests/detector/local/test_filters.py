"""Features of oriented filters: what they see and what they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densitywatch.detector.local.filters import DIRECTIONS, filter_maps


def wave(angle: float, period: float, phase: float = 0.0, size: int = 64) -> torch.Tensor:
    """A grey sine wave that rises in the direction `angle`, (1, 1, size, size)."""
    y, x = np.mgrid[:size, :size]
    values = 128 + 80 * np.sin(2 * np.pi * (x * math.cos(angle) + y * math.sin(angle)) / period + phase)
    return torch.from_numpy(np.round(values).astype(np.uint8))[None, None]


def finest(images: torch.Tensor) -> torch.Tensor:
    """Energies of the finest scale in the middle of the image, (DIRECTIONS,)."""
    return filter_maps(images)[0, 4 : 4 + DIRECTIONS, 2:-2, 2:-2].mean((1, 2))


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_a_wave_has_most_energy_in_its_own_direction(direction: int) -> None:
    assert int(finest(wave(math.pi * direction / DIRECTIONS, 3.6)).argmax()) == direction


def test_energy_does_not_depend_on_the_phase() -> None:
    one, other = finest(wave(0.0, 3.6)), finest(wave(0.0, 3.6, phase=1.3))
    assert abs(float(one[0] - other[0])) < 0.05


def test_a_flat_image_has_no_energy_and_one_shade() -> None:
    maps = filter_maps(torch.full((1, 1, 64, 64), 51, dtype=torch.uint8))
    torch.testing.assert_close(maps[:, :4], torch.full((1, 4, 8, 8), 0.2))
    assert float(maps[:, 4:].max()) < math.log(1.1e-3)


def test_a_coarser_wave_moves_its_energy_to_a_coarser_scale() -> None:
    scales = [
        int(filter_maps(wave(0.0, period))[0, 4:, 2:-2, 2:-2].mean((1, 2)).view(-1, DIRECTIONS)[:, 0].argmax())
        for period in (3.6, 7.2, 14.4)
    ]
    assert scales == [0, 1, 2]


@pytest.mark.parametrize(("channels", "dimensions"), [(1, 28), (3, 36)])
@pytest.mark.parametrize(("size", "places"), [(64, 8), (100, 13), (256, 32)])
def test_there_is_a_feature_for_every_8_pixels(channels: int, dimensions: int, size: int, places: int) -> None:
    images = torch.randint(0, 256, (2, channels, size, size), generator=torch.Generator().manual_seed(0))
    maps = filter_maps(images.to(torch.uint8))
    assert maps.shape == (2, dimensions, places, places)
    assert bool(torch.isfinite(maps).all())


def test_colour_counts_where_brightness_is_the_same() -> None:
    grey, red = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    red[:, 0], red[:, 1], red[:, 2] = 160, 70, 70
    away = (filter_maps(red) - filter_maps(grey)).abs().amax((0, 2, 3))
    assert float(away[:28].max()) < 1e-5
    assert float(away[28]) > 0.3
