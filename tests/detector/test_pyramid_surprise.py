"""Windows of surprise at the levels of a pyramid, against sums that are written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.pyramid_surprise import (
    Level,
    place_maps,
    pyramid_surprise,
    to_places,
    unusual,
    window_sums,
    windows_of,
)
from densitywatch.errors import ModelError
from densitywatch.models.pixelcnn_pyramid import PixelCNNPyramid, Settings


def model_of(channels: int = 1, size: int = 16) -> Any:
    torch.manual_seed(2)
    settings = Settings(
        coarsest=4, coarse_channels=4, coarse_dilations=(1,), context_channels=5, context_layers=1, channels=3
    )
    return PixelCNNPyramid(settings, channels=channels, size=size, classes=0).eval()


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (21, 14)])
def test_levels_hold_every_nat_of_the_image_and_say_how_many_pixels_a_value_covers(
    channels: int, height: int, width: int
) -> None:
    model, x = model_of(channels), images(2, channels, height, width)
    with torch.no_grad():
        levels, coarse = pyramid_surprise(model, x), pyramid_surprise(model, x, 1)
        nats = -model.log_prob(x)
    assert torch.allclose(sum(level.surprise.sum((1, 2)) for level in levels), nats, rtol=1e-4)
    assert len(coarse) == 3, "two splits and the coarsest means"
    for level, same in zip(coarse, levels[-3:], strict=True):
        assert level.scale == same.scale
        assert torch.equal(level.expected, same.expected)
    halvings = 2 if height == 16 else 3
    scales = [(1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)][: 2 * halvings]
    assert [level.scale for level in levels] == [*scales, scales[-1]]
    for level in levels:
        rows, columns = (math.ceil(side / scale) for side, scale in zip((height, width), level.scale, strict=True))
        assert level.surprise.shape == level.expected.shape == level.variance.shape == (2, rows, columns)


def test_an_image_that_is_small_enough_has_the_coarsest_means_alone() -> None:
    for levels in (None, 1):
        with torch.no_grad():
            (level,) = pyramid_surprise(model_of(), images(1, 1, 4, 3), levels)
        assert level.scale == (1, 1)
        assert level.surprise.shape == (1, 4, 3)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 4), (4, 3), (16, 16)])
def test_a_window_is_summed_around_each_place_as_far_as_the_image_goes(rows: int, columns: int) -> None:
    values = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(1))
    found = window_sums(values, rows, columns)
    for i in range(7):
        for j in range(9):
            top, left = max(0, i - rows // 2), max(0, j - columns // 2)
            inside = values[:, top : i - rows // 2 + rows, left : j - columns // 2 + columns]
            assert torch.allclose(found[:, i, j], inside.double().sum((1, 2)), atol=1e-5)


def test_surprise_is_counted_above_its_expectation_in_the_spread_of_the_sum() -> None:
    level = Level((2, 2), torch.full((1, 8, 8), 3.0), torch.full((1, 8, 8), 2.0), torch.full((1, 8, 8), 0.5))
    z = unusual(level, 8)  # 4 x 4 values
    assert z[0, 4, 4] == pytest.approx(16 / math.sqrt(16 * 0.5 + 1))
    assert z[0, 0, 0] == pytest.approx(4 / math.sqrt(4 * 0.5 + 1))
    certain = Level((1, 1), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3))
    assert (unusual(certain, 4) == 0).all()


def test_windows_hold_a_value_at_least() -> None:
    assert windows_of((1, 2), (4, 8, 16)) == [4, 8, 16]
    assert windows_of((8, 8), (4, 8, 16)) == [8, 16]
    assert windows_of((64, 128)) == [128]
    level = Level((64, 64), *torch.rand(3, 1, 2, 3))
    assert place_maps([level], (100, 150)).shape == (1, 1, 13, 19)


@pytest.mark.parametrize("scale", [(1, 2), (8, 8), (16, 16)])
def test_a_place_has_the_largest_value_that_lies_in_it(scale: tuple[int, int]) -> None:
    height, width = 37, 50
    h, w = (math.ceil(side / one) for side, one in zip((height, width), scale, strict=True))
    values = torch.randn(1, h, w, generator=torch.Generator().manual_seed(1))
    shape = (math.ceil(height / 8), math.ceil(width / 8))
    found = to_places(values, scale, shape)
    fine = values.repeat_interleave(scale[0], 1).repeat_interleave(scale[1], 2)[:, :height, :width]
    for i in range(shape[0]):
        for j in range(shape[1]):
            assert found[0, i, j] == fine[0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].max()


def test_a_map_is_highest_where_there_is_too_much_surprise() -> None:
    surprise, expected, variance = torch.ones(1, 64, 32), torch.ones(1, 64, 32), torch.ones(1, 64, 32)
    surprise[0, 12, 2] += 40.0  # pixel row 12, columns 4 and 5
    surprise[0, 40:44, 20:24] = 0.0
    maps = place_maps([Level((1, 2), surprise, expected, variance)], (64, 64), (4, 8))
    assert maps.shape == (1, 2, 8, 8)
    for one in maps[0]:
        assert divmod(int(one.argmax()), 8) == (1, 0)
        assert one[5, 5] <= 0, "too little is none"


def test_a_cache_reads_the_coarse_levels_once_and_no_finer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(), images(5, 1, 16, 16).numpy()
    read = []
    network = model.network
    monkeypatch.setattr(model, "network", lambda split: read.append(split.level) or network(split))
    cache = FeatureCache(x, Models(loaded={"pixelcnn_pyramid": model}), batch_size=2)
    maps = cache.pyramid("pixelcnn_pyramid")
    assert maps.shape == (5, 3, 2, 2)  # two splits and the coarsest means
    assert cache.pyramid("pixelcnn_pyramid") is maps
    assert read == [1] * 6, "of the levels 0 and 1, in three batches"


def test_a_model_without_levels_is_refused() -> None:
    with pytest.raises(ModelError, match="has no levels; take a model of kind pixelcnn_pyramid"):
        pyramid_surprise(torch.nn.Linear(1, 1), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
