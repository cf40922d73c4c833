"""What a served model answers: images in, one answer an image out; or a number of samples in, images out.

No MLflow here: serving.py puts this behind MLflow's HTTP server. Registered versions import Service, Answer, read_json,
too_large and MAX_REQUEST from this file, so these names stay.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densitywatch.arrays import Pixels
from densitywatch.data.decoding.images import Resize, decode_image
from densitywatch.data.encoding import png
from densitywatch.data.reading import images_at_once, resized, stored_size
from densitywatch.detector import conformal, detector
from densitywatch.errors import DataError
from densitywatch.models.offers import Bounded, ExactDensity, Reconstructor, Sampler, takes_labels
from densitywatch.models.storage import load_model_folder
from densitywatch.registry.version_files import CALIBRATION, load_calibration
from densitywatch.sizes import Size, height_width

MAX_IMAGES = 1024
MAX_SAMPLES = 64
MAX_REQUEST = 32 << 20
"""Bytes of one request, and letters of all its base64 texts together. Decoded, they take several times as much."""
BATCH = 64
FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")
IMAGES = "nested arrays of 0 to 255, or image files in base64"

Answer = dict[str, Any]


class Service:
    """A registered version, loaded, and its answers. One request at a time, so that memory stays bounded."""

    def __init__(self, folder: Path, resize: Resize) -> None:
        """`folder`: what version_files.py packed. `resize`: how files of other sizes are brought to the model's."""
        self.resize: Resize = resize
        self.detector = detector.load(folder) if (folder / detector.FACTS).is_file() else None
        self.model: Any = load_model_folder(folder) if self.detector is None else None
        takes: Any = self.detector or self.model
        self.channels: int = takes.channels
        self.size: Size = takes.size if self.detector is not None else stored_size(self.model)
        """Image files are brought to this size, as the model's training images were, and then to the model's size."""
        scores = folder / CALIBRATION
        self.calibration = load_calibration(scores) if scores.is_file() else None
        self._one_at_a_time = threading.Lock()

    def answer(self, request: Any) -> list[Answer]:
        """Answers to images, or to `{"samples": n, "seed": s, "label": name}` from models that draw samples.

        Images: integers 0 to 255 of shape (N, C, H, W), or (N, H, W) where the model is of grey images; or N strings,
        image files in base64. Raises DataError with a sentence for anything else.
        """
        if isinstance(request, Mapping) and "samples" in request:
            with self._one_at_a_time:
                return self._samples(request)
        images = self.read(request)
        with self._one_at_a_time, torch.inference_mode():
            step = images_at_once(BATCH, self.size if self.model is None else self.model.size)
            parts = [self._scores(images[start : start + step]) for start in range(0, len(images), step)]
        return [answer for part in parts for answer in part]

    def read(self, request: Any) -> Pixels:
        """The request's images as uint8 (N, C, H, W)."""
        if isinstance(request, Mapping):
            raise DataError(
                f"images come as a list, not as an object with the keys {', '.join(map(str, request))[:100]}"
            )
        if not isinstance(request, np.ndarray):
            if not isinstance(request, Sequence) or isinstance(request, str | bytes):
                raise DataError(f"send a list of images: {IMAGES}")
            strings = any(isinstance(item, str) for item in request)
            request = np.array(request, dtype=object) if strings else _numbers(request)
        if len(request.shape) == 0 or len(request) == 0:
            raise DataError("there is no image in the request")
        if len(request) > MAX_IMAGES:
            raise DataError(f"{len(request)} images are more than the {MAX_IMAGES} of one request; send several")
        return self._files(request) if request.dtype.kind in "OUS" else self._arrays(request)

    def _files(self, texts: npt.NDArray[Any]) -> Pixels:
        if (letters := sum(len(text) for text in texts if isinstance(text, str))) > MAX_REQUEST:
            raise DataError(too_large(letters))
        images = []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"image {number} is no base64 text; send arrays or base64, not both")
            try:
                data = base64.b64decode(
                    text.partition("base64,")[2] if text.startswith("data:") else text, validate=True
                )
            except (binascii.Error, ValueError):
                raise DataError(f"image {number} is not base64") from None
            try:
                images.append(decode_image(data, size=self.size, channels=self.channels, resize=self.resize))
            except DataError as error:
                raise DataError(f"image {number}: {error}") from None
        return np.stack(images)

    def _arrays(self, values: npt.NDArray[Any]) -> Pixels:
        if values.ndim == 3 and self.channels == 1:
            values = values[:, None]
        shape = (self.channels, *height_width(self.size))
        seen = self.size if self.model is None else self.model.size
        if values.shape[1:] not in (shape, (self.channels, *height_width(seen))):
            raise DataError(f"images have the shape {list(values.shape[1:])} where the model takes {list(shape)}")
        if values.dtype.kind not in "iuf" or not ((values >= 0) & (values <= 255) & (values == np.round(values))).all():
            raise DataError("pixels must be whole numbers from 0 to 255")
        return values.astype(np.uint8)

    def _scores(self, images: Pixels) -> list[Answer]:
        if self.detector is not None:
            scores = self.detector.score(images)
            columns: dict[str, Any] = {
                "score": scores.score,
                "p_value": scores.p_value,
                "outlier": scores.p_value <= self.detector.false_alarm_rate,
                "bits_per_dim": scores.bits_per_dim,
            }
        else:
            columns = self._model_scores(torch.from_numpy(resized(images, self.model.size)))
        return [{key: _plain(values[i]) for key, values in columns.items()} for i in range(len(images))]

    def _model_scores(self, x: Tensor) -> dict[str, Any]:
        model, columns = self.model, {}
        nats_per_bit = math.log(2) * x[0].numel()
        if isinstance(model, ExactDensity):
            nll = -model.log_prob(x).double().numpy()
            p = [None] * len(x) if self.calibration is None else conformal.p_values(self.calibration, nll)
            return {"bits_per_dim": nll / nats_per_bit, "p_value": p}
        if isinstance(model, Bounded):
            with torch.random.fork_rng():
                torch.manual_seed(0)  # the bound draws latents: the same request gets the same answer
                columns["elbo_bits_per_dim"] = -model.elbo(x).double().numpy() / nats_per_bit
        if isinstance(model, Reconstructor):
            error = (model.reconstruct(x).double() - x.double()) / 255
            columns["reconstruction_mse"] = error.square().mean((1, 2, 3)).numpy()
        if not columns:
            raise DataError('this model judges no images, it draws them: send {"inputs": {"samples": 4, "seed": 1}}')
        return columns

    def _samples(self, request: Mapping[str, Any]) -> list[Answer]:
        if not isinstance(self.model, Sampler):
            raise DataError("this model draws no samples; send images")
        if unknown := set(request) - {"samples", "seed", "label"}:
            raise DataError(f"'{sorted(unknown)[0]}': unknown key; a request for samples has samples, seed and label")
        n, seed = _whole(request, "samples", 1, MAX_SAMPLES), _whole({"seed": 1, **request}, "seed", 0, 2**31 - 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            images = self.model.sample(n, labels=self._label(request, n), generator=generator)
        return [{"image": base64.b64encode(png(image)).decode()} for image in images.cpu().numpy()]

    def _label(self, request: Mapping[str, Any], n: int) -> Tensor | None:
        takes = takes_labels(self.model)
        if "label" not in request:
            return torch.arange(n) % self.model.classes if takes else None
        names = self.model.class_names
        label = str(_alone(request["label"]))
        if not takes:
            raise DataError("this model knows no labels; leave label out")
        if label not in names:
            raise DataError(f"'{label[:50]}': no such label; there are {', '.join(names)}")
        return torch.full((n,), names.index(label))


def answers_of(model: Any) -> dict[str, str]:
    """The keys of `Service`'s answers for this model (None: the detector), each with MLflow's name of its type."""
    if model is None:
        return {"score": "double", "p_value": "double", "outlier": "boolean", "bits_per_dim": "double"}
    if isinstance(model, ExactDensity):
        return {"bits_per_dim": "double", "p_value": "double"}
    keys = {Bounded: "elbo_bits_per_dim", Reconstructor: "reconstruction_mse"}
    return {key: "double" for offer, key in keys.items() if isinstance(model, offer)} or {"image": "string"}


def read_json(data: bytes | str) -> Any:
    """What the body of a request asks for: a list of images, or an object. Raises DataError with a sentence."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError('the request is no JSON; send {"inputs": [...]}') from None
    given = [form for form in FORMS if isinstance(body, dict) and form in body]
    if len(given) != 1:
        raise DataError(f"the request must be an object with one of the keys {', '.join(FORMS)}")
    content = body[given[0]]
    if given[0] == "dataframe_split":
        table = content if isinstance(content, dict) else {}
        rows, columns = table.get("data"), table.get("columns", ["image"])
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise DataError("dataframe_split needs data, a list of rows")
        if columns not in (["image"], [0]) or any(len(row) != 1 for row in rows):
            raise DataError("a table needs one column, called image")
        return [row[0] for row in rows]
    if given[0] == "dataframe_records":
        if not isinstance(content, list) or not all(
            isinstance(row, dict) and list(row) == ["image"] for row in content
        ):
            raise DataError("a table needs one column, called image")
        return [row["image"] for row in content]
    return content


def _numbers(images: Sequence[Any]) -> npt.NDArray[Any]:
    """Nested lists as an array. Texts never get to numpy, which would make each as long as the longest."""
    try:
        objects = np.array(images, dtype=object)
    except (ValueError, TypeError, RecursionError):
        raise DataError("the images are not all of one shape") from None
    kinds = set(map(type, objects.ravel()))
    if any(issubclass(kind, list | tuple | np.ndarray) for kind in kinds):
        raise DataError("the images are not all of one shape")
    if any(issubclass(kind, bool) or not issubclass(kind, int | float | np.number) for kind in kinds):
        raise DataError(f"an image is neither of {IMAGES}")
    try:
        return objects.astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        raise DataError("pixels must be whole numbers from 0 to 255") from None


def too_large(size: int) -> str:
    """The sentence for a request that is refused unread."""
    return (
        f"the request has {size >> 20} MiB, more than the {MAX_REQUEST >> 20} of one request; send fewer images at once"
    )


def _alone(value: Any) -> Any:
    """The value of a scalar or of an array with one element; None for several values."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):  # lists in lists that make no array
        return None
    return array.item() if array.size == 1 else None


def _whole(request: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = _alone(request[key])
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise DataError(f"{key} must be a whole number from {low} to {high}")
    return value


def _plain(value: Any) -> float | bool | None:
    """As JSON has it: no numpy types, and no NaN, which JSON cannot say."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    return float(value) if math.isfinite(value) else None
