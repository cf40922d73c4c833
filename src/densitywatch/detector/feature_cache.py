"""What the models say about a batch of images, each computed once and shared by all member scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densitywatch.data.reading import LARGEST_BY_DEFAULT, at_size, images_at_once, images_within, in_memory, size_of
from densitywatch.data.reading import Images as Source
from densitywatch.detector import image_statistics as features
from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.errors import ModelError
from densitywatch.models.storage import WEIGHTS, load_model_folder

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


class Models(Mapping[str, Any]):
    """The models of a detector by name, loaded when first asked for; `used` tells which were."""

    def __init__(self, *folders: Path, given: Mapping[str, nn.Module] | None = None) -> None:
        """A model NAME is one of `given`, or looked for as FOLDER/NAME, in the order of `folders`."""
        self.folders = folders
        self.used: dict[str, nn.Module] = dict(given or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self.used:
            for folder in self.folders:
                if (folder / name / WEIGHTS).is_file():
                    with torch.inference_mode(
                        False
                    ):  # first asked for inside it, weights could never be differentiated
                        self.used[name] = load_model_folder(folder / name)
                    break
            else:
                raise ModelError(
                    f"the outlier detector needs the model '{name}', which is not in "
                    f"{' or '.join(str(folder) for folder in self.folders)}; train it or drop its members from params"
                )
        return self.used[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.used)

    def __len__(self) -> int:
        return len(self.used)


class Readings:
    """Images and, computed when first asked for, what the models say about them.

    They come at the data's size. Statistics are taken at `size`, each model looks at its own; at those sizes all images
    are held in memory, with one float a pixel for each map that a member reads: for batches and for the few thousand
    images that a detector is fitted on, not for a whole dataset.
    """

    def __init__(self, source: Source, models: Models, batch_size: int = 50, size: int | None = None) -> None:
        self.source, self.models, self.batch_size = source, models, batch_size
        self.size: int = source.shape[-1] if size is None else size
        self._cache: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.source)

    def first(self, some: int) -> Readings:
        """Fresh readings of the first `some` images."""
        return Readings(self.source[:some], self.models, self.batch_size, self.size)

    def at(self, size: int) -> Source:
        """The images at a size; those at `self.size` are in memory."""
        return self.images if size == self.size else at_size(self.source, size)

    @cached_property
    def images(self) -> Images:
        """(B, C, size, size)."""
        return in_memory(at_size(self.source, self.size))

    @cached_property
    def pixels(self) -> Floats:
        """(B, C * H * W) in [0, 1], of images of at most 32 pixels a side."""
        small = self.at(min(self.size, LARGEST_BY_DEFAULT))[:]
        return np.asarray(small.reshape(len(small), -1).astype(np.float32) / 255.0)

    @cached_property
    def gradients(self) -> Floats:
        """Histograms of gradient directions on a grid, (B, F); see image_statistics.py."""
        return self._in_parts(features.gradient_histograms, 5000)

    @cached_property
    def composition(self) -> Floats:
        """What the images are made of wherever it lies, (B, F); see image_statistics.py."""
        return self._in_parts(features.composition, 8000)

    def _in_parts(self, read: Callable[[Images], Floats], most: int) -> Floats:
        """`read` of so many images of 28 x 28 pixels at a time: what is computed on the way takes many times their
        memory."""
        step = images_within(most, self.size**2, most * 28**2)
        return np.concatenate([read(self.images[i : i + step]) for i in range(0, max(1, len(self)), step)])

    @cached_property
    def webp_nats(self) -> NDArray[np.float64]:
        """Length of the lossless WebP file of each image, nats, (B,)."""
        return features.webp_nats(self.images)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute()`, kept under `key` for these images."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def by_batch(self, key: Any, read: Callable[[Tensor], Tensor], size: int | None = None) -> Floats:
        """`read` applied to the images, at `size` or `self.size`, batch by batch without gradients, joined and kept
        under `key`.
        """
        size = self.size if size is None else size

        def compute() -> Floats:
            parts, seen, step = [], self.at(size), images_at_once(self.batch_size, size)
            with torch.inference_mode():
                for start in range(0, len(self), step):
                    images = torch.from_numpy(np.array(seen[start : start + step]))
                    parts.append(read(images).float().numpy())
            return np.concatenate(parts)

        result: Floats = self.once(key, compute)
        return result

    def surprise_statistics(self, name: str) -> Floats:
        """-log p of every pixel given the ones before it, its expectation and its variance: (3, B, H, W)."""
        key = ("surprise statistics", name)
        model = self.models[name]
        parts = self.by_batch(key, lambda x: surprise_statistics(model, x).transpose(0, 1), size_of(model, self.size))
        return parts.swapaxes(0, 1)

    def surprise(self, name: str) -> Floats:
        """-log p of every pixel given the ones before it under the model `name`, nats, (B, H, W)."""
        if ("surprise statistics", name) in self._cache:
            return np.asarray(self.surprise_statistics(name)[0])
        model = self.models[name]
        return self.by_batch(("surprise", name), lambda x: -model.log_prob_map(x), size_of(model, self.size))

    def vae_terms(self, name: str) -> Floats:
        """Minus log p(x|z) at the mean of q(z|x), and KL(q(z|x) || p(z)), nats, (B, 2); no randomness."""

        model = self.models[name]

        def read(x: Tensor) -> Tensor:
            from densitywatch.models.vae import kl_to_standard_normal

            mean, log_variance = model.posterior(x)
            reconstruction = model.conditional_log_prob(x, mean)
            return torch.stack([-reconstruction, kl_to_standard_normal(mean, log_variance)], 1)

        return self.by_batch(("vae terms", name), read, size_of(model, self.size))

    def nll(self, name: str) -> Floats:
        """Negative log-likelihood of the images, nats, (B,); of an ELBO's model the negative ELBO."""
        model = self.models[name]
        if hasattr(model, "log_prob_map"):
            return np.asarray(self.surprise(name).sum((1, 2)))
        if hasattr(model, "log_prob"):
            return self.by_batch(("nll", name), lambda x: -model.log_prob(x), size_of(model, self.size))
        return self.by_batch(("nll", name), lambda x: -model.elbo(x), size_of(model, self.size))
