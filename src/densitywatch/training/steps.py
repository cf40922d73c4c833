"""One step of training by a single loss: a likelihood, a bound, a reconstruction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from densitywatch.params import TrainingParams
from densitywatch.training.sharing import average_gradients


def likelihood_step(
    fabric: Any,
    model: Any,
    optimizers: dict[str, Optimizer],
    x: Tensor,
    labels: Tensor | None,
    training: TrainingParams,
) -> dict[str, Tensor]:
    """One step down the gradient of `model.loss`; returns the scalars to log, `loss` among them."""
    with fabric.autocast():  # Fabric itself does so for `forward` alone, not for other methods on one device
        loss, logs = model.loss(x, labels)
    fabric.backward(loss)
    average_gradients(fabric, model)
    norm = clip_gradients(model, training.gradient_clip)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **logs, "gradient_norm": norm}


def clip_gradients(part: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradients of `part` down to a norm of at most `limit`; returns the norm they had."""
    return torch.nn.utils.clip_grad_norm_(part.parameters(), math.inf if limit is None else limit)
