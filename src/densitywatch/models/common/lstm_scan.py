"""An LSTM over the lines of an image, rows or diagonals, with its gradient written out.

Autograd would record some ten small operations a line and sum the weights' gradient line by line; written out, the
gradient takes half as many, works in place, and gets the weights' gradient from one product over all lines at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]  # dynamo would unroll the loop over lines
def lstm_scan(maps: Tensor, weight: Tensor, offsets: tuple[int, ...], *, diagonal: bool) -> Tensor:
    """States (D, H, W, B, K) of LSTMs that start from zeros and go over an image's lines, D of them side by side.

    maps: what the input gives to the gates input, forget, output, cell: (D, H, W, B, 4 K). A line is a row, or with
    `diagonal` the pixels (r, c) of one r + c. weight: (D, taps, K, 4 K). offsets: the taps' places on the line before,
    relative to a pixel's own, where a pixel's place is its column, or on a diagonal its row.
    """
    states: Tensor = LSTMScan.apply(maps, weight, offsets, diagonal)
    return states


def as_maps(lines: Tensor, diagonal: bool, w: int) -> Tensor:
    """Lines (S, D, P, B, K) seen as maps (D, H, W, B, K), without a copy: a skew is but a change of strides."""
    if not diagonal:
        return lines.transpose(0, 1)
    (_, d, h, b, k), (line, direction, place, image, one) = lines.shape, lines.stride()
    strides = (direction, line + place, line, image, one)
    return lines.as_strided((d, h, w, b, k), strides, lines.storage_offset())


class LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, offsets: tuple[int, ...], diagonal: bool) -> Tensor:
        d, h, w, b, k4 = maps.shape
        k, left, right = k4 // 4, -min(offsets), max(offsets)
        s, p = (h + w - 1, h) if diagonal else (h, w)
        spans = [(max(0, t - w + 1), min(h, t + 1)) if diagonal else (0, w) for t in range(s)]
        # tanh(a) = 2 sigmoid(2 a) - 1: one sigmoid serves all four gates, and it is the faster of the two on a CPU
        double = torch.ones(k4, dtype=maps.dtype, device=maps.device)
        double[3 * k :] = 2.0
        weight = weight.to(maps.dtype)
        doubled = weight * double
        gates = maps.new_empty(s, d, p, b, k4)
        torch.mul(maps, double, out=as_maps(gates, diagonal, w))
        states = maps.new_zeros(s + 1, d, left + p + right, b, k)  # line 0 and the margins stay zero
        cells = maps.new_zeros(s + 1, d, p, b, k)
        for t, (first, end) in enumerate(spans):
            for direction in range(d):
                gate = gates[t, direction, first:end].view(-1, k4)
                cell = cells[t + 1, direction, first:end].view(-1, k)
                state = states[t + 1, direction, left + first : left + end].view(-1, k)
                for tap, offset in enumerate(offsets):
                    seen = states[t, direction, left + first + offset : left + end + offset].view(-1, k)
                    gate.addmm_(seen, doubled[direction, tap])
                i, f, o, g = gate.sigmoid_().chunk(4, 1)
                g.mul_(2.0).sub_(1.0)
                torch.mul(i, g, out=cell).addcmul_(f, cells[t, direction, first:end].view(-1, k))
                torch.mul(cell, 2.0, out=state).sigmoid_().mul_(2.0).sub_(1.0).mul_(o)
        ctx.save_for_backward(gates, cells, states, weight)
        ctx.offsets, ctx.spans, ctx.diagonal, ctx.w = offsets, spans, diagonal, w
        return as_maps(states[1:, :, left : left + p], diagonal, w).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gates, cells, states, weight = ctx.saved_tensors
        offsets, spans = ctx.offsets, ctx.spans
        s, d, p, _, k4 = gates.shape
        k, left = k4 // 4, -min(offsets)
        transposed = weight.transpose(2, 3).contiguous()
        d_lines, d_states, d_cells = torch.zeros_like(gates), torch.zeros_like(states), torch.zeros_like(cells[0])
        as_maps(d_states[1:, :, left : left + p], ctx.diagonal, ctx.w).copy_(grad)
        for t in reversed(range(s)):
            first, end = spans[t]
            for direction in range(d):
                gate = gates[t, direction, first:end].view(-1, k4)
                d_gate = d_lines[t, direction, first:end].view(-1, k4)
                i, f, o, g = gate.chunk(4, 1)
                d_i, d_f, d_o, d_g = d_gate.chunk(4, 1)
                d_state = d_states[t + 1, direction, left + first : left + end].view(-1, k)
                d_cell = d_cells[direction, first:end].view(-1, k)
                squashed = torch.mul(cells[t + 1, direction, first:end].view(-1, k), 2.0).sigmoid_().mul_(2.0).sub_(1.0)
                # d tanh(c) = 1 - tanh(c)^2, d sigmoid(a) = sigmoid(a) - sigmoid(a)^2
                torch.mul(d_state, squashed, out=d_o)
                flow = d_state.mul_(o)
                d_cell.add_(flow).sub_(flow.mul_(squashed).mul_(squashed))
                torch.mul(d_cell, g, out=d_i)
                torch.mul(d_cell, cells[t, direction, first:end].view(-1, k), out=d_f)
                sigmoids = gate[:, : 3 * k]
                d_gate[:, : 3 * k].mul_(torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1.0))
                torch.mul(d_cell, i, out=d_g)
                d_g.sub_(torch.mul(d_g, g).mul_(g))
                d_cell.mul_(f)
                for tap, offset in enumerate(offsets):
                    seen = d_states[t, direction, left + first + offset : left + end + offset].view(-1, k)
                    seen.addmm_(d_gate, transposed[direction, tap])
        d_weight = torch.empty_like(weight)
        for direction in range(d):
            flat = d_lines[:, direction].reshape(-1, k4)
            for tap, offset in enumerate(offsets):
                seen = states[:-1, direction, left + offset : left + offset + p].reshape(-1, k)
                torch.mm(seen.t(), flat, out=d_weight[direction, tap])
        return as_maps(d_lines, ctx.diagonal, ctx.w), d_weight, None, None
