"""Where torch.compile is used, and the plain form elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densitywatch.params import DeviceParams


def should_compile(device: DeviceParams) -> bool:
    """Whether torch.compile is to be used: as params say, or where a C++ compiler (CPU) or Triton (CUDA) is found."""
    if device.compile != "auto":
        return device.compile
    if torch.cuda.is_available() and device.accelerator in ("auto", "cuda"):
        return torch.utils._triton.has_triton()
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled for the shapes of its first call; where the compiler turns out not to work, as it is."""
    torch._dynamo.config.suppress_errors = True
    fast: Callable[..., Any] = torch.compile(function, dynamic=False)
    return fast


def compiled_for_batches(function: Callable[..., Tensor], size: int) -> Callable[..., Tensor]:
    """`function(x, ...)`, compiled for batches of `size`; any other batch, such as the last, takes the plain form."""
    fast = compiled(function)
    return lambda x, *others: (fast if len(x) == size else function)(x, *others)
