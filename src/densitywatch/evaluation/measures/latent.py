"""The latent space: walks from one latent to another, and arithmetic with the means of groups of latents.

The feature network says of which class the image of a latent is. So the same code serves models with an encoder (`vae`:
latents of training images) and models with a prior alone (`gan`, `dcgan`: latents drawn from it). In a model that takes
labels (`conditional_gan`) the class is in the label, not in the latent. There the label stays as it is, and arithmetic
moves the latent from the darker to the brighter samples of that label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.evaluation.measures.feature_network import classes_of
from densitywatch.evaluation.measures.sample_quality import feature_network
from densitywatch.files import write_whole
from densitywatch.models.offers import Decoder, Encoder, LatentPrior, Sampler
from densitywatch.pages import pictures

STRIPS, FRAMES = 6, 9
ROWS = 6
"""Draws of latent arithmetic that are shown."""
POOL = 4000
"""Latents from which the means of classes are taken."""
PART = 500
"""Latents that are decoded and classified together."""
EXEMPLARS = 8
"""Latents averaged into the start of a draw: a single one is unstable (Radford et al. 2016 average three)."""
FEWEST = 10
"""A class with fewer latents in the pool is left out: its mean says little."""
STRIPS_CAPTION = "Each row walks from one latent to another along the sphere."


@dataclass(frozen=True)
class Space:
    """The latents of a model, and how to make images of them."""

    latents: Tensor
    """(N, D), on the CPU."""
    gaussian: int
    """How many of the D numbers are Gaussian; the weights of labels follow them."""
    decode: Callable[[Tensor], np.ndarray]
    """Latents (n, D) to uint8 images (n, C, H, W)."""

    @property
    def with_labels(self) -> bool:
        """Whether weights of labels follow the Gaussian numbers."""
        return self.latents.shape[1] > self.gaussian


@dataclass(frozen=True)
class Classes:
    """The classes that the feature network sees in the images of a space's latents."""

    classify: Callable[[Tensor], np.ndarray]
    """The class (n,) of each latent (n, D)."""
    of_latents: np.ndarray
    """(N,) the class of each latent of the space."""
    members: dict[int, np.ndarray]
    """The latents of each class that has FEWEST or more of them, by their position."""


def latent_space(context: Context) -> Result | None:
    """Strips of spherical interpolation and latent arithmetic, each with the share of draws that come out right.

    `interpolation_accuracy`: of walks between two latents of one class, the share whose midway image is of that class.
    `latent_arithmetic_accuracy`: of draws z - mean(A) + mean(B), where z is the mean of some latents of class A, the
    share whose image is of class B. `latent_brightness_accuracy` is for models that take labels:
    see `brightness_arithmetic`.

    Model: `sample`, `decode(z) -> uint8`, and `latents(n, labels, generator)` or `encode(x)`. Figures of classes need a
    classifier of at least two labels; the strips need none.
    """
    model = context.model
    if not isinstance(model, Sampler) or not isinstance(model, Decoder):
        return None
    if not isinstance(model, LatentPrior | Encoder):
        return None
    latents, rng = pool(context, model), np.random.default_rng(context.params.seed)
    gaussian = getattr(model.settings, "latent", latents.shape[1])
    space, draws = Space(latents, gaussian, decoder(context, model)), context.params.evaluate.latent.draws
    write_whole(context.out / "interpolation.png", pictures.grid(strips(space, rng), FRAMES, cell=42))
    metrics: dict[str, float | int | str] = {}
    arithmetic: list[Figure] = []
    if space.with_labels and (moved := brightness_arithmetic(space, draws, rng, context)) is not None:
        metrics["latent_brightness_accuracy"], arithmetic = moved[0], [moved[1]]
    strips_alone = Figure("interpolation.png", "Interpolation", STRIPS_CAPTION)
    left_out = "walks inside a class were left out" if space.with_labels else "latent arithmetic was left out"
    if context.classifier is None or len(context.info.class_names) < 2:
        note = f"{left_out}: it needs a feature network of at least two labels"
        return Result(metrics, [strips_alone, *arithmetic], [note])
    found = classes_in(space, context)
    if len(found.members) < 2:
        note = f"{left_out}: of {POOL:,} latents only {len(found.members)} classes have {FEWEST} or more"
        return Result(metrics, [strips_alone, *arithmetic], [note])

    metrics["interpolation_accuracy"] = stayed = share_that_stays(space, found, draws, rng)
    if not space.with_labels:
        metrics["latent_arithmetic_accuracy"], figure = latent_arithmetic(space, found, draws, rng, context)
        arithmetic = [figure]
    interpolation = Figure(
        "interpolation.png",
        "Interpolation",
        f"{STRIPS_CAPTION}{' The label goes along a straight line.' if space.with_labels else ''} Halfway between two"
        f" latents of one class the classifier still sees that class in {stayed:.0%} of {draws} draws.",
    )
    return Result(metrics, [interpolation, *arithmetic])


def strips(space: Space, rng: np.random.Generator) -> np.ndarray:
    """STRIPS walks of FRAMES images each, one after another, (STRIPS * FRAMES, C, H, W)."""
    ends = rng.permutation(len(space.latents))[: 2 * STRIPS]
    steps = torch.linspace(0, 1, FRAMES)
    walks = [
        walk(space.latents[a], space.latents[b], steps, space.gaussian)
        for a, b in zip(ends[::2], ends[1::2], strict=True)
    ]
    return space.decode(torch.cat(walks))


def classes_in(space: Space, context: Context) -> Classes:
    """Every latent of the space decoded and classified."""
    network = feature_network(context)

    def classify(z: Tensor) -> np.ndarray:
        # in parts, so that only PART images are in memory
        return np.concatenate([classes_of(network, space.decode(part)) for part in torch.split(z, PART)])

    classes = classify(space.latents)
    members = {c: np.flatnonzero(classes == c) for c in range(len(context.info.class_names))}
    return Classes(classify, classes, {c: found for c, found in members.items() if len(found) >= FEWEST})


def share_that_stays(space: Space, found: Classes, draws: int, rng: np.random.Generator) -> float:
    """The share of walks between two latents of one class whose midway image is of that class."""
    usable = list(found.members)
    between = [rng.choice(found.members[rng.choice(usable)], 2, replace=False) for _ in range(draws)]
    middle = torch.tensor([0.5])
    halfway = torch.cat([walk(space.latents[a], space.latents[b], middle, space.gaussian) for a, b in between])
    stayed = found.classify(halfway) == found.of_latents[[a for a, _ in between]]
    return float(stayed.mean())


def latent_arithmetic(
    space: Space, found: Classes, draws: int, rng: np.random.Generator, context: Context
) -> tuple[float, Figure]:
    """The share of draws z - mean(A) + mean(B) whose image is of class B, and a picture of some of them."""
    latents, usable = space.latents, list(found.members)
    means = {c: latents[rows].mean(0) for c, rows in found.members.items()}
    pairs = [rng.choice(usable, 2, replace=False) for _ in range(draws)]
    starts = [latents[rng.choice(found.members[a], EXEMPLARS, replace=False)].mean(0) for a, _ in pairs]
    moved = torch.stack([z + means[b] - means[a] for z, (a, b) in zip(starts, pairs, strict=True)])
    length = latents[:, : space.gaussian].norm(dim=1).mean()
    moved, shown_starts = (at_length(z, space.gaussian, length) for z in (moved, torch.stack(starts)))
    reached = found.classify(moved) == np.array([b for _, b in pairs])

    shown = range(min(ROWS, draws))
    rows = np.stack(
        [space.decode(torch.stack([shown_starts[i], means[pairs[i][0]], means[pairs[i][1]], moved[i]])) for i in shown]
    )
    write_whole(context.out / "latent_arithmetic.png", pictures.grid(rows.reshape(-1, *rows.shape[2:]), 4))
    names = context.info.class_names
    figure = Figure(
        "latent_arithmetic.png",
        "Latent arithmetic",
        f"From left to right: the mean of {EXEMPLARS} latents of a class; the mean of all its latents, which is"
        " subtracted; the mean of another class, which is added; and the result, which the classifier takes for the"
        f" class added in {reached.mean():.0%} of {draws} draws.",
        rows=tuple(f"{names[pairs[i][0]]} to {names[pairs[i][1]]}" for i in shown),
    )
    return float(reached.mean()), figure


def brightness_arithmetic(
    space: Space, draws: int, rng: np.random.Generator, context: Context
) -> tuple[float, Figure] | None:
    """Arithmetic under a label that stays: z - mean(darker) + mean(brighter), and a picture of some draws.

    The samples of a label are split at their median brightness (mean pixel). z is the mean of some latents of the
    darker half. Returns the share of draws whose image is brighter than the median; None where every label has too few
    latents in the pool.
    """
    latents, g = space.latents, space.gaussian
    label = latents[:, g:].argmax(1).numpy()
    shades = shades_of(space, latents)
    of_label = {c: np.flatnonzero(label == c) for c in np.unique(label)}
    # a label's latents from the darkest image to the brightest
    order = {c: rows[np.argsort(shades[rows], kind="stable")] for c, rows in of_label.items()}
    halves = {
        c: (rows[: len(rows) // 2], rows[len(rows) // 2 :]) for c, rows in order.items() if len(rows) >= 2 * FEWEST
    }
    if not halves:
        return None
    picked = [int(c) for c in rng.choice(list(halves), draws)]
    starts = torch.stack([latents[rng.choice(halves[c][0], EXEMPLARS, replace=False)].mean(0) for c in picked])
    darker, brighter = (torch.stack([latents[halves[c][half]].mean(0) for c in picked]) for half in (0, 1))
    length = latents[:, :g].norm(dim=1).mean()
    # the weights of the label are the same in all of them, so the sum leaves them as they are
    shown = [at_length(z, g, length) for z in (starts, darker, brighter, starts - darker + brighter)]
    median = np.array([np.median(shades[of_label[c]]) for c in picked])
    before, after = ((shades_of(space, z) > median).mean() for z in (shown[0], shown[3]))
    few = min(ROWS, draws)
    rows = np.stack([space.decode(z[:few]) for z in shown], 1)  # (few, 4, C, H, W)
    write_whole(context.out / "latent_arithmetic.png", pictures.grid(rows.reshape(-1, *rows.shape[2:]), 4))
    names = context.info.class_names
    figure = Figure(
        "latent_arithmetic.png",
        "Latent arithmetic under one label",
        f"The label stays; only the latent moves. From left to right: the mean of {EXEMPLARS} latents of a label's"
        " darker half; the mean of all latents of that half, which is subtracted; that of the brighter half, which is"
        f" added; and the result. It is brighter than the label's median in {after:.0%} of {draws} draws, the start in"
        f" {before:.0%}.",
        rows=tuple(names[c] if c < len(names) else "" for c in picked[:few]),
    )
    return float(after), figure


def shades_of(space: Space, z: Tensor) -> np.ndarray:
    """The mean pixel (n,) of the image of each latent."""
    return np.concatenate([space.decode(part).mean((1, 2, 3)) for part in torch.split(z, PART)])


def at_length(z: Tensor, gaussian: int, length: Tensor) -> Tensor:
    """z (N, D) with the first `gaussian` numbers of each row scaled to the norm `length`.

    Draws of a high-dimensional Gaussian all have about the same norm, and the decoder knows only such latents. A mean
    of draws is much shorter.
    """
    norm = z[:, :gaussian].norm(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.cat([z[:, :gaussian] * (length / norm), z[:, gaussian:]], 1)


def pool(context: Context, model: LatentPrior | Encoder) -> Tensor:
    """POOL latents (N, D) on the CPU: drawn from the prior where the model has one, else codes of training images."""
    if isinstance(model, LatentPrior):
        return model.latents(POOL, generator=context.generator()).cpu()
    return torch.cat([model.encode(x).cpu() for x, _ in context.batches("train", limit=POOL)])


def decoder(context: Context, model: Decoder) -> Callable[[Tensor], np.ndarray]:
    """A function from latents (N, D) to uint8 images (N, C, H, W) that decodes a batch at a time."""

    def decode(latents: Tensor) -> np.ndarray:
        parts = torch.split(latents, context.batch_size)
        return np.concatenate([model.decode(z.to(context.device)).cpu().numpy() for z in parts])

    return decode


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between vectors (D,) at each t in [0, 1], (T, D).

    The direction turns evenly and the length goes evenly from |a| to |b|. A straight line between two draws of a
    Gaussian passes close to 0, where there are no draws; this walk keeps their length.
    """
    from_a, from_b = a / a.norm().clamp(min=1e-12), b / b.norm().clamp(min=1e-12)
    angle = torch.arccos((from_a @ from_b).clamp(-1.0, 1.0))
    if angle < 1e-4:  # sin(angle) is about 0, and the straight line is the same walk
        return torch.lerp(a, b, t[:, None])
    # [sin((1 - t) angle) a + sin(t angle) b] / sin(angle) has length 1 for every t
    direction = (torch.sin((1 - t) * angle)[:, None] * from_a + torch.sin(t * angle)[:, None] * from_b) / torch.sin(
        angle
    )
    return torch.as_tensor(direction * torch.lerp(a.norm(), b.norm(), t)[:, None])


def walk(a: Tensor, b: Tensor, t: Tensor, gaussian: int) -> Tensor:
    """The walk from a to b, (T, D): spherical in the first `gaussian` numbers, straight in the weights of labels."""
    return torch.cat([slerp(a[:gaussian], b[:gaussian], t), torch.lerp(a[gaussian:], b[gaussian:], t[:, None])], 1)
