"""What the gate measures of a model, on images that nothing else has seen, and the floor next to it.

Every measure is a figure of the same N images, so that two models can be compared image by image. The detector's
measures are in measuring_detectors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.dataset import open_split
from densitywatch.data.reading import at_size, images_at_once, stored_size
from densitywatch.errors import DensitywatchError
from densitywatch.evaluation.measures import sample_quality
from densitywatch.evaluation.measures.distances import frechet_of_counts
from densitywatch.evaluation.measures.feature_network import FOLDER, features_of, load_classifier
from densitywatch.models.offers import Bounded, ExactDensity, Reconstructor, Sampler, takes_labels
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params
from densitywatch.registry.floors import independent_bits, independent_pixels, mean_image_errors, training_sample
from densitywatch.registry.resampling import Measurement, mean_figures, one_figure
from densitywatch.sizes import Size, height_width, in_pixels

BATCH = 250


def measure_model(folder: Path, images: Pixels, params: Params, root: Path) -> Measurement:
    """The gate's measurement of the model in `folder`. Raises DensitywatchError when it cannot be measured.

    The measure is the best one that the model offers: bits/dim of an exact density, bits/dim of the ELBO, mean squared
    error of reconstructions, or the FID of samples.
    """
    model: Any = load_model_folder(folder)
    if images.shape[1:] != (model.channels, *height_width(stored_size(model))):
        ours, theirs = shape_of(images.shape[1], images.shape[2:]), shape_of(model.channels, stored_size(model))
        raise DensitywatchError(f"it takes images of {theirs} and the prepared dataset has {ours}")
    cuda = torch.cuda.is_available() and params.device.accelerator in ("auto", "cuda")
    device = torch.device("cuda" if cuda else "cpu")
    model.to(device).eval()
    seen = np.asarray(at_size(images, model.size)[:])
    offered = next((row for row in MEASURES if isinstance(model, row[0])), None)
    if offered is None:  # a model that only draws samples
        return measure_samples(model, images, params, root)
    _, measure, kind, function, trivial = offered
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(params.seed)  # a bound draws latents: both models get the same ones
        step = images_at_once(BATCH, model.size)
        parts = [
            function(model, torch.from_numpy(seen[start : start + step]).to(device)).double().cpu()
            for start in range(0, len(seen), step)
        ]
    name = measure + of_size(model.size, images)

    def floor() -> Measurement:
        return mean_of(name, kind, trivial(training_images(root, model.size), seen))

    return mean_of(name, kind, torch.cat(parts).numpy(), floor)


def mean_of(measure: str, kind: str, values: Floats, trivial: Callable[[], Measurement] | None = None) -> Measurement:
    """A measurement that is the mean of one value for each image."""
    return Measurement(measure, float(values.mean()), kind, mean_figures(values), trivial)


def measure_samples(model: Any, images: Pixels, params: Params, root: Path) -> Measurement:
    """The FID between the gate's images and as many samples, in the feature space of models/classifier.

    The i-th samples of two models come from the same random numbers and, where models take labels, have the label of
    the i-th image. Raises DensitywatchError when there is no feature network or the model draws no samples.
    """
    if not isinstance(model, Sampler):
        raise DensitywatchError("it offers neither a likelihood nor a reconstruction nor samples")
    network = load_classifier(root / FOLDER)
    seen, labels = np.asarray(at_size(images, model.size)[:]), None  # type: ignore[attr-defined]
    if takes_labels(model):
        labels = np.array(open_split(root / "data" / "prepared", "gate").labels[: len(seen)])
    device = next(model.parameters()).device  # type: ignore[attr-defined]
    generator = torch.Generator(device).manual_seed(params.seed)
    step = images_at_once(params.evaluate.batch_size, seen.shape[-1])
    with torch.no_grad():
        drawn = np.concatenate(list(sample_quality.draw(model, len(seen), labels, generator, step, device)))
    real = features_of(network, seen)
    name = "FID of samples" + of_size(seen.shape[-1], images)

    def measured(samples: Pixels, trivial: Callable[[], Measurement] | None = None) -> Measurement:
        figures = frechet_of_counts(real, features_of(network, samples))
        return Measurement(name, one_figure(figures, len(seen)), "samples", figures, trivial)

    def floor() -> Measurement:
        train = training_images(root, seen.shape[-1])
        return measured(independent_pixels(train, len(seen), np.random.default_rng(params.seed)))

    return measured(drawn, floor)


def of_size(size: Size, images: Pixels) -> str:
    """The part of a measure's name that says at which size the model sees the images, where that is not theirs.

    Only measures of the same name are compared.
    """
    return "" if height_width(size) == images.shape[2:] else f" at {in_pixels(size)}"


def shape_of(channels: int, size: Size) -> str:
    return f"{in_pixels(size)} pixels in {'grey' if channels == 1 else 'colour'}"


def training_images(root: Path, size: int) -> Pixels:
    return training_sample(open_split(root / "data" / "prepared", "train", size).images)


def _bits(log_prob: Tensor, x: Tensor) -> Tensor:
    return -log_prob / (math.log(2) * x[0].numel())


def _squared_error(model: Any, x: Tensor) -> Tensor:
    error: Tensor = (model.reconstruct(x).double() - x.double()) / 255
    return error.square().mean((1, 2, 3))


Values = Callable[[Any, Tensor], Tensor]
Trivial = Callable[[Pixels, Pixels], Floats]
MEASURES: tuple[tuple[type, str, str, Values, Trivial], ...] = (
    (ExactDensity, "bits/dim", "bits", lambda model, x: _bits(model.log_prob(x), x), independent_bits),
    (Bounded, "ELBO bits/dim", "bits", lambda model, x: _bits(model.elbo(x), x), independent_bits),
    (Reconstructor, "reconstruction error", "error", _squared_error, mean_image_errors),
)
"""What a model may offer; the measure's name and kind; values (B,) of images; values (N,) of the trivial model, from
training images and the gate's. The first that fits counts."""
