"""The outlier detector as it scores: member scores, one score made of them, and conformal p-values.

calibrate.py fits it on training and validation images; p-values come from calibration images, which nothing is fitted
on. On disk:

    models/detector/detector.safetensors    what was fitted, and the sorted scores of the calibration images
    models/detector/detector.json           members, models, what the images are, the rates of params.yaml
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.data.reading import size_of
from densitywatch.detector import conformal, explain
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.local.map_rarity import enlarged
from densitywatch.detector.member import Member, without_prefix
from densitywatch.detector.member_table import find_member
from densitywatch.detector.tail_combination import combined, tail_surprise
from densitywatch.errors import ModelError, ParamsError
from densitywatch.models.header import check, shown
from densitywatch.params import LARGEST_STORED
from densitywatch.sizes import Size, height_width, read_size

FORMAT = "2"
FACTS, ARRAYS = "detector.json", "detector.safetensors"
DECLARED_MEMBER = "transformation_judge"
"""Joins the members when params declare transformations."""


@dataclass(frozen=True)
class Scores:
    """What the detector says about B images; arrays are (B,) unless a line says otherwise."""

    score: Floats
    """Higher is more outlying; comparable only with other scores of the same detector."""
    p_value: Floats
    """Small is outlying: the share of calibration images that score as high."""
    bits_per_dim: Floats
    """Of the exact density model; NaN where the detector has none."""
    members: dict[str, Floats]
    """Each member's own score."""
    places: Floats | None = None
    """The share of what is unexpected that lies in each half of the image (explain.HALVES), (B, 4)."""
    texture: Floats | None = None
    """The share of normal images with a shorter compressed file."""
    label: NDArray[np.int64] | None = None
    label_probability: Floats | None = None
    label_p_value: Floats | None = None
    """Small says that the image belongs to no class (detector/label_ranks.py)."""

    def __len__(self) -> int:
        return len(self.score)


Side = Annotated[int, Field(ge=1, le=1 << 20)]


class Facts(BaseModel):
    """What detector.json must say, and in which types."""

    model_config = ConfigDict(strict=True, frozen=True)

    members: tuple[str, ...] = Field(min_length=1, max_length=64)
    models: tuple[str, ...]
    weights: dict[str, str]
    density: str | None
    declared: tuple[str, ...]
    size: Side | tuple[Side, Side]
    reading: int = Field(default=1, ge=1, le=LARGEST_STORED)
    """Not in the files of detectors that read at the shorter side of `size`."""
    channels: int = Field(ge=1, le=3)
    resize: Literal["crop", "pad", "stretch"]
    class_names: tuple[str, ...]
    false_discovery_rate: float = Field(gt=0, lt=1)
    false_alarm_rate: float = Field(gt=0, lt=1)

    @field_validator("models", "weights", "density")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value or ():
            if not name.isidentifier():  # it is part of a path
                raise ValueError(f"{name!r:.80} is not the name of a model")
        return value


class Detector:
    """Scores images; made by `load`. Attributes tell which images it takes and the rates that params.yaml asked for."""

    def __init__(self, facts: Mapping[str, Any], arrays: Arrays, models: Models) -> None:
        self.size: Size = read_size(facts["size"])
        """Of the images that come in, which is the data's size: pixels a side, or height and width."""
        self.reading_size: int = facts.get("reading", min(height_width(self.size)))
        """Pixels a side at which statistics are taken; each model reads at its own size."""
        self.channels: int = facts["channels"]
        self.resize: str = facts["resize"]
        self.false_discovery_rate: float = facts["false_discovery_rate"]
        self.false_alarm_rate: float = facts["false_alarm_rate"]
        self.class_names: tuple[str, ...] = tuple(facts["class_names"])
        self.density: str | None = facts["density"]
        self.facts, self.arrays, self.models = facts, arrays, models
        self.members: list[Member] = [find_member(name) for name in facts["members"]]
        self._fitted = {name: without_prefix(name, arrays) for name in facts["members"]}
        self._tails = {name: without_prefix(f"tail.{name}", arrays) for name in facts["members"]}
        self.judge_weight = float(arrays["overlap"][0])
        """Weight of the transformation judge: variance of the combined member scores over their mean (Brown 1975). The
        members count the evidence that they share about this many times over. The judge reads the images by itself, so
        its evidence is multiplied by as much."""
        self._texture = without_prefix("texture", arrays)
        self.calibration: Floats = np.asarray(arrays["calibration.score"], dtype=np.float64)
        if self.calibration.ndim != 1 or not len(self.calibration) or not np.isfinite(self.calibration).all():
            raise ValueError("calibration.score is not a list of finite numbers")
        self.has_places = any(member.places is not None for member in self.members)
        """Whether a member says where in an image it is unusual."""
        self.place_maxima: Floats | None = arrays.get("calibration.place_maximum")
        """The most surprising place of each calibration image, ascending; None where no member has a map of places."""
        self._last: tuple[bytes, FeatureCache] | None = None
        for tail in self._tails.values():
            tail_surprise(np.zeros(1), tail)  # fails here rather than at the first batch

    def features(self, images: Pixels) -> FeatureCache:
        """The feature cache of images (B, C, H, W). Raises ModelError when they are not what the detector takes.

        That of the last images stays until others come: who scores images often asks for their map next.
        """
        shape = (self.channels, *height_width(self.size))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ModelError(
                f"the detector takes uint8 images (B, {', '.join(map(str, shape))}), not {images.dtype} {images.shape}"
            )
        digest = hashlib.sha256(np.ascontiguousarray(images).data).digest()  # an array may have other pixels by now
        last = self._last
        if last is not None and last[0] == digest and last[1].source is images:
            return last[1]
        self._last = last = None  # frees what is not needed any more before as much is read again
        features = FeatureCache(images, self.models, size=self.reading_size)
        self._last = (digest, features)
        return features

    def fitted(self, name: str) -> Arrays:
        """What was fitted for the member `name`."""
        return self._fitted[name]

    def member_scores(self, features: FeatureCache) -> dict[str, Floats]:
        """Each member's score of the images, by name. Raises ModelError where what was fitted for one does not fit."""
        scores: dict[str, Floats] = {}
        for m in self.members:
            try:
                scores[m.name] = np.asarray(m.score(features, self._fitted[m.name]), dtype=np.float64)
            except (LookupError, TypeError, ValueError) as error:
                why = shown(f"{type(error).__name__}: {error}")
                raise ModelError(f"the detector's member {m.name} cannot score ({why}); calibrate it again") from error
        return scores

    def surprise(self, name: str, score: Floats) -> Floats:
        """-log P(a normal image scores as high) of scores of the member `name`, nats, (B,)."""
        return tail_surprise(score, self._tails[name])

    def combine(self, members: Mapping[str, Floats]) -> Floats:
        """One score of the members' -log P(a normal image scores as high), nats, (B,): see tail_combination.combined.

        The transformation judge is added with `judge_weight`. A member without scores is left out.
        """
        surprises = {m.name: self.surprise(m.name, members[m.name]) for m in self.members if m.name in members}
        judge = surprises.pop(DECLARED_MEMBER, None)
        if judge is None:
            return combined(list(surprises.values()))
        weighted = self.judge_weight * judge
        return combined(list(surprises.values())) + weighted if surprises else weighted

    def score(self, images: Pixels) -> Scores:
        """Score a batch of uint8 images (B, C, H, W)."""
        features = self.features(images)
        if len(features) == 0:
            empty = np.zeros(0)
            return Scores(empty, empty, empty, {m.name: empty for m in self.members})
        members = self.member_scores(features)
        score = self.combine(members)
        return Scores(
            score=score,
            p_value=conformal.p_values(self.calibration, score),
            bits_per_dim=self._bits_per_dim(features),
            members=members,
            places=self._unusual_places(features),
            texture=explain.texture_rank(features, self._texture),
        )

    def _bits_per_dim(self, features: FeatureCache) -> Floats:
        """Negative log-likelihood / (ln 2 * sub-pixels at the density model's size), (B,)."""
        if self.density is None:
            return np.full(len(features), np.nan)
        dimensions = self.channels * size_of(self.models[self.density], self.reading_size) ** 2
        return np.asarray(features.nll(self.density) / (np.log(2.0) * dimensions), dtype=np.float64)

    def _unusual_places(self, features: FeatureCache) -> Floats | None:
        """The share of what is unexpected in each half of the image, (B, 4); None without a map to take it from."""
        if self.has_places:
            return explain.share_in_halves(np.maximum(self.place_surprise(features), 0.0))
        return None if self.density is None else explain.unusual_places(features, self.density)

    def surprise_map(self, images: Pixels) -> NDArray[np.float32]:
        """Where the surprise is, (B, H, W), nats: of the local members where there are some, or else of every pixel
        given those before it, at the density model's size.

        Of local members it is negative at usual places, where only the order means something. Raises ModelError for a
        detector with neither.
        """
        if self.has_places:
            return np.asarray(self.place_surprise(self.features(images)), dtype=np.float32)
        if self.density is None:
            raise ModelError("this detector has no exact density model, so it has no surprise map")
        return np.asarray(self.features(images).surprise(self.density), dtype=np.float32)

    def place_surprise(self, features: FeatureCache) -> Floats:
        """At each place the largest of what the members with a map say, nats, (B, h, w): see `local_surprise`.

        Raises ModelError where no member has one.
        """
        if not self.has_places:
            raise ModelError("this detector has no local member, so it has no map of p-values; name one, as own_place")
        if len(features) == 0:  # as large as those of any other image
            return self.place_surprise(self.features(np.zeros((1, *features.source.shape[1:]), np.uint8)))[:0]
        maps = [m.places(features, self._fitted[m.name]) for m in self.members if m.places is not None]
        finest = np.max([each.shape[1:] for each in maps], axis=0)
        return np.asarray(np.max([enlarged(each, finest) for each in maps], axis=0))

    def place_p_values(self, images: Pixels) -> Floats:
        """A p-value for each place of uint8 images (B, C, H, W), (B, h, w): see conformal.place_p_values."""
        surprise = self.place_surprise(self.features(images))
        if self.place_maxima is None:
            raise ModelError("this detector was calibrated without maps of places; run `dvc repro -f calibrate`")
        return conformal.place_p_values(self.place_maxima, surprise)

    def outlined(self, images: Pixels, level: float) -> NDArray[np.bool_]:
        """The places that are marked at a false-alarm rate of `level`, (B, h, w).

        A normal image has any of them with probability at most `level`. Raises ModelError for a level that the
        calibration images cannot reach.
        """
        p = self.place_p_values(images)
        conformal.check_reachable(level, len(self.calibration))
        return p <= level

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
    """The detector in `folder`; its models are in folder/members/NAME, or else next to it in ../NAME.

    Raises ModelError when it is missing, not whole, or of another format.
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
    except ParamsError as error:  # a member that this version lacks
        raise ModelError(f"{folder}: {shown(str(error))}") from None
    except (LookupError, TypeError, ValueError) as error:
        why = shown(f"{type(error).__name__}: {error}")
        raise ModelError(f"{folder}: not a whole detector ({why}); run `dvc repro -f calibrate`") from None
