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
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.reading import LARGEST_BY_DEFAULT, Rows, at_size, reading_size, size_of
from densitywatch.detector import conformal, explain
from densitywatch.detector.feature_cache import Images, Models, Readings
from densitywatch.detector.member import Fitted, Given, Member, named, part
from densitywatch.detector.member_table import check_reads, find_member
from densitywatch.detector.tail_combination import fit_tail, overlap, tail_surprise
from densitywatch.errors import ModelError, ParamsError
from densitywatch.files import file_digest, whole_folder
from densitywatch.models.header import check, shown
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.progress import say

FORMAT = "1"
FACTS, ARRAYS = "detector.json", "detector.safetensors"
TRAIN_IMAGES, SAMPLE_IMAGES = 40000, 8000
"""Training images for densities without a network, and other ones that the models read: at most so many, so that
time and memory do not grow with the dataset."""
DECLARED_MEMBER = "transformation_judge"
"""Joins the members when params declare transformations."""

READ = Path("models/.read")
"""Copies of the weights that calibrate and the benchmark depend on, made by stages of dvc.yaml; nothing loads them."""

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
    places: Floats | None = None
    """How what is unexpected is shared among the halves of the image (explain.HALVES), (B, 4)."""
    texture: Floats | None = None
    """The share of normal images with a shorter compressed file."""
    label: NDArray[np.int64] | None = None
    label_probability: Floats | None = None

    def __len__(self) -> int:
        return len(self.score)


class Facts(BaseModel):
    """What detector.json must say, in the very types that it is written in."""

    model_config = ConfigDict(strict=True, frozen=True)

    members: tuple[str, ...] = Field(min_length=1, max_length=64)
    models: tuple[str, ...]
    weights: dict[str, str]
    density: str | None
    declared: tuple[str, ...]
    size: int = Field(ge=1, le=4096)
    channels: int = Field(ge=1, le=3)
    resize: Literal["crop", "pad", "stretch"]
    class_names: tuple[str, ...]
    false_discovery_rate: float = Field(gt=0, lt=1)
    false_alarm_rate: float = Field(gt=0, lt=1)

    @field_validator("models", "weights", "density")
    @classmethod
    def _names(cls, given: Any) -> Any:
        for name in [given] if isinstance(given, str) else given or ():
            if not name.isidentifier():  # it is part of a path
                raise ValueError(f"{name!r:.80} is no model's name")
        return given


class Detector:
    """Scores images; made by `load`. Attributes tell which images it takes and the rates that params.yaml asked for."""

    def __init__(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], models: Models) -> None:
        self.size: int = facts["size"]
        """Of the images that come in, which is the data's."""
        self.reading: int = facts.get("reading", self.size)
        """Of the images that its own statistics are taken from; each of its models looks at its own size."""
        self.channels: int = facts["channels"]
        self.resize: str = facts["resize"]
        self.false_discovery_rate: float = facts["false_discovery_rate"]
        self.false_alarm_rate: float = facts["false_alarm_rate"]
        self.class_names: tuple[str, ...] = tuple(facts["class_names"])
        self.density: str | None = facts["density"]
        self.facts, self.arrays, self.models = facts, arrays, models
        self.members: list[Member] = [find_member(name) for name in facts["members"]]
        self._fitted = {name: part(dict(arrays), name) for name in facts["members"]}
        self._tails = {name: part(dict(arrays), f"tail.{name}") for name in facts["members"]}
        self.overlap = float(arrays["overlap"][0])
        """How many times over the members count the same evidence; the judge of declared transformations, which reads
        the images by itself, counts so many times."""
        self._texture = part(dict(arrays), "texture")
        self.calibration = np.asarray(arrays["calibration.score"], dtype=np.float64)
        if self.calibration.ndim != 1 or not len(self.calibration) or not np.isfinite(self.calibration).all():
            raise ValueError("calibration.score is no list of finite numbers")
        for tail in self._tails.values():
            tail_surprise(np.zeros(1), tail)  # fails here rather than at the first batch

    def read(self, images: Images) -> Readings:
        """Images (B, C, H, W) ready to be scored. Raises ModelError when they are not what the detector takes."""
        shape = (self.channels, self.size, self.size)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ModelError(
                f"the detector takes uint8 images (B, {', '.join(map(str, shape))}), not {images.dtype} {images.shape}"
            )
        return Readings(images, self.models, size=self.reading)

    def fitted(self, name: str) -> Fitted:
        """What was fitted for the member `name`."""
        return self._fitted[name]

    def member_scores(self, seen: Readings) -> dict[str, Floats]:
        """Each member's score of the images, by name. Raises ModelError where what was fitted for one does not fit."""
        scores = {}
        for m in self.members:
            try:
                scores[m.name] = np.asarray(m.score(seen, self._fitted[m.name]), dtype=np.float64)
            except (LookupError, TypeError, ValueError) as error:
                why = shown(f"{type(error).__name__}: {error}")
                raise ModelError(f"the detector's member {m.name} cannot score ({why}); calibrate it again") from error
        return scores

    def combine(self, members: Mapping[str, Floats]) -> Floats:
        """One score: the sum over members of -log P(a normal image scores as high), nats, (B,).

        A member of which no scores are given is left out of the sum.
        """
        weights = {DECLARED_MEMBER: self.overlap}
        surprises = [
            weights.get(m.name, 1.0) * tail_surprise(members[m.name], self._tails[m.name])
            for m in self.members
            if m.name in members
        ]
        return np.asarray(np.sum(surprises, axis=0))

    def score(self, images: Images) -> Scores:
        """Score a batch of uint8 images (B, C, H, W)."""
        seen = self.read(images)
        if len(seen) == 0:
            nothing = np.zeros(0)
            return Scores(nothing, nothing, nothing, {m.name: nothing for m in self.members})
        members = self.member_scores(seen)
        score = self.combine(members)
        return Scores(
            score=score,
            p_value=conformal.p_values(self.calibration, score),
            bits_per_dim=self._bits_per_dim(seen),
            members=members,
            places=None if self.density is None else explain.unusual_places(seen, self.density),
            texture=explain.texture_rank(seen, self._texture),
        )

    def _bits_per_dim(self, seen: Readings) -> Floats:
        if self.density is None:
            return np.full(len(seen), np.nan)
        dimensions = self.channels * size_of(self.models[self.density], self.reading) ** 2
        return np.asarray(seen.nll(self.density) / (np.log(2.0) * dimensions), dtype=np.float64)

    def surprise_map(self, images: Images) -> NDArray[np.float32]:
        """Where the surprise sits: nats of every pixel given those before it, (B, H, W) at the density model's size."""
        if self.density is None:
            raise ModelError("this detector has no exact density model, so it has no surprise map")
        return self.read(images).surprise(self.density)

    def explain(self, scores: Scores, i: int) -> str:
        """Why image i of the batch scores as it does, in plain words."""
        surprise = {
            m.name: float(tail_surprise(scores.members[m.name][i : i + 1], self._tails[m.name])[0])
            for m in self.members
        }
        return explain.in_words(
            surprise,
            self.members,
            None if scores.places is None else scores.places[i],
            0.5 if scores.texture is None else float(scores.texture[i]),
            float(scores.p_value[i]),
        )


def load(folder: Path) -> Detector:
    """The detector in `folder`; its models are in folder/members/NAME, or else beside it in ../NAME.

    Raises ModelError when it is missing, not whole, or of another version.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
    except FileNotFoundError:
        raise ModelError(f"{folder}: no outlier detector here; run `dvc repro calibrate`") from None
    except (ValueError, RecursionError, LookupError, TypeError, OSError, safetensors.SafetensorError) as error:
        why = shown(str(error))
        raise ModelError(f"{folder}: not a whole detector ({why}); run `dvc repro -f calibrate`") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ModelError(f"{folder}: this version reads detectors of format {FORMAT} only; run `dvc repro calibrate`")
    check(Facts, facts, f"{folder}: not a whole detector: {FACTS}, ")
    try:
        return Detector(facts, arrays, Models(folder / "members", folder.parent))
    except ParamsError as error:  # a member that this version does not have
        raise ModelError(f"{folder}: {shown(str(error))}") from None
    except (LookupError, TypeError, ValueError) as error:
        why = shown(f"{type(error).__name__}: {error}")
        raise ModelError(f"{folder}: not a whole detector ({why}); run `dvc repro -f calibrate`") from None


def calibrate(params: Params, root: Path) -> Path:
    """Fit the detector of params.yaml and write models/detector, whole or not at all. Returns its folder."""
    data = root / "data" / "prepared"
    info = read_info(data)
    members = [find_member(name) for name in detector_members(params.detector.members, params.detector.declared)]
    check_reads(members, params)
    drop_unread(root / READ / "detector", params.detector.reads)
    given, models = what_is_given(params, root)
    arrays: dict[str, NDArray[Any]] = {}
    total = np.zeros(len(given.validation))
    for member in members:
        arrays |= named(member.name, fit_member(member, given))
        values = np.asarray(member.score(given.validation, part(arrays, member.name)), dtype=np.float64)
        tail = fit_tail(values)
        arrays |= named(f"tail.{member.name}", tail)
        if member.name != DECLARED_MEMBER:
            total += tail_surprise(values, tail)
    arrays["overlap"] = np.array([overlap(total)])
    arrays |= named("texture", explain.fit_texture(given.validation))
    facts = {
        "format": FORMAT,
        "members": [member.name for member in members],
        "models": sorted(models.used),
        "weights": {name: file_digest(root / "models" / name / WEIGHTS) for name in sorted(models.used)},
        "density": next((name for name, model in models.used.items() if hasattr(model, "log_prob_map")), None),
        "declared": list(params.detector.declared),
        "size": info.size,
        "reading": reading_size(params.detector.size, info.size),
        "channels": info.channels,
        "resize": params.data.resize,
        "class_names": list(info.class_names),
        "data": {"name": info.name, "digest": info.digest, "counts": info.counts},
        "false_discovery_rate": params.detector.false_discovery_rate,
        "false_alarm_rate": params.detector.false_alarm_rate,
    }
    say("calibrate: scoring the calibration images")
    detector = Detector(facts, arrays | {"calibration.score": np.zeros(1)}, models)
    calibration = Readings(open_split(data, "calibration").images, models, size=detector.reading)
    arrays["calibration.score"] = np.sort(detector.combine(detector.member_scores(calibration)))
    for name in sorted(models.used):
        if any(hasattr(models[name], what) for what in ("log_prob_map", "log_prob", "elbo")):
            arrays[f"{name}.nll"] = np.sort(calibration.nll(name))
    target = root / "models" / "detector"
    with whole_folder(target) as folder:
        safetensors.numpy.save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / ARRAYS)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return target


def drop_unread(folder: Path, names: tuple[str, ...]) -> None:
    """Weights that params name no more are no part of what a stage depends on (dvc.yaml copies them there)."""
    for file in folder.glob("*.safetensors"):
        if file.stem not in names:
            file.unlink()


def detector_members(names: tuple[str, ...], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The members of params, and the judge of declared transformations where there are any.

    Raises ParamsError for a member that makes no sense without declared transformations when there are none.
    """
    if declared and DECLARED_MEMBER not in names:
        names = (*names, DECLARED_MEMBER)
    for name in names:
        if find_member(name).declared and not declared:
            raise ParamsError(f"detector.members: '{name}' needs detector.declared to name a transformation")
    return names


def what_is_given(params: Params, root: Path) -> tuple[Given, Models]:
    """What members are fitted on, and the project's models; calibration and test images are not among it."""
    data = root / "data" / "prepared"
    models = Models(root / "models")
    info = read_info(data)
    size, images = reading_size(params.detector.size, info.size), open_split(data, "train").images
    order = np.random.default_rng(params.seed).permutation(len(images))
    samples = min(SAMPLE_IMAGES, max(1, len(images) // 4))
    sample, train = np.sort(order[:samples]), np.sort(order[samples : samples + TRAIN_IMAGES])
    given = Given(
        train=Readings(Rows(images, train), models, size=size),
        sample=Readings(Rows(images, sample), models, size=size),
        all_train=at_size(images, min(size, LARGEST_BY_DEFAULT)),
        validation=Readings(open_split(data, "validation").images, models, size=size),
        seed=params.seed,
        declared=params.detector.declared,
        steps=params.detector.small_network_steps,
        declared_steps=params.detector.declared_steps,
    )
    return given, models


def fit_member(member: Member, given: Given) -> Fitted:
    """What `member` needs to score, fitted."""
    if member.fit is None:
        return {}
    say(f"calibrate: fitting {member.name}")
    return member.fit(given)
