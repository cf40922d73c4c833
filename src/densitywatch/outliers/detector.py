"""The outlier detector: member scores, one score made of them, and conformal p-values.

Fitted on training and validation images; p-values come from calibration images, which nothing is fitted on. On disk:

    models/detector/detector.safetensors    what was fitted, and the sorted scores of the calibration images
    models/detector/detector.json           members, models, what the images are, the rates of params.yaml
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from densitywatch.data import open_split, read_info
from densitywatch.errors import ModelError
from densitywatch.files import file_digest, whole_folder
from densitywatch.models import WEIGHTS
from densitywatch.outliers import conformal
from densitywatch.outliers.readings import Images, Models, Readings
from densitywatch.outliers.scores import Fitted, Given, find_member
from densitywatch.params import Params
from densitywatch.progress import say

FORMAT = "1"
FACTS, ARRAYS = "detector.json", "detector.safetensors"
SMALL_NETWORK_STEPS = 300
"""Length of the training of a score's own small network."""
FIT_IMAGES = 20000
"""At most this many training images are read for fitting, so that memory does not grow with the dataset."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What the detector says about a batch, one value an image."""

    score: Floats
    """Higher is more outlying; its scale means nothing beside other scores of the same detector."""
    p_value: Floats
    """Small is outlying: the share of calibration images at least as outlying."""
    bits_per_dim: Floats
    """Of the exact density model; NaN where the detector has none."""
    members: dict[str, Floats]
    """Each member's own score."""
    label: NDArray[np.int64] | None = None
    label_probability: Floats | None = None

    def __len__(self) -> int:
        return len(self.score)


class Detector:
    """Scores images; made by `load`. Attributes tell which images it takes and the rates that params.yaml asked for."""

    def __init__(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], models: Models) -> None:
        self.size: int = facts["size"]
        self.channels: int = facts["channels"]
        self.resize: str = facts["resize"]
        self.false_discovery_rate: float = facts["false_discovery_rate"]
        self.false_alarm_rate: float = facts["false_alarm_rate"]
        self.class_names: tuple[str, ...] = tuple(facts["class_names"])
        self.density: str | None = facts["density"]
        self.facts, self.arrays, self.models = facts, arrays, models
        self.members = [find_member(name) for name in facts["members"]]
        self.calibration = np.asarray(arrays["calibration.score"], dtype=np.float64)

    def read(self, images: Images) -> Readings:
        """Images (B, C, H, W) ready to be scored. Raises ModelError when they are not what the detector takes."""
        shape = (self.channels, self.size, self.size)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ModelError(
                f"the detector takes uint8 images (B, {', '.join(map(str, shape))}), not {images.dtype} {images.shape}"
            )
        return Readings(images, self.models)

    def fitted(self, name: str) -> Fitted:
        """What was fitted for the member `name`."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def member_scores(self, seen: Readings) -> dict[str, Floats]:
        return {m.name: np.asarray(m.score(seen, self.fitted(m.name)), dtype=np.float64) for m in self.members}

    def score(self, images: Images) -> Scores:
        """Score a batch of uint8 images (B, C, H, W)."""
        seen = self.read(images)
        members = self.member_scores(seen)
        score = combine(members, self.fitted("combination"))
        return Scores(
            score=score,
            p_value=conformal.p_values(self.calibration, score),
            bits_per_dim=self._bits_per_dim(seen),
            members=members,
        )

    def _bits_per_dim(self, seen: Readings) -> Floats:
        if self.density is None:
            return np.full(len(seen), np.nan)
        dimensions = self.channels * self.size * self.size
        return np.asarray(seen.nll(self.density) / (np.log(2.0) * dimensions), dtype=np.float64)

    def surprise_map(self, images: Images) -> NDArray[np.float32]:
        """Where the surprise sits: nats of every pixel given those before it, (B, H, W)."""
        if self.density is None:
            raise ModelError("this detector has no exact density model, so it has no surprise map")
        return self.read(images).surprise(self.density)

    def explain(self, scores: Scores, i: int) -> str:
        """Why image i of the batch scores as it does, in plain words."""
        share = scores.p_value[i]
        return f"{self.members[0].says}; {share:.1%} of normal images are at least as unusual"


def combine(members: Mapping[str, Floats], fitted: Fitted) -> Floats:
    """One score of the member scores."""
    return np.asarray(next(iter(members.values())))


def load(folder: Path) -> Detector:
    """The detector in `folder`; its models are in folder/members/NAME, or else beside it in ../NAME.

    Raises ModelError when it is missing, not whole, or of another version.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
    except FileNotFoundError:
        raise ModelError(f"{folder}: no outlier detector here; run `dvc repro calibrate`") from None
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: not a whole detector ({error}); run `dvc repro -f calibrate`") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ModelError(f"{folder}: this version reads detectors of format {FORMAT} only; run `dvc repro calibrate`")
    return Detector(facts, arrays, Models(folder / "members", folder.parent))


def calibrate(params: Params, root: Path) -> Path:
    """Fit the detector of params.yaml and write models/detector, whole or not at all. Returns its folder."""
    data = root / "data" / "prepared"
    info = read_info(data)
    models = Models(root / "models")
    rng = np.random.default_rng(params.seed)
    members = [find_member(name) for name in params.detector.members]
    batch = params.detector.batch_size

    train_images = open_split(data, "train").images
    chosen = np.sort(rng.choice(len(train_images), min(FIT_IMAGES, len(train_images)), replace=False))
    train = Readings(train_images[chosen], models, batch)
    validation = Readings(np.array(open_split(data, "validation").images), models, batch)
    given = Given(train, validation, params.seed, params.detector.declared, SMALL_NETWORK_STEPS)
    arrays: dict[str, NDArray[Any]] = {}
    for member in members:
        if member.fit is not None:
            say(f"calibrate: fitting {member.name}")
            arrays |= {f"{member.name}.{key}": value for key, value in member.fit(given).items()}

    for member in members:  # tells which models the members read
        member.score(Readings(validation.images[:2], models), _part(arrays, member.name))
    density = next((name for name, model in models.used.items() if hasattr(model, "log_prob_map")), None)
    facts = {
        "format": FORMAT,
        "members": [member.name for member in members],
        "models": sorted(models.used),
        # the registry packs models beside the detector, and must not pack others than these
        "weights": {name: file_digest(root / "models" / name / WEIGHTS) for name in sorted(models.used)},
        "density": density,
        "size": info.size,
        "channels": info.channels,
        "resize": params.data.resize,
        "class_names": list(info.class_names),
        "data": {"name": info.name, "digest": info.digest, "counts": info.counts},
        "false_discovery_rate": params.detector.false_discovery_rate,
        "false_alarm_rate": params.detector.false_alarm_rate,
    }
    say("calibrate: scoring the calibration images")
    calibration = Readings(np.array(open_split(data, "calibration").images), models, batch)
    detector = Detector(facts, arrays | {"calibration.score": np.zeros(1)}, models)
    values = combine(detector.member_scores(calibration), detector.fitted("combination"))
    arrays["calibration.score"] = np.sort(values)
    for name in sorted(models.used):
        if any(hasattr(models[name], what) for what in ("log_prob_map", "log_prob", "elbo")):
            arrays[f"{name}.nll"] = np.sort(calibration.nll(name))
    target = root / "models" / "detector"
    with whole_folder(target) as folder:
        safetensors.numpy.save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / ARRAYS)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return target


def _part(arrays: Mapping[str, NDArray[Any]], name: str) -> Fitted:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
