"""How a score trains a small network for itself, and how the network's weights become arrays and come back."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from densitywatch.arrays import Arrays


def train_network(model: nn.Module, loss: Callable[[], Tensor], steps: int, learning_rate: float) -> None:
    """`steps` of AdamW on `loss()`, which draws its own batch; leaves the model in eval mode.

    The learning rate rises over at most 30 steps and falls to zero along a half cosine.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    warm = max(1, min(30, steps // 5))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def weights_of(model: nn.Module) -> Arrays:
    """Copies of the model's weights by name."""
    return {name: value.detach().contiguous().numpy().copy() for name, value in model.state_dict().items()}


def restore_weights(model: nn.Module, weights: Arrays) -> None:
    """Load what `weights_of` returned into a model of the same shape, in eval mode."""
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    model.eval()
