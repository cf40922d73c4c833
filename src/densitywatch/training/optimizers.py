"""Optimisers and the schedule of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from densitywatch.models.offers import is_game
from densitywatch.params import TrainingParams


def make_optimizers(model: nn.Module, training: TrainingParams) -> dict[str, Optimizer]:
    """The optimisers of a model by name.

    Adversarial: `generator` and `discriminator`, AdamW with two time scales. Otherwise `model`, AdamW; and with
    `optimizer: muon` the weights of the layers between first and last move under `matrices`, the rest under `model`.
    """

    def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> AdamW:
        return AdamW(parameters, lr=learning_rate, betas=training.betas, weight_decay=training.weight_decay)

    if is_game(model):
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
    """Weights of linear and convolutional layers that read features and write features.

    Muon is not for layers that touch pixels or distribution parameters (the model's OUTER_LAYERS), nor for embeddings,
    gains and biases.
    """
    outer = set(getattr(model, "OUTER_LAYERS", ()))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and name not in outer
    }
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    return [weight for weight in weights if weight.requires_grad and min(as_matrix(weight).shape) > 1]


class KernelMuon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, orthogonalised, for matrices and for kernels, as matrices (out, rest).

    What differs from torch's own: kernels are taken as they lie in memory; the orthogonalisation is computed in float32
    (`orthogonal`). torch's computes in bfloat16, which many processors only emulate, forty times slower.
    """

    MOMENTUM = 0.95

    def __init__(self, weights: list[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape are computed together
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = as_matrix(weight.grad)
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
                # M <- 0.95 M + 0.05 G, then Nesterov's look ahead: 0.05 G + 0.95 M
                momentum.lerp_(gradient, 1.0 - self.MOMENTUM)
                alike.setdefault(gradient.shape, []).append((weight, gradient.lerp(momentum, self.MOMENTUM)))
            for (out, rest), pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    # entries of about 1 / sqrt(rest), whatever `out` is
                    as_matrix(weight).add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, out / rest)))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, out, rest) with singular vectors as they are and singular values of about 1 (0.7 to 1.2), float32.

    Five steps of a Newton-Schulz iteration with the coefficients of Jordan et al. 2024, which lift small singular
    values fast. A singular value below about 1e-4 of the norm is lost in float32's digits and stays small.

    A step is X <- (a + b G + c G^2) X with G = X X^T. It maps every singular value s to a s + b s^3 + c s^5 and leaves
    the singular vectors as they are. All of the polynomials are polynomials of the first G, so they commute: their
    product is gathered as a small (out, out) matrix and X is multiplied once. For an oblong matrix that is a third of
    the arithmetic.
    """
    # the shorter side first, so that G is the smaller of the two products
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).float()
    # the iteration needs singular values of at most 1; the Frobenius norm is at least the largest of them
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    gathered: Tensor | None = None
    for step in range(5):
        # p(G) = 3.4445 - 4.7750 G + 2.0315 G^2
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        gathered = polynomial if gathered is None else polynomial @ gathered
        if step < 4:
            # the next X is p(G) X, so the next G is p(G) G p(G); p(G) is symmetric
            gram = polynomial @ gram @ polynomial
    assert gathered is not None
    found: Tensor = gathered @ x
    return found if wide else found.mT


def as_matrix(weight: Tensor) -> Tensor:
    """(out, in) or a kernel (out, in, h, w) as the matrix (out, rest): a view where the memory allows it."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


def schedule(step: int, training: TrainingParams) -> float:
    """The share of the peak learning rate at `step`: linear warm-up, then a cosine down to `final_learning_rate`."""
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    end = training.final_learning_rate
    return warm * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * step / training.steps)))


def set_learning_rate(optimizers: dict[str, Optimizer], share: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
