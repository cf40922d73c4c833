"""What the models say about a batch of images, each computed once and shared by all member scores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.reading import (
    LARGEST_BY_DEFAULT,
    Images,
    at_size,
    images_at_once,
    images_within,
    in_memory,
    size_of,
)
from densitywatch.detector import image_statistics
from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.detector.pyramid_surprise import LEVELS, place_maps, pyramid_surprise
from densitywatch.errors import ModelError
from densitywatch.models.offers import ExactDensity, PixelwiseDensity
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.models.vae import kl_to_standard_normal
from densitywatch.sizes import Size, as_size

Value = TypeVar("Value")


class Models(Mapping[str, Any]):
    """The models of a detector by name, each loaded when it is first asked for; `used` holds those that were."""

    def __init__(self, *folders: Path, loaded: Mapping[str, nn.Module] | None = None) -> None:
        """The model NAME is `loaded[NAME]`, or else the first FOLDER/NAME that exists, in the order of `folders`."""
        self.folders = folders
        self.used: dict[str, nn.Module] = dict(loaded or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self.used:
            folder = next((folder for folder in self.folders if (folder / name / WEIGHTS).is_file()), None)
            if folder is None:
                raise ModelError(
                    f"the outlier detector needs the model '{name}', which is not in "
                    f"{' or '.join(str(folder) for folder in self.folders)}; train it or drop its members from params"
                )
            with torch.inference_mode(False):  # weights that are made in inference mode have no gradients later
                self.used[name] = load_model_folder(folder / name)
        return self.used[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.used)

    def __len__(self) -> int:
        return len(self.used)


class FeatureCache:
    """Images, and what the statistics and the models say about them; each is computed when first asked for.

    Images come at the data's size. Statistics are taken at `size`; each model reads at its own size. At those sizes all
    images are held in memory, and one float a pixel for each map that a member reads. So this is for a batch, or for
    the few thousand images that a detector is fitted on; a whole dataset does not fit.
    """

    def __init__(self, source: Images, models: Models, batch_size: int = 50, size: int | None = None) -> None:
        self.source, self.models, self.batch_size = source, models, batch_size
        self.size: int = min(source.shape[2:]) if size is None else size
        self._cache: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def source_size(self) -> Size:
        """The size at which the images come."""
        return as_size(*self.source.shape[2:])

    def first(self, count: int) -> FeatureCache:
        """A new cache of the first `count` images."""
        return FeatureCache(self.source[:count], self.models, self.batch_size, self.size)

    def at(self, size: Size) -> Images:
        """The images at a size; those at `self.size` are in memory."""
        return self.images if size == self.size else at_size(self.source, size)

    @cached_property
    def images(self) -> Pixels:
        """(B, C, size, size)."""
        return in_memory(at_size(self.source, self.size))

    @cached_property
    def flat_pixels(self) -> Floats:
        """(B, C * H * W) in [0, 1], of images of at most 32 pixels a side."""
        small = self.at(min(self.size, LARGEST_BY_DEFAULT))[:]
        return np.asarray(small.reshape(len(small), -1).astype(np.float32) / 255.0)

    @cached_property
    def gradient_histograms(self) -> Floats:
        """Histograms of gradient directions on a grid, (B, F); see image_statistics.py."""
        return self._in_parts(image_statistics.gradient_histograms, 5000)

    @cached_property
    def composition_statistics(self) -> Floats:
        """What the images are made of, wherever in the image it is, (B, F); see image_statistics.py."""
        return self._in_parts(image_statistics.composition_statistics, 8000)

    def _in_parts(self, read: Callable[[Pixels], Floats], most: int) -> Floats:
        """`read` of a part of the images at a time: of `most` at 28 x 28 pixels, of fewer where images are larger.

        The intermediate arrays take many times the images' own memory.
        """
        step = images_within(most, self.size**2, most * 28**2)
        return np.concatenate([read(self.images[i : i + step]) for i in range(0, max(1, len(self)), step)])

    @cached_property
    def webp_nats(self) -> Floats:
        """Length of the lossless WebP file of each image, nats, (B,)."""
        return image_statistics.webp_nats(self.images)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of `compute()`, kept under `key` for these images."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: Value = self._cache[key]
        return value

    def by_batch(self, key: Hashable, read: Callable[[Tensor], Tensor], size: Size | None = None) -> Floats:
        """`read` of the images at `size` (default `self.size`), a batch at a time and without gradients.

        The results are joined and kept under `key`.
        """
        size = self.size if size is None else size

        def compute() -> Floats:
            parts, images, step = [], self.at(size), images_at_once(self.batch_size, size)
            with torch.inference_mode():
                for start in range(0, len(self), step):
                    batch = torch.from_numpy(np.array(images[start : start + step]))
                    parts.append(read(batch).float().numpy())
            return np.concatenate(parts)

        return self.once(key, compute)

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

    def pyramid(self, name: str) -> Floats:
        """How much too surprised the pyramid `name` is at each place, of every level that is read, (B, J, h, w); see
        pyramid_surprise.py."""
        model = self.models[name]

        def read(x: Tensor) -> Tensor:
            return place_maps(pyramid_surprise(model, x, LEVELS), (x.shape[2], x.shape[3]))

        return self.by_batch(("pyramid", name), read, size_of(model, self.size))

    def vae_terms(self, name: str) -> Floats:
        """Minus log p(x|z) at the mean of q(z|x), and KL(q(z|x) || p(z)), nats, (B, 2); no randomness."""
        model = self.models[name]

        def read(x: Tensor) -> Tensor:
            mean, log_variance = model.posterior(x)
            reconstruction = model.conditional_log_prob(x, mean)
            return torch.stack([-reconstruction, kl_to_standard_normal(mean, log_variance)], 1)

        return self.by_batch(("vae terms", name), read, size_of(model, self.size))

    def nll(self, name: str) -> Floats:
        """Negative log-likelihood of the images, nats, (B,); of a model that only has an ELBO, minus the ELBO."""
        model = self.models[name]
        if ("nll", name) in self._cache:
            return np.asarray(self._cache["nll", name])
        if isinstance(model, PixelwiseDensity):
            return np.asarray(self.surprise(name).sum((1, 2)))
        if isinstance(model, ExactDensity):
            return self.by_batch(("nll", name), lambda x: -model.log_prob(x), size_of(model, self.size))
        return self.by_batch(("nll", name), lambda x: -model.elbo(x), size_of(model, self.size))
