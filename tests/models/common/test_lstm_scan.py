"""The LSTM over lines: its states and its gradient are those of the plain one, and the skew is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densitywatch.models.common.lstm_scan import as_maps, lstm_scan


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
