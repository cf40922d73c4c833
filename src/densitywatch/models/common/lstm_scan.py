"""An LSTM over the lines of an image, rows or diagonals, with its gradient written by hand.

Autograd would record about ten small operations a line and sum the weights' gradient line by line. Written by hand, the
gradient takes half as many, works in place, and computes the weights' gradient as one product over all lines at the
end.

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      a = maps of the pixel + sum over taps of W_tap h_before
    g = tanh(a_g)
    c = f c_before + i g
    h = o tanh(c)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]  # dynamo would unroll the loop over lines
def lstm_scan(maps: Tensor, weight: Tensor, offsets: tuple[int, ...], *, diagonal: bool) -> Tensor:
    """States h (D, H, W, B, K) of D LSTMs that start from zeros and go over an image's lines.

    maps: the input's share of the gates i, f, o, g before their sigmoids, (D, H, W, B, 4 K).
    weight: (D, taps, K, 4 K).
    offsets: the taps' places on the line before, relative to a pixel's own place.

    A line is a row, or with `diagonal` the pixels (r, c) of one r + c. A pixel's place on its line is its column, or on
    a diagonal its row.
    """
    states: Tensor = LSTMScan.apply(maps, weight, offsets, diagonal)
    return states


def as_maps(lines: Tensor, diagonal: bool, w: int) -> Tensor:
    """Lines (S, D, P, B, K) seen as maps (D, H, W, B, K), without a copy."""
    if not diagonal:
        return lines.transpose(0, 1)
    (_, d, h, b, k), (line, direction, place, image, one) = lines.shape, lines.stride()
    # the skew: pixel (r, c) is on line r + c at place r, so a row down is a line and a place further, a column a line
    strides = (direction, line + place, line, image, one)
    return lines.as_strided((d, h, w, b, k), strides, lines.storage_offset())


class LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, offsets: tuple[int, ...], diagonal: bool) -> Tensor:
        d, h, w, b, k4 = maps.shape
        k, left, right = k4 // 4, -min(offsets), max(offsets)
        s, p = (h + w - 1, h) if diagonal else (h, w)
        # the places of line t that are in the image: of a diagonal, the rows r with 0 <= t - r < w
        spans = [(max(0, t - w + 1), min(h, t + 1)) if diagonal else (0, w) for t in range(s)]
        # tanh(a) = 2 sigmoid(2 a) - 1: with a_g doubled, one sigmoid serves all four gates; it is faster than tanh on a
        # CPU
        double = torch.ones(k4, dtype=maps.dtype, device=maps.device)
        double[3 * k :] = 2.0
        weight = weight.to(maps.dtype)
        doubled = weight * double
        gates = maps.new_empty(s, d, p, b, k4)
        torch.mul(maps, double, out=as_maps(gates, diagonal, w))
        states = maps.new_zeros(s + 1, d, left + p + right, b, k)  # h; line 0 and the margins stay zero
        cells = maps.new_zeros(s + 1, d, p, b, k)  # c
        for t, (first, end) in enumerate(spans):
            for direction in range(d):
                gate = gates[t, direction, first:end].view(-1, k4)
                cell = cells[t + 1, direction, first:end].view(-1, k)
                state = states[t + 1, direction, left + first : left + end].view(-1, k)
                # a += W_tap h_before
                for tap, offset in enumerate(offsets):
                    seen = states[t, direction, left + first + offset : left + end + offset].view(-1, k)
                    gate.addmm_(seen, doubled[direction, tap])
                # i, f, o = sigmoid(a); g = tanh(a_g)
                i, f, o, g = gate.sigmoid_().chunk(4, 1)
                g.mul_(2.0).sub_(1.0)
                # c = i g + f c_before
                torch.mul(i, g, out=cell).addcmul_(f, cells[t, direction, first:end].view(-1, k))
                # h = o tanh(c)
                torch.mul(cell, 2.0, out=state).sigmoid_().mul_(2.0).sub_(1.0).mul_(o)
        ctx.save_for_backward(gates, cells, states, weight)
        ctx.offsets, ctx.spans, ctx.diagonal, ctx.w = offsets, spans, diagonal, w
        return as_maps(states[1:, :, left : left + p], diagonal, w).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """From dL/dh of every pixel to dL/dmaps and dL/dweight: the forward pass's lines, last line first."""
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
                # tanh(c), computed again: keeping it would take as much memory as the states
                squashed = torch.mul(cells[t + 1, direction, first:end].view(-1, k), 2.0).sigmoid_().mul_(2.0).sub_(1.0)
                # h = o tanh(c):  dL/do = dL/dh tanh(c),  dL/dc += dL/dh o (1 - tanh(c)^2)
                torch.mul(d_state, squashed, out=d_o)
                flow = d_state.mul_(o)
                d_cell.add_(flow).sub_(flow.mul_(squashed).mul_(squashed))
                # c = f c_before + i g:  dL/di = dL/dc g,  dL/df = dL/dc c_before
                torch.mul(d_cell, g, out=d_i)
                torch.mul(d_cell, cells[t, direction, first:end].view(-1, k), out=d_f)
                # through the sigmoids of i, f, o, whose derivative is s - s^2
                sigmoids = gate[:, : 3 * k]
                d_gate[:, : 3 * k].mul_(torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1.0))
                # g = tanh(a_g):  dL/da_g = dL/dc i (1 - g^2)
                torch.mul(d_cell, i, out=d_g)
                d_g.sub_(torch.mul(d_g, g).mul_(g))
                # to the line before:  dL/dc_before = dL/dc f,  dL/dh_before += dL/da W_tap^T
                d_cell.mul_(f)
                for tap, offset in enumerate(offsets):
                    seen = d_states[t, direction, left + first + offset : left + end + offset].view(-1, k)
                    seen.addmm_(d_gate, transposed[direction, tap])
        # dL/dW_tap = the sum over all lines of h_before^T dL/da, as one product
        d_weight = torch.empty_like(weight)
        for direction in range(d):
            flat = d_lines[:, direction].reshape(-1, k4)
            for tap, offset in enumerate(offsets):
                seen = states[:-1, direction, left + offset : left + offset + p].reshape(-1, k)
                torch.mm(seen.t(), flat, out=d_weight[direction, tap])
        return as_maps(d_lines, ctx.diagonal, ctx.w), d_weight, None, None
