"""A grid of samples for the report, and how fast they are drawn."""

from __future__ import annotations

import time

import numpy as np
import torch

from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import Sampler, takes_labels
from densitywatch.pages import pictures

COLUMNS = 8
CLASSES_SHOWN = 20


def sample_grid(context: Context) -> Result | None:
    """A grid of samples and the time they took. A model that takes labels fills one row per label.

    Model: `sample(n, labels, generator) -> uint8 (n, C, H, W)`.
    """
    model = context.model
    if not isinstance(model, Sampler):
        return None
    wanted = context.params.evaluate.sample_images
    names = context.info.class_names[:CLASSES_SHOWN] if takes_labels(model) else ()
    notes = []
    if names:
        columns = max(1, wanted // len(names))
        labels = torch.arange(len(names)).repeat_interleave(columns).to(context.device)
        wanted = len(labels)
        if len(context.info.class_names) > len(names):
            notes.append(f"samples of the first {len(names)} of {len(context.info.class_names)} labels are shown")
    else:
        columns, labels = COLUMNS, None
    started = time.perf_counter()
    generator = context.generator()
    images = np.concatenate(
        [
            model.sample(
                min(context.batch_size, wanted - i),
                labels=None if labels is None else labels[i : i + context.batch_size],
                generator=generator,
            )
            .cpu()
            .numpy()
            for i in range(0, wanted, context.batch_size)
        ]
    )
    seconds = time.perf_counter() - started
    write_whole(context.out / "samples.png", pictures.grid(images, columns))
    caption = f"{wanted} images drawn from the model with seed {context.params.seed}; none is left out."
    figure = Figure("samples.png", "Samples", ("One row per label. " if names else "") + caption, rows=tuple(names))
    return Result({"sample_images_per_second": wanted / seconds, "sample_seconds": seconds}, [figure], notes)
