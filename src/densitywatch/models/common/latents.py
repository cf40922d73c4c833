"""Latents drawn from a standard normal prior."""

from __future__ import annotations

import torch
from torch import Tensor


def standard_normal(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers on `device`.

    They are drawn on the generator's device: a generator on the CPU gives every device the same numbers.
    """
    drawn_on = device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=drawn_on).to(device)
