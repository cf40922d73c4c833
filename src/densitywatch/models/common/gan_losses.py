"""The losses of a game of two networks, and what is logged of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GeneratorLoss = Literal["minimax", "non_saturating"]


def discriminator_game_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Minus the value of the game of Goodfellow et al. 2014, E[log D(x)] + E[log(1 - D(G(z)))], D = sigmoid(logit).

    Where the discriminator cannot tell the two apart (D = 1/2), the loss is log 4.
    """
    # -log sigmoid(l) = softplus(-l), and 1 - sigmoid(l) = sigmoid(-l)
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_game_loss(fake: Tensor, kind: GeneratorLoss) -> Tensor:
    """What the generator minimises: `minimax` E[log(1 - D)], the game itself; `non_saturating` -E[log D].

    Where D is near 0, so where the discriminator wins, the first has a gradient near 0 in the logit and the second one
    near -1.
    """
    if kind == "minimax":
        return -F.softplus(fake).mean()
    if kind == "non_saturating":
        return F.softplus(-fake).mean()
    raise ValueError(f"{kind}: no loss of this name; it is minimax or non_saturating")


def discriminator_hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss (Lim & Ye 2017, Miyato et al. 2018): real logits are asked to be at least 1, fake ones at most -1.

    An image that is beyond its margin adds nothing.
    """
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_hinge_loss(fake: Tensor) -> Tensor:
    """Minus the mean logit of generated images: the generator has no margin, its gradient never vanishes."""
    return -fake.mean()


@torch.no_grad()
def game_logs(x: Tensor, generated: Tensor, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Figures that show how the game is going.

    `discriminator_accuracy`: the share of images that the discriminator takes for what they are (logit 0 is undecided).
    `spread_ratio`: the spread of the generated images over that of the real ones, as the mean standard deviation of a
    pixel. Near 0 all generated images look alike. One image has no spread, so then the figure is left out.
    """
    logs = {"discriminator_accuracy": 0.5 * ((real > 0).float().mean() + (fake <= 0).float().mean())}
    if len(x) > 1:
        logs["spread_ratio"] = generated.float().std(0).mean() / x.float().std(0).mean().clamp(min=1e-6)
    return logs
