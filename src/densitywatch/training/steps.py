"""Optimisers, the learning-rate schedule and one step of likelihood training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from densitywatch.params import TrainingParams
from densitywatch.training.sharing import average_gradients


class KernelMuon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, orthogonalised, for matrices and for kernels, as matrices (out, rest).

    What differs from torch's own: kernels are taken as they lie in memory; the orthogonalisation is computed in float32
    (`orthogonal`), since bfloat16, which torch's computes in, is emulated by many processors, forty times slower.
    """

    MOMENTUM = 0.95

    def __init__(self, weights: list[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = as_matrix(weight.grad)
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
                momentum.lerp_(gradient, 1.0 - self.MOMENTUM)
                alike.setdefault(gradient.shape, []).append((weight, gradient.lerp(momentum, self.MOMENTUM)))
            for (out, rest), pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    as_matrix(weight).add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, out / rest)))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, out, rest) with singular vectors as they are and singular values of about 1 (0.7 to 1.2), float32.

    Five steps of a Newton-Schulz iteration, X <- (a + b G + c G^2) X with G = X X^T, whose coefficients (Jordan et al.
    2024) lift small singular values fast. All of the polynomials are of the first G, so they commute: they are gathered
    in the small G alone and X is multiplied once, a third of the arithmetic for an oblong matrix. A singular value
    below about 1e-4 of the norm is lost in float32's digits and stays small.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    gathered: Tensor | None = None
    for step in range(5):
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        gathered = polynomial if gathered is None else polynomial @ gathered
        if step < 4:
            gram = polynomial @ gram @ polynomial
    assert gathered is not None
    found: Tensor = gathered @ x
    return found if wide else found.mT


def as_matrix(weight: Tensor) -> Tensor:
    """(out, in) or a kernel (out, in, h, w) as the matrix (out, rest): a view where the memory allows it."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


def make_optimizers(model: Any, training: TrainingParams) -> dict[str, Optimizer]:
    """The optimisers of a model by name.

    Adversarial: `generator` and `discriminator`, AdamW with two time scales. Otherwise `model`, AdamW; and with
    `optimizer: muon` the weights of the layers between first and last move under `matrices`, the rest under `model`.
    """

    def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> AdamW:
        return AdamW(parameters, lr=learning_rate, betas=training.betas, weight_decay=training.weight_decay)

    if hasattr(model, "discriminator"):
        second = training.discriminator_learning_rate or training.learning_rate
        optimizers: dict[str, Optimizer] = {
            "generator": adamw(model.generator.parameters(), training.learning_rate),
            "discriminator": adamw(model.discriminator.parameters(), second),
        }
    elif training.optimizer == "muon":
        matrices = inner_weights(model)
        chosen = {id(weight) for weight in matrices}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        optimizers = {
            "model": adamw(rest, training.learning_rate),
            "matrices": KernelMuon(matrices, training.matrix_learning_rate),
        }
    else:
        optimizers = {"model": adamw(model.parameters(), training.learning_rate)}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def inner_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear and convolutional layers that read features and write features: Muon is not for the layers that
    touch pixels or distribution parameters, nor for embeddings, gains and biases."""
    outer = set(getattr(model, "OUTER_LAYERS", ()))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and name not in outer
    }
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    return [weight for weight in weights if weight.requires_grad and min(as_matrix(weight).shape) > 1]


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
