"""One step of adversarial training, and warnings about a game that has collapsed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from densitywatch.models.offers import Players
from densitywatch.params import TrainingParams
from densitywatch.training.sharing import average_gradients
from densitywatch.training.steps import clip_gradients

WON = 0.99
"""A discriminator that is right on this share of the images has collapsed: the generator learns little from it."""
ALIKE = 0.2
"""A generator whose pixels vary by at most this share of the real ones' spread has collapsed to about one image."""


def adversarial_step(
    fabric: Any,
    model: Players,
    optimizers: dict[str, Optimizer],
    x: Tensor,
    labels: Tensor | None,
    training: TrainingParams,
) -> dict[str, Tensor]:
    """One step of the discriminator on real and generated images, then one of the generator against it.

    Two time scales (Heusel et al. 2017): each optimiser has its own learning rate. Returns the scalars to log: both
    losses, both gradient norms, and what the model logs of the game.
    """
    # the discriminator's step; generated images come without a gradient
    with fabric.autocast():
        discriminator_loss, logs = model.discriminator_loss(x, labels)
    fabric.backward(discriminator_loss)
    average_gradients(fabric, model.discriminator)
    discriminator_norm = clip_gradients(model.discriminator, training.gradient_clip)
    optimizers["discriminator"].step()
    optimizers["discriminator"].zero_grad(set_to_none=True)

    # the generator's step: the gradient passes through the discriminator to the images, and not into its weights
    model.discriminator.requires_grad_(False)
    with fabric.autocast():
        generator_loss, more_logs = model.generator_loss(len(x), labels)
    fabric.backward(generator_loss)
    average_gradients(fabric, model.generator)
    model.discriminator.requires_grad_(True)
    generator_norm = clip_gradients(model.generator, training.gradient_clip)
    optimizers["generator"].step()
    optimizers["generator"].zero_grad(set_to_none=True)
    return {
        "discriminator_loss": discriminator_loss.detach(),
        "generator_loss": generator_loss.detach(),
        "discriminator_gradient_norm": discriminator_norm,
        "generator_gradient_norm": generator_norm,
        **logs,
        **more_logs,
    }


def adversarial_warnings(history: list[dict[str, float]]) -> list[str]:
    """What went wrong in the last third of a game, one sentence each; empty for other models and good games.

    history: the rows of history.json; `train_discriminator_accuracy` and `train_spread_ratio` are read. A row is the
    mean over the few steps before it (loop.LOG_EVERY at most), not over all since the row before.
    """
    rows = [row for row in history if "train_spread_ratio" in row]  # a single image has no spread
    last = rows[-max(1, len(rows) // 3) :]
    if not last:
        return []
    accuracy = min(row["train_discriminator_accuracy"] for row in last)
    spread = max(row["train_spread_ratio"] for row in last)
    when = (
        f"in the steps just before each row of history.json from step {last[0]['step']:.0f} to {last[-1]['step']:.0f}"
    )
    found = []
    if accuracy >= WON:
        found.append(
            f"collapsed discriminator: right on at least {accuracy:.1%} of the images {when}, so the generator"
            " learns little; lower discriminator_learning_rate"
        )
    if spread <= ALIKE:
        found.append(
            f"collapsed generator: its images {when} vary at most {spread:.0%} as much as real ones, all look"
            " alike; lower learning_rate or use another loss"
        )
    return found
