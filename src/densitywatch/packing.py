"""What goes into the registry: the files of one version, a digest over them, and the tags that describe them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from densitywatch.addresses import CONTENT
from densitywatch.champions import REGISTERED
from densitywatch.errors import ModelError
from densitywatch.files import content_digest, file_digest
from densitywatch.models import WEIGHTS, load_model_folder

__all__ = ["CALIBRATION", "CONTENT", "REGISTERED", "WEIGHTS_TAG", "content_digest", "pack_detector", "pack_model"]

CALIBRATION = "calibration.safetensors"
WEIGHTS_TAG = "weights_sha256"


def pack_model(name: str, root: Path, packed: Path) -> dict[str, str]:
    """Fill the folder `packed` with what serving models/<name> takes; returns tags.

    With a density go the sorted scores of the calibration images, which give p-values, where models/detector was
    calibrated with these very weights. Raises ModelError when there is no whole model.
    """
    folder = root / "models" / name
    header = load_model_folder(folder).header  # loaded, so that nothing goes in that cannot be
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
    """The sorted nats of the calibration images under these weights; None where the detector has not got them."""
    try:
        facts = json.loads((detector / "detector.json").read_text(encoding="utf-8"))
        if facts["weights"][name] != weights:
            return None
        with safetensors.safe_open(detector / "detector.safetensors", framework="numpy") as file:
            return np.sort(file.get_tensor(f"{name}.nll").astype(np.float64))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def pack_detector(root: Path, packed: Path, version_of: Callable[[str, str], int | None]) -> dict[str, str]:
    """Fill the folder `packed` with models/detector and the weights of its models; returns tags.

    `version_of(model, weights digest)` is the registered version of a member, which a tag names. Raises ModelError when
    there is no whole detector or a model was trained again after the detector was calibrated.
    """
    from densitywatch.outliers import detector

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
