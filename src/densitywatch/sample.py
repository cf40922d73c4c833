"""`densitywatch sample`: images drawn from a model into one PNG."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densitywatch.data.decoding.images import decode_image
from densitywatch.data.reading import resized, stored_size
from densitywatch.errors import DataError, ModelError, ParamsError
from densitywatch.files import write_whole
from densitywatch.loading import load_model
from densitywatch.models.offers import takes_labels
from densitywatch.pages import pictures
from densitywatch.progress import track

CHUNK = 16
"""Images drawn between two steps of the progress bar."""
MOST = 10_000


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

    `label`, a class's name or its number, asks a conditional model for images of it; without it such a model fills rows
    label by label. `given`, an image file, is kept in its top `rows` rows (half of them by default) and the model
    completes the rest. The same seed gives the same images.

    Raises ParamsError for what cannot be asked of any model, ModelError for what this one does not offer.
    """
    if not 1 <= n <= MOST:
        raise ParamsError(f"-n {n}: draw between 1 and {MOST:,} images")
    if out.suffix.lower() != ".png":
        raise ParamsError(f"--out {out}: the grid is a PNG file; give a name that ends in .png")
    if rows is not None and given is None:
        raise ParamsError("--rows says how much of a given image is kept; pass the image with --given")
    model: Any = load_model(model_address)
    if not hasattr(model, "sample"):
        raise ModelError(f"{model_address}: this model draws no samples")
    labels, columns = _labels(model, model_address, n, label)
    kept = _given(model, model_address, given, rows) if given is not None else {}
    generator = torch.Generator().manual_seed(seed)
    images = []
    with torch.no_grad():
        for start in track(range(0, n, CHUNK), f"drawing {n} images"):
            count = min(CHUNK, n - start)
            chosen = labels[start : start + count] if labels is not None else None
            options = {k: v.expand(count, -1, -1, -1) if isinstance(v, Tensor) else v for k, v in kept.items()}
            images.append(model.sample(count, labels=chosen, generator=generator, **options).cpu().numpy())
    write_whole(out, pictures.grid(np.concatenate(images), columns, width=None))
    return out


def _labels(model: nn.Module, address: str, n: int, label: str | None) -> tuple[Tensor | None, int]:
    """The label of every image, if any, and the grid's columns."""
    names: tuple[str, ...] = tuple(getattr(model, "class_names", ()))
    square = max(1, min(n, round(n**0.5)))
    if not takes_labels(model):
        if label is not None:
            raise ModelError(f"{address}: this model knows no labels; leave --label out or take a conditional model")
        return None, square
    if label is None:
        columns = -(-n // len(names))
        return torch.arange(len(names)).repeat_interleave(columns)[:n], columns
    return torch.full((n,), _find_label(label, names)), square


def _find_label(label: str, names: tuple[str, ...]) -> int:
    """The number of a class by its name in any case, or by the number itself; names go first."""
    folded = [name.casefold() for name in names]
    if label.casefold() in folded:
        return folded.index(label.casefold())
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ParamsError(f"--label {label}: no such label; the model knows {', '.join(names)}")


def _given(model: Any, address: str, given: Path, rows: int | None) -> dict[str, Any]:
    """The keyword arguments of `sample` that keep the given image's top rows."""
    if not {"given", "rows"} <= inspect.signature(model.sample).parameters.keys():
        raise ModelError(f"{address}: this model completes no images; take an autoregressive one such as pixelcnn")
    size: int = model.size
    rows = size // 2 if rows is None else rows
    if not 0 <= rows <= size:
        raise ParamsError(f"--rows {rows}: the model's images have {size} rows")
    try:
        # as the model's training images were: first at the data's size, then at the model's
        pixels = decode_image(given.read_bytes(), size=stored_size(model), channels=model.channels, resize="crop")
    except FileNotFoundError:
        raise DataError(f"{given}: no such file") from None
    except DataError as error:
        raise DataError(f"{given}: {error}") from None
    return {"given": torch.from_numpy(resized(np.array(pixels)[None], size)), "rows": rows}
