"""How much of an image is left when a model encodes it and decodes it again."""

from __future__ import annotations

import numpy as np

from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import Reconstructor
from densitywatch.pages import pictures

SHOWN = 10


def reconstruction(context: Context) -> Result | None:
    """Mean squared error of reconstructed test images, pixels from 0 to 1, and a few of them below the originals.

    Model: `reconstruct(x) -> uint8 (B, C, H, W)`. It can be slow, so `evaluate.importance_images` limits it too.
    """
    model = context.model
    if not isinstance(model, Reconstructor):
        return None
    errors: list[np.ndarray] = []
    shown: list[np.ndarray] = []
    for x, _ in context.test_batches(context.params.evaluate.importance_images):
        again = model.reconstruct(x)
        errors.append(((again.cpu().double() - x.cpu().double()) / 255).square().mean((1, 2, 3)).numpy())
        shown = shown or [x[:SHOWN].cpu().numpy(), again[:SHOWN].cpu().numpy()]
    write_whole(context.out / "reconstructions.png", pictures.grid(np.concatenate(shown), len(shown[0])))
    error = np.concatenate(errors)
    mse = float(error.mean())
    figure = Figure(
        "reconstructions.png",
        "Reconstructions",
        f"Test images above their reconstructions. The mean squared error of {len(error):,} images, with pixels from 0"
        f" to 1, is {mse:.4f}.",
        rows=("original", "reconstruction"),
    )
    return Result({"reconstruction_mse": mse}, [figure])
