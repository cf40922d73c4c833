"""The split into means and differences loses nothing, and a mean says which differences there can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from densitywatch.models.lossless_split import Split, grouped, plan, spread, take_apart, ungrouped


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 11), (1, 7), (13, 2), (17, 5)])
def test_the_splits_lose_nothing_at_any_size(height: int, width: int) -> None:
    x = images(3, 3, height, width)
    splits = plan(height, width, 4)
    image, parts = take_apart(x, splits)
    assert max(image.shape[2:]) <= 4
    for split, (means, d) in zip(reversed(splits), reversed(parts), strict=True):
        assert torch.equal(image, means)
        assert (d.abs() <= split.reach(means)).all()
        image = split.join(means, d)
    assert torch.equal(image, x.int())


@pytest.mark.parametrize("dim", [2, 3])
def test_all_pairs_of_values_and_only_those_are_within_reach_of_their_mean(dim: Any) -> None:
    split = Split(0, dim, 2)
    values = torch.arange(256)
    a, b = torch.meshgrid(values, values, indexing="ij")
    pairs = torch.stack([a.flatten(), b.flatten()], 1)
    pairs = pairs.view(-1, 1, 2, 1) if dim == 2 else pairs.view(-1, 1, 1, 2)
    means, d = (part.flatten() for part in split.parts(pairs))
    reach = split.reach(torch.arange(256).view(-1, 1, 1, 1)).flatten()
    for m in range(256):
        there = sorted(d[means == m].tolist())
        assert there == list(range(-int(reach[m]), int(reach[m]) + 1))
    assert int((2 * reach + 1).sum()) == 256**2


def test_means_round_down_and_up_in_turn_so_that_they_do_not_drift() -> None:
    x = images(4, 1, 64, 64)
    image, _ = take_apart(x, plan(64, 64, 2))
    assert abs(image.float().mean().item() - x.float().mean().item()) < 0.1


def test_an_odd_last_column_is_its_own_mean_and_its_difference_is_known() -> None:
    x = images(2, 1, 4, 5)
    split = Split(0, 3, 5)
    means, d = split.parts(x.int())
    assert torch.equal(means[..., -1], x[..., -1].int())
    assert not d[..., -1].any()
    assert not split.reach(means)[..., -1].any()
    assert split.reach(means)[..., 0].all()


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
def test_groups_come_back_as_they_were(height: int, width: int) -> None:
    x = images(2, 3, height, width)
    assert torch.equal(ungrouped(grouped(x), height, width), x)


def test_a_pairs_nats_lie_on_its_two_pixels_and_an_odd_last_ones_on_one() -> None:
    nats = torch.tensor([[[2.0, 6.0, 5.0]]])
    assert spread(nats, Split(0, 3, 5)).tolist() == [[[1.0, 1.0, 3.0, 3.0, 5.0]]]
    assert spread(nats.mT, Split(0, 2, 6)).flatten().tolist() == [1.0, 1.0, 3.0, 3.0, 2.5, 2.5]
