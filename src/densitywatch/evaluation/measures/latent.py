"""The latent space: walks from one image to another, and arithmetic with the means of classes.

Every latent has the class that the feature network gives to its image, so the same code serves models with an encoder
(`vae`: latents of training images) and models with a prior alone (`dcgan`, `conditional_gan`: latents drawn from it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.evaluation.measures.feature_network import classes_of
from densitywatch.evaluation.measures.sample_quality import feature_network
from densitywatch.files import write_whole
from densitywatch.pages import pictures

STRIPS, FRAMES = 6, 9
ROWS = 6
POOL = 4000
"""Latents from which classes' means are taken."""
PART = 500
"""Latents that are decoded and classified together."""
EXEMPLARS = 8
"""Latents averaged into what a draw starts from: single ones are unstable (Radford et al. 2016 average three)."""
FEWEST = 10
"""A class with fewer latents in the pool is left out: its mean says little."""


def latent_space(context: Context) -> Result | None:
    """Spherical interpolation strips and latent arithmetic, each with the share of intended classes over many draws.

    `interpolation_accuracy`: of walks between two latents of one class, the share whose midway image is of that class.
    `latent_arithmetic_accuracy`: of draws z - mean(A) + mean(B), z the mean of some latents of class A, the share whose
    image is of class B.

    Model: `sample`, `decode(z) -> uint8`, and `latents(n, labels, generator)` or `encode(x)`. Both figures need a
    classifier of at least two labels; the strips need none.
    """
    model: Any = context.model
    if not all(hasattr(model, ability) for ability in ("sample", "decode")):
        return None
    if not hasattr(model, "latents") and not hasattr(model, "encode"):
        return None
    latents, rng = pool(context), np.random.default_rng(context.params.seed)
    gaussian = getattr(model.settings, "latent", latents.shape[1])
    decode = decoder(context)

    ends = rng.permutation(len(latents))[: 2 * STRIPS]
    steps = torch.linspace(0, 1, FRAMES)
    walks = [walk(latents[a], latents[b], steps, gaussian) for a, b in zip(ends[::2], ends[1::2], strict=True)]
    write_whole(context.out / "interpolation.png", pictures.grid(decode(torch.cat(walks)), FRAMES, cell=42))
    caption = "Each row walks from one latent to another along the sphere."
    if context.classifier is None or len(context.info.class_names) < 2:
        figure = Figure("interpolation.png", "Interpolation", caption)
        return Result(
            {}, [figure], ["latent arithmetic was left out: it needs a feature network of at least two labels"]
        )

    network = feature_network(context)

    def classified(z: Tensor) -> np.ndarray:
        """The classes of decoded latents; no more than a part of the images is in memory."""
        return np.concatenate([classes_of(network, decode(part)) for part in torch.split(z, PART)])

    classes = classified(latents)
    members = [np.flatnonzero(classes == c) for c in range(len(context.info.class_names))]
    usable = [c for c, found in enumerate(members) if len(found) >= FEWEST]
    if len(usable) < 2:
        note = f"latent arithmetic was left out: of {POOL:,} latents only {len(usable)} classes have {FEWEST} or more"
        return Result({}, [Figure("interpolation.png", "Interpolation", caption)], [note])

    draws = context.params.evaluate.latent.draws
    between = [rng.choice(members[rng.choice(usable)], 2, replace=False) for _ in range(draws)]
    halfway = torch.cat([walk(latents[a], latents[b], torch.tensor([0.5]), gaussian) for a, b in between])
    stayed = classified(halfway) == classes[[a for a, _ in between]]

    means = {c: latents[members[c]].mean(0) for c in usable}
    pairs = [rng.choice(usable, 2, replace=False) for _ in range(draws)]
    length = latents[:, :gaussian].norm(dim=1).mean()
    starts = [latents[rng.choice(members[a], EXEMPLARS, replace=False)].mean(0) for a, _ in pairs]
    moved = torch.stack([z + means[b] - means[a] for z, (a, b) in zip(starts, pairs, strict=True)])
    moved, shown_starts = (at_length(z, gaussian, length) for z in (moved, torch.stack(starts)))
    reached = classified(moved) == np.array([b for _, b in pairs])

    shown = range(min(ROWS, draws))
    rows = np.stack(
        [decode(torch.stack([shown_starts[i], means[pairs[i][0]], means[pairs[i][1]], moved[i]])) for i in shown]
    )
    write_whole(context.out / "latent_arithmetic.png", pictures.grid(rows.reshape(-1, *rows.shape[2:]), 4))
    metrics = {"interpolation_accuracy": float(stayed.mean()), "latent_arithmetic_accuracy": float(reached.mean())}
    names = context.info.class_names
    figures = [
        Figure(
            "interpolation.png",
            "Interpolation",
            f"{caption} Halfway between two latents of one class the classifier still sees that class in"
            f" {stayed.mean():.0%} of {draws} draws.",
        ),
        Figure(
            "latent_arithmetic.png",
            "Latent arithmetic",
            f"From left to right: the mean of {EXEMPLARS} latents of a class, the mean of all its latents (subtracted),"
            f" that of another class (added), and the result, which the classifier takes for the class added in"
            f" {reached.mean():.0%} of {draws} draws.",
            rows=tuple(f"{names[pairs[i][0]]} to {names[pairs[i][1]]}" for i in shown),
        ),
    ]
    return Result(dict(metrics), figures)


def at_length(z: Tensor, gaussian: int, length: Tensor) -> Tensor:
    """z (N, D) with the first `gaussian` numbers of each brought to `length`: a mean of draws lies far inside the shell
    that the decoder knows."""
    norm = z[:, :gaussian].norm(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.cat([z[:, :gaussian] * (length / norm), z[:, gaussian:]], 1)


def pool(context: Context) -> Tensor:
    """Latents (N, D) on the CPU: of training images where the model encodes them as such, else from the prior."""
    model: Any = context.model
    if hasattr(model, "latents"):
        drawn: Tensor = model.latents(POOL, generator=context.generator())
        return drawn.cpu()
    return torch.cat([model.encode(x).cpu() for x, _ in context.batches("train", limit=POOL)])


def decoder(context: Context) -> Any:
    """A function from latents (N, D) to uint8 images (N, C, H, W), a batch at a time."""
    model: Any = context.model

    def decode(latents: Tensor) -> np.ndarray:
        parts = torch.split(latents, context.batch_size)
        return np.concatenate([model.decode(z.to(context.device)).cpu().numpy() for z in parts])

    return decode


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between vectors (D,) at each t in [0, 1], (T, D).

    Directions turn evenly; lengths go evenly from |a| to |b|, so that a walk between draws of a Gaussian keeps to its
    shell.
    """
    from_a, from_b = a / a.norm().clamp(min=1e-12), b / b.norm().clamp(min=1e-12)
    angle = torch.arccos((from_a @ from_b).clamp(-1.0, 1.0))
    if angle < 1e-4:
        return torch.lerp(a, b, t[:, None])
    direction = (torch.sin((1 - t) * angle)[:, None] * from_a + torch.sin(t * angle)[:, None] * from_b) / torch.sin(
        angle
    )
    return torch.as_tensor(direction * torch.lerp(a.norm(), b.norm(), t)[:, None])


def walk(a: Tensor, b: Tensor, t: Tensor, gaussian: int) -> Tensor:
    """The way from a to b, (T, D): spherical in the first `gaussian` numbers, straight in the weights of labels after
    them.
    """
    return torch.cat([slerp(a[:gaussian], b[:gaussian], t), torch.lerp(a[gaussian:], b[gaussian:], t[:, None])], 1)
