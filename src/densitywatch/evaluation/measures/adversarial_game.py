"""What the theory of the adversarial game promises (Goodfellow et al. 2014), shown with the losses that the models use.

* Section 3: while the discriminator wins easily, the gradient of E[log(1 - D(G(z)))] vanishes. That of -E[log D(G(z))]
  does not.
* Proposition 1: for a fixed generator the best discriminator is p_data / (p_data + p_G).
* Theorem 1: with the best discriminator the value of the game is -log 4 + 2 JSD(p_data, p_G). It is least, -log 4,
  where p_G = p_data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.data.reading import Images
from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.files import write_whole
from densitywatch.models.common.gan_losses import discriminator_game_loss, generator_game_loss
from densitywatch.models.gan import GAN, Settings
from densitywatch.pages import charts

P_DATA = (0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02)
"""A small distribution over eight symbols."""
P_GENERATOR = (0.05, 0.05, 0.10, 0.10, 0.15, 0.15, 0.20, 0.20)
"""A generator that prefers the rare symbols."""
HEAD_START = 100
"""Steps that the discriminator trains alone, against a generator that still has its first weights."""


def game_demonstration(context: Context) -> Result | None:
    """The three promises measured, on the page of models of kind `gan`.

    `gradient_ratio`: the generator's gradient norm under `non_saturating` over that under `minimax`, same weights.
    """
    if context.params.models[context.name].kind != "gan":
        return None
    p_data, p_generator, seed = torch.tensor(P_DATA), torch.tensor(P_GENERATOR), context.params.seed
    images, _ = context.pick("train", 2048)
    with torch.enable_grad():
        norms = gradient_norms(images, seed=seed)
        played = play(p_data, seed=seed)
        logits = train_discriminator(p_data, p_generator, seed=seed)
    ratio = norms[-1]["non_saturating"] / norms[-1]["minimax"]
    figures = [
        _gradient_figure(context, norms, ratio),
        _discriminator_figure(context, torch.sigmoid(logits), best_discriminator(p_data, p_generator)),
        _value_figure(context, played),
    ]
    return Result({"gradient_ratio": ratio}, figures)


def _gradient_figure(context: Context, norms: list[dict[str, float]], ratio: float) -> Figure:
    """Section 3: both gradient norms while the discriminator trains alone."""
    rows = [
        {"step": row["step"], "loss": loss, "norm": math.log10(max(row[loss], 1e-12))}
        for row in norms
        for loss in ("minimax", "non_saturating")
    ]
    chart = charts.lines(
        rows,
        x="step",
        y="norm",
        x_title="steps of the discriminator alone",
        y_title="log10 of the generator's gradient norm",
        series="loss",
    )
    write_whole(context.out / "game_gradient.svg", chart)
    return Figure(
        "game_gradient.svg",
        "The generator's gradient at the start",
        f"After {HEAD_START} steps of the discriminator alone, the gradient under the non-saturating loss is"
        f" {ratio:,.0f} times that under the minimax loss: same weights, same discriminator, same noise.",
    )


def _discriminator_figure(context: Context, trained: Tensor, best: Tensor) -> Figure:
    """Proposition 1: D(symbol), (S,), of a trained discriminator and of the best one."""
    rows = [
        {"symbol": i + 1, "discriminator": name, "value": float(value)}
        for name, values in (("p_data / (p_data + p_G)", best), ("trained", trained))
        for i, value in enumerate(values)
    ]
    chart = charts.lines(rows, x="symbol", y="value", x_title="symbol", y_title="D(symbol)", series="discriminator")
    write_whole(context.out / "game_discriminator.svg", chart)
    error = float((trained - best).abs().max())
    return Figure(
        "game_discriminator.svg",
        "The best discriminator",
        f"Trained on samples of two distributions over eight symbols; it is within {error:.3f} of p_data /"
        " (p_data + p_G).",
    )


def _value_figure(context: Context, played: list[dict[str, Any]]) -> Figure:
    """Theorem 1: the value of the game while both players train, and the least value that it can have."""
    rows = [
        {"step": row["step"], "series": name, "value": row["value"] if name == "value of the game" else -math.log(4)}
        for name in ("value of the game", "-log 4")
        for row in played
    ]
    chart = charts.lines(rows, x="step", y="value", x_title="step of the game", y_title="value (nats)", series="series")
    write_whole(context.out / "game_value.svg", chart)
    return Figure(
        "game_value.svg",
        "The value of the game",
        f"Both players train; the value goes to {played[-1]['value']:.4f} (-log 4 is {-math.log(4):.4f}) as p_G"
        f" comes within {played[-1]['distance']:.4f} (total variation) of p_data.",
    )


def gradient_norms(images: Images, *, seed: int, steps: int = HEAD_START, batch: int = 64) -> list[dict[str, float]]:
    """The generator's gradient norm under both losses while the discriminator of a `gan` trains alone.

    images: uint8 (N, C, H, W). One row every steps / 10: `step`, `minimax`, `non_saturating`, both at the same weights
    and with the same noise.
    """
    torch.manual_seed(seed)
    game = GAN(Settings(dropout=0.0), channels=images.shape[1], size=images.shape[2], classes=0)
    optimizer = torch.optim.Adam(game.discriminator.parameters(), lr=5e-4)
    noise, rows = game.latents(256), []
    rng = np.random.default_rng(seed)
    for step in range(steps + 1):
        if step % max(1, steps // 10) == 0:
            row = {"step": float(step)}
            for kind in ("minimax", "non_saturating"):
                loss = generator_game_loss(game.discriminator(game.generator(noise)), kind)
                gradients = torch.autograd.grad(loss, list(game.generator.parameters()))
                # the norm of the norms is the norm of all gradients together
                row[kind] = float(torch.stack([g.norm() for g in gradients]).norm())
            rows.append(row)
        loss, _ = game.discriminator_loss(torch.from_numpy(images[rng.integers(0, len(images), batch)]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return rows


def best_discriminator(p_data: Tensor, p_generator: Tensor) -> Tensor:
    """p_data / (p_data + p_G), symbol by symbol (Proposition 1).

    For one symbol a discriminator's value is a log D + b log(1 - D) with a = p_data, b = p_G; its derivative
    a / D - b / (1 - D) is zero at D = a / (a + b).
    """
    return p_data / (p_data + p_generator)


def game_value(logits: Tensor, p_data: Tensor, p_generator: Tensor) -> float:
    """E_data[log D] + E_G[log(1 - D)] in nats, exact over all symbols, for a discriminator's logits (S,)."""
    # D = sigmoid(logit), so log D = logsigmoid(logit) and log(1 - D) = logsigmoid(-logit)
    return float((p_data * F.logsigmoid(logits) + p_generator * F.logsigmoid(-logits)).sum())


def train_discriminator(
    p_data: Tensor, p_generator: Tensor, *, seed: int, steps: int = 400, batch: int = 2048
) -> Tensor:
    """Logits (S,) of a discriminator trained on samples of the two distributions over S symbols."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(len(p_data), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)  # down to 0, so that the last steps average noise
        real = torch.multinomial(p_data, batch, replacement=True, generator=generator)
        fake = torch.multinomial(p_generator, batch, replacement=True, generator=generator)
        optimizer.zero_grad()
        discriminator_game_loss(logits[real], logits[fake]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits.detach()


def play(p_data: Tensor, *, seed: int, steps: int = 400, discriminator_steps: int = 10) -> list[dict[str, Any]]:
    """The whole game over S symbols: a generator softmax(g) lowers the value, a discriminator raises it.

    Expectations are exact sums over the symbols, not samples.

    Rows: `step`, `value` in nats, `distance`, the total variation between p_G and p_data.
    """
    torch.manual_seed(seed)
    g = torch.randn(len(p_data), requires_grad=True)
    logits = torch.zeros(len(p_data), requires_grad=True)
    generator, discriminator = torch.optim.SGD([g], lr=1.0), torch.optim.SGD([logits], lr=10.0)
    rows = []
    for step in range(steps + 1):
        for _ in range(discriminator_steps):
            discriminator.zero_grad()
            p_generator = torch.softmax(g.detach(), 0)
            # minus the value, to minimise: -log D = softplus(-logit), -log(1 - D) = softplus(logit)
            (p_data * F.softplus(-logits) + p_generator * F.softplus(logits)).sum().backward()  # type: ignore[no-untyped-call]
            discriminator.step()
        p_generator = torch.softmax(g, 0)
        if step % max(1, steps // 40) == 0:
            distance = 0.5 * float((p_generator.detach() - p_data).abs().sum())
            value = game_value(logits.detach(), p_data, p_generator.detach())
            rows.append({"step": step, "value": value, "distance": distance})
        generator.zero_grad()
        # the part of the value that depends on the generator: E_G[log(1 - D)] = -E_G[softplus(logit)]
        (-p_generator * F.softplus(logits.detach())).sum().backward()  # type: ignore[no-untyped-call]
        generator.step()
    return rows
