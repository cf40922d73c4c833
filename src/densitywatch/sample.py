"""`densitywatch sample`: images drawn from a model, in one PNG."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from densitywatch.data.decoding.images import decode_image
from densitywatch.data.reading import resized, stored_size
from densitywatch.errors import DataError, ModelError, ParamsError
from densitywatch.files import write_whole
from densitywatch.loading import load_model
from densitywatch.models.offers import Sampler, takes_labels
from densitywatch.pages import pictures
from densitywatch.progress import track

CHUNK = 16
"""Images drawn at a time; the progress bar moves after each chunk."""
MOST = 10_000
"""Images in one grid."""


class Completer(Sampler, Protocol):
    """A model that also completes images."""

    channels: int
    size: int

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
        rows: int = 0,
    ) -> Tensor:
        """n images, uint8 (n, C, H, W), with the first `rows` rows of `given`."""


def draw(
    model_address: str,
    n: int,
    label: str | None = None,
    seed: int = 1,
    given: Path | None = None,
    rows: int | None = None,
    out: Path = Path("grid.png"),
) -> Path:
    """Draw `n` images from the model at `model_address` (a folder or a registry address) into the PNG grid `out`.

    label: a class's name or number; a conditional model draws only that class. Without it such a model fills the grid
    label by label. given: an image file; its top `rows` rows (half of them by default) are kept and the model completes
    the rest. The same seed gives the same images.

    Raises ParamsError for arguments that no model takes, ModelError for what this model does not offer, DataError for
    a given image that cannot be read.
    """
    if not 1 <= n <= MOST:
        raise ParamsError(f"-n {n}: draw between 1 and {MOST:,} images")
    if out.suffix.lower() != ".png":
        raise ParamsError(f"--out {out}: the grid is a PNG file; give a name that ends in .png")
    if rows is not None and given is None:
        raise ParamsError("--rows says how many rows of a given image are kept; pass the image with --given")
    model = load_model(model_address)
    if not isinstance(model, Sampler):
        raise ModelError(f"{model_address}: this model draws no samples")
    labels, columns = _labels(model, model_address, n, label)
    kept: dict[str, Any] = {}
    if given is not None:
        if not completes(model):
            raise ModelError(
                f"{model_address}: this model completes no images; take an autoregressive one such as pixelcnn"
            )
        kept = _given(model, given, rows)
    generator = torch.Generator().manual_seed(seed)
    images = []
    with torch.no_grad():
        for start in track(range(0, n, CHUNK), f"drawing {n} images"):
            count = min(CHUNK, n - start)
            chosen = labels[start : start + count] if labels is not None else None
            options: dict[str, Any] = {
                k: v.expand(count, -1, -1, -1) if isinstance(v, Tensor) else v for k, v in kept.items()
            }
            images.append(model.sample(count, labels=chosen, generator=generator, **options).cpu().numpy())
    write_whole(out, pictures.grid(np.concatenate(images), columns, width=None))
    return out


def _labels(model: Sampler, address: str, n: int, label: str | None) -> tuple[Tensor | None, int]:
    """The label (n,) of every image, or None for a model without labels, and the grid's number of columns."""
    names: tuple[str, ...] = tuple(getattr(model, "class_names", ()))
    square = max(1, min(n, round(n**0.5)))
    if not takes_labels(model):
        if label is not None:
            raise ModelError(f"{address}: this model has no labels; leave --label out or take a conditional model")
        return None, square
    if label is None:
        columns = -(-n // len(names))
        return torch.arange(len(names)).repeat_interleave(columns)[:n], columns
    return torch.full((n,), _find_label(label, names)), square


def _find_label(label: str, names: tuple[str, ...]) -> int:
    """The number of a class, found by its name in any case or by the number itself; a name has precedence."""
    folded = [name.casefold() for name in names]
    if label.casefold() in folded:
        return folded.index(label.casefold())
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ParamsError(f"--label {label}: no such label; the model has {', '.join(names)}")


def completes(model: Sampler) -> TypeGuard[Completer]:
    """Whether `sample` takes an image to complete."""
    return {"given", "rows"} <= inspect.signature(model.sample).parameters.keys()


def _given(model: Completer, given: Path, rows: int | None) -> dict[str, Any]:
    """The keyword arguments of `sample` that keep the top rows of the image in the file `given`."""
    rows = model.size // 2 if rows is None else rows
    if not 0 <= rows <= model.size:
        raise ParamsError(f"--rows {rows}: the model's images have {model.size} rows; ask for no more than those")
    try:
        # resized in two steps, as the model's training images were: to the data's size, then to the model's
        pixels = decode_image(given.read_bytes(), size=stored_size(model), channels=model.channels, resize="crop")
    except FileNotFoundError:
        raise DataError(f"{given}: no such file; pass the path of an image with --given") from None
    except DataError as error:
        raise DataError(f"{given}: {error}") from None
    return {"given": torch.from_numpy(resized(np.array(pixels)[None], model.size)), "rows": rows}
