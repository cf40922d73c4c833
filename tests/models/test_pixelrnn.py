"""What is PixelRNN's own: the scan and its written-out gradient, the skewed map, and what each recurrence sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densitywatch.models.common.lstm_scan import as_maps, lstm_scan
from densitywatch.models.pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM, Settings


def scan_by_autograd(maps: Tensor, weight: Tensor, offsets: tuple[int, ...], diagonal: bool) -> Tensor:
    """The same LSTM as one would write it: pixel by pixel, every gate by its own function."""
    directions, h, w, b, k4 = maps.shape
    zero = torch.zeros(b, k4 // 4, dtype=maps.dtype)
    all_states = []
    for d in range(directions):
        states: dict[tuple[int, int], Tensor] = {}
        cells: dict[tuple[int, int], Tensor] = {}
        for r in range(h):
            for c in range(w):
                z = maps[d, r, c]
                for tap, offset in enumerate(offsets):
                    # on the diagonal before: the row above in the same column, or the same row one column to the left
                    there = (r + offset, c - 1 - offset) if diagonal else (r - 1, c + offset)
                    z = z + states.get(there, zero) @ weight[d, tap]
                i, f, o, g = z.chunk(4, 1)
                before = cells.get((r, c - 1) if diagonal else (r - 1, c), zero)
                cells[r, c] = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
                states[r, c] = torch.sigmoid(o) * torch.tanh(cells[r, c])
        all_states.append(torch.stack([torch.stack([states[r, c] for c in range(w)]) for r in range(h)]))
    return torch.stack(all_states)


@pytest.mark.parametrize(
    ("d", "offsets", "diagonal"), [(1, (-1, 0, 1), False), (2, (-1, 0), True), (1, (0,), False), (1, (-1, 0), True)]
)
@pytest.mark.parametrize(("h", "w"), [(3, 4), (4, 3), (1, 3)])
def test_the_scan_and_its_gradient_are_those_of_the_lstm_written_plainly(
    d: int, offsets: tuple[int, ...], diagonal: bool, h: int, w: int
) -> None:
    torch.manual_seed(0)
    maps = torch.randn(d, h, w, 2, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(d, len(offsets), 3, 12, dtype=torch.float64, requires_grad=True)
    plain = scan_by_autograd(maps, weight, offsets, diagonal)
    scanned = lstm_scan(maps, weight, offsets, diagonal=diagonal)
    assert torch.allclose(scanned, plain, atol=1e-12)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * direction).sum(), (maps, weight))
    given = torch.autograd.grad((scanned * direction).sum(), (maps, weight))
    for want, got in zip(expected, given, strict=True):
        assert torch.allclose(got, want, atol=1e-12)


def test_the_skewed_map_has_each_diagonal_on_a_line() -> None:
    lines = torch.arange(6 * 2 * 4.0).view(6, 2, 4, 1, 1)
    maps = as_maps(lines, True, 3)
    assert maps.shape == (2, 4, 3, 1, 1)
    for r in range(4):
        for c in range(3):
            assert torch.equal(maps[:, r, c], lines[r + c, :, r])


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
