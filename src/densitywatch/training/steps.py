"""Optimisers, the learning-rate schedule and one step of likelihood training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from densitywatch.params import TrainingParams


def make_optimizers(model: nn.Module, training: TrainingParams) -> dict[str, Optimizer]:
    """One optimiser, or two where generator and discriminator play against each other (two time scales)."""

    def adamw(part: nn.Module, learning_rate: float) -> AdamW:
        optimizer = AdamW(
            part.parameters(),
            lr=learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
        )
        for group in optimizer.param_groups:
            group["peak"] = learning_rate
        return optimizer

    if hasattr(model, "discriminator"):
        second = training.discriminator_learning_rate or training.learning_rate
        return {
            "generator": adamw(model.generator, training.learning_rate),
            "discriminator": adamw(model.discriminator, second),
        }
    return {"model": adamw(model, training.learning_rate)}


def schedule(step: int, training: TrainingParams) -> float:
    """The share of the peak learning rate at `step`: linear warm-up, then a cosine down to `final_learning_rate`."""
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    end = training.final_learning_rate
    return warm * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * step / training.steps)))


def set_learning_rate(optimizers: dict[str, Optimizer], share: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]


def likelihood_step(
    fabric: Any,
    model: Any,
    optimizers: dict[str, Optimizer],
    x: Tensor,
    labels: Tensor | None,
    training: TrainingParams,
) -> dict[str, Tensor]:
    """One step down the gradient of `model.loss`; returns the scalars to log, `loss` among them."""
    optimizer = optimizers["model"]
    loss, logs = model.loss(x, labels)
    fabric.backward(loss)
    norm = clip_gradients(model, training.gradient_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **logs, "gradient_norm": norm}


def clip_gradients(part: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradients of `part` down to a norm of at most `limit`; returns the norm they had."""
    return torch.nn.utils.clip_grad_norm_(part.parameters(), math.inf if limit is None else limit)
