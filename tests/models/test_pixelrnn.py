"""PixelRNN: which pixels each recurrence sees."""

from __future__ import annotations

import pytest
import torch

from densitywatch.models.pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM, Settings


def seen(layer: RowLSTM | DiagonalBiLSTM, size: int, i: int, j: int) -> set[tuple[int, int]]:
    x = torch.randn(size, size, 1, 6, dtype=torch.float64, requires_grad=True)
    image = torch.zeros(size, size, 1, 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(x, image, None)[i, j].sin().sum(), x)
    return {(r, c) for r, c in (gradient.abs().sum((2, 3)) > 0).nonzero().tolist()}


def test_one_diagonal_layer_sees_everything_before_a_pixel_and_nothing_after() -> None:
    torch.manual_seed(0)
    layer = DiagonalBiLSTM(3, 1, 0).double()
    for i, j in [(0, 0), (2, 1), (3, 4), (4, 0)]:
        before = {(r, c) for r in range(5) for c in range(5) if r * 5 + c <= i * 5 + j}
        assert seen(layer, 5, i, j) == before


def test_one_row_layer_sees_the_triangle_above_a_pixel_and_its_row_so_far() -> None:
    torch.manual_seed(0)
    layer = RowLSTM(3, 1, 0).double()
    for i, j in [(0, 2), (2, 1), (3, 4)]:
        # each row's input reaches one column to the left, and each row up one column more to both sides
        triangle = {(r, c) for r in range(i + 1) for c in range(5) if j - (i - r) - 1 <= c <= j + (i - r)}
        assert seen(layer, 5, i, j) == triangle


@pytest.mark.parametrize("recurrence", ["row_lstm", "diagonal_bilstm"])
def test_the_border_is_told_from_a_pixel_of_the_middle_grey(recurrence: str) -> None:
    torch.manual_seed(0)
    settings = Settings.model_validate({"recurrence": recurrence, "channels": 4, "layers": 1})
    model = PixelRNN(settings, channels=1, size=9, classes=0).double()
    features = model.features(torch.full((1, 1, 9, 9), 127.5, dtype=torch.float64))
    assert (features[0, :, 0, 4] - features[0, :, 5, 4]).abs().max() > 1e-3


def test_one_diagonal_layer_leaves_no_blind_spot_in_the_image() -> None:
    torch.manual_seed(0)
    model = PixelRNN(Settings(channels=3, layers=1), channels=1, size=6, classes=0).double()
    x = (torch.rand(1, 1, 6, 6, dtype=torch.float64) * 255).requires_grad_()
    features = model.features(x)
    for i, j in [(0, 3), (3, 0), (4, 2), (5, 5)]:
        (gradient,) = torch.autograd.grad(features[0, :, i, j].sin().sum(), x, retain_graph=True)
        assert (gradient.flatten().abs() > 0).nonzero().flatten().tolist() == list(range(i * 6 + j))
