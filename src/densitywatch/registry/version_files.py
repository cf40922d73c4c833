"""The files of one registered version, a digest over them, and the tags that describe them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from densitywatch.detector import detector
from densitywatch.errors import ModelError
from densitywatch.files import content_digest, file_digest
from densitywatch.models.header import shown
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.registry.champions import REGISTERED
from densitywatch.tracking.addresses import CONTENT

CALIBRATION = "calibration.safetensors"
WEIGHTS_TAG = "weights_sha256"
MAX_NATS = 10_000_000


def pack_model(name: str, root: Path, packed: Path) -> dict[str, str]:
    """Fill the folder `packed` with what serving models/<name> needs; returns the version's tags.

    A density gets p-values where models/detector was calibrated with these very weights: the sorted scores of the
    calibration images are packed with it. Raises ModelError when there is no whole model.
    """
    folder = root / "models" / name
    header = load_model_folder(folder).header  # a model that cannot be loaded is not packed
    assert isinstance(header, Mapping)
    shutil.copyfile(folder / WEIGHTS, packed / WEIGHTS)
    weights = file_digest(packed / WEIGHTS)
    scores = calibration_of(name, weights, root / "models" / "detector")
    if scores is not None:
        safetensors.numpy.save_file({"nll": scores}, packed / CALIBRATION)
    return {
        "kind": str(header["kind"]),
        "data_digest": str(header.get("data_digest", "")),
        "calibration_images": str(0 if scores is None else len(scores)),
        WEIGHTS_TAG: weights,
        CONTENT: content_digest(packed),
    }


def calibration_of(name: str, weights: str, detector: Path) -> npt.NDArray[np.float64] | None:
    """The sorted nats of the calibration images under these weights; None where the detector does not have them."""
    try:
        facts = json.loads((detector / "detector.json").read_text(encoding="utf-8"))
        if facts["weights"][name] != weights:
            return None
        return np.sort(_nats(detector / "detector.safetensors", f"{name}.nll").astype(np.float64))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ModelError, safetensors.SafetensorError):
        return None


def load_calibration(path: Path) -> npt.NDArray[np.float64]:
    """The sorted nats that `pack_model` wrote. Raises ModelError where the file holds something else."""
    try:
        nats = _nats(path, "nll")
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({shown(str(error))}); register the model again"
        ) from None
    if nats.dtype != np.float64 or (np.diff(nats) < 0).any():
        raise ModelError(f"{path}: not the sorted scores of calibration images; register the model again")
    return nats


def _nats(path: Path, name: str) -> npt.NDArray[Any]:
    """The finite numbers of one 1-D tensor. Its shape is checked before its data is read."""
    with safetensors.safe_open(path, framework="numpy") as file:
        found = file.get_slice(name) if name in file.keys() else None  # noqa: SIM118
        shape = [] if found is None else list(found.get_shape())
        if found is None or found.get_dtype() not in ("F64", "F32") or len(shape) != 1 or not 0 < shape[0] <= MAX_NATS:
            raise ModelError(f"{path}: has no scores of calibration images under {name}; register the model again")
        nats: npt.NDArray[Any] = file.get_tensor(name)
    if not np.isfinite(nats).all():
        raise ModelError(f"{path}: some of its scores are no finite numbers; register the model again")
    return nats


def pack_detector(root: Path, packed: Path, version_of: Callable[[str, str], int | None]) -> dict[str, str]:
    """Fill the folder `packed` with models/detector and the weights of its models; returns the version's tags.

    `version_of(model, digest of the weights)` is the registered version of a member; a tag names it. Raises ModelError
    when there is no whole detector or a model was trained again after the detector was calibrated.
    """
    folder = root / "models" / "detector"
    loaded = detector.load(folder)
    for file in (detector.FACTS, detector.ARRAYS):
        shutil.copyfile(folder / file, packed / file)
    tags = {"members": ",".join(loaded.facts["members"])}
    for name, calibrated in sorted(loaded.facts["weights"].items()):
        load_model_folder(root / "models" / name)
        member = packed / "members" / name
        member.mkdir(parents=True)
        shutil.copyfile(root / "models" / name / WEIGHTS, member / WEIGHTS)
        if file_digest(member / WEIGHTS) != calibrated:
            raise ModelError(f"models/detector was calibrated with other weights of {name}; run `dvc repro calibrate`")
        version = version_of(name, calibrated)
        tags[f"member.{name}"] = f"{REGISTERED}{name}/{version}" if version else "not registered"
    return {**tags, CONTENT: content_digest(packed)}
