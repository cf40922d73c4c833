"""params.yaml as frozen, typed values; an unknown key or a wrong value is an error of one sentence with the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from densitywatch.errors import ParamsError
from densitywatch.params_models import (
    Block,
    ClassifierParams,
    ClassifierSettings,
    DeviceParams,
    EvaluateParams,
    LatentParams,
    ModelBlock,
    Precision,
    ProbeParams,
    QualityParams,
    TrainingParams,
)
from densitywatch.sizes import Size, height_width, in_pixels, read_size

__all__ = [
    "Block",
    "ClassifierParams",
    "ClassifierSettings",
    "Control",
    "DataParams",
    "DetectorParams",
    "DeviceParams",
    "EvaluateParams",
    "ExpectationParams",
    "GateMargin",
    "GateParams",
    "GitParams",
    "InboxParams",
    "LatentParams",
    "MlflowParams",
    "ModelBlock",
    "NotifyParams",
    "Params",
    "Precision",
    "ProbeParams",
    "QualityParams",
    "RetrainParams",
    "TrainingParams",
    "first_problem",
    "load_params",
]


LARGEST_STORED = 1024
"""A square of this side has as many pixels as a stored image may have."""


class DataParams(Block):
    """What to fetch and how to prepare it."""

    source: Literal["fashion_mnist", "mnist", "photos", "cells", "folder"]
    address: str | tuple[str, ...] | None = None
    """Only for `source: folder`: a local folder, a zip, tar or Parquet file, or any fsspec address of these. A list
    joins several."""
    follow_links: bool = False
    """Read what symbolic links lead to, also outside of the folder."""
    size: int | tuple[int, int]
    """Images are kept at this many pixels: a number for squares, or [height, width]. At least 4 a side, and at most
    1,048,576 in all, which is 1024 x 1024 or 500 x 2000."""
    channels: Literal[1, 3]
    resize: Literal["crop", "pad", "stretch"] = "crop"
    max_pixels: int = Field(default=150_000_000, ge=1)
    """An image file with more pixels is not usable; decoding takes up to 8 bytes of memory for each."""
    group: str | None = None
    """Images that belong together, such as frames of one scene; no group spans two splits. null: none. auto: look at
    images and names. folder: the innermost folder, which then is no label. exif:MINUTES: blocks of EXIF time.
    near_duplicates: what looks alike. Anything else is a regular expression with one capture, which is searched in the
    path without its extension."""
    calibration_time: Literal["random", "later"] = "random"
    """later: calibration and test images come from the end of the time or name order, test last."""
    limit: int | None = Field(default=None, ge=8)
    """At most this many images of each part of the source; null takes all."""
    accept: Literal["never", "reviewed", "all"] = "reviewed"
    """Which images of drifted batches a retraining adds to the dataset. reviewed: those that a person called fine. all:
    those as well that were not flagged. never: none. They are trained on; only images of a random draw that a person
    has judged whole are calibrated on."""
    validation: float = Field(gt=0, lt=1)
    calibration: float = Field(gt=0, lt=1)
    gate: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    """Shares of the images. `validation` and `test` count only where the source has no such part."""

    @field_validator("size", mode="before")
    @classmethod
    def _can_be_kept(cls, value: object) -> Size:
        try:
            size = read_size(value)
        except ValueError:
            raise ValueError("neither a number of pixels nor [height, width]") from None
        height, width = height_width(size)
        if min(height, width) < 4 or height * width > LARGEST_STORED**2:
            raise ValueError(
                f"{in_pixels(size)} pixels; take a number from 4 to {LARGEST_STORED}, or [height, width] of at least 4"
                f" each and at most {LARGEST_STORED**2:,} pixels in all"
            )
        return size

    @field_validator("group")
    @classmethod
    def _is_a_rule(cls, value: str | None) -> str | None:
        if value is not None:
            _check_group(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> DataParams:
        if (self.source == "folder") != (self.address is not None):
            raise ValueError("address must be given for source: folder, and only for it")
        if isinstance(self.address, tuple) and len(set(self.address)) < max(1, len(self.address)):
            raise ValueError("address must name at least one source, and none twice")
        if self.group not in (None, "auto") and self.source != "folder":
            raise ValueError(f"group must be null or auto for source: {self.source}, which has no groups")
        if self.source == "photos" and not isinstance(self.size, int):
            raise ValueError("size must be one number for source: photos, whose patches are squares")
        if self.validation + self.calibration + self.gate + self.test >= 1:
            raise ValueError("validation + calibration + gate + test must leave images to train on (sum below 1)")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of `source: folder`; empty for other sources."""
        return (self.address,) if isinstance(self.address, str) else self.address or ()


def _check_group(value: str) -> None:
    """Raise ValueError where data.group is no rule."""
    if value in ("auto", "folder", "near_duplicates"):
        return
    if value.startswith("exif:"):
        try:
            if float(value.removeprefix("exif:")) > 0:
                return
        except ValueError:
            pass
        raise ValueError(f"{value!r} is no block of EXIF time; write exif:MINUTES, such as exif:10")
    try:
        captures = re.compile(value).groups
    except re.error as error:
        raise ValueError(
            f"{value!r} is no rule and no regular expression ({error}); take auto, folder, exif:MINUTES,"
            " near_duplicates or a pattern with one capture"
        ) from None
    if captures != 1:
        raise ValueError(
            f"{value!r} is no rule, and as a pattern it has {captures} captures; mark the group's name by one, such as"
            r" scene_(\d+)"
        )


class ExpectationParams(Block):
    """The limits of the Great Expectations suite on the manifest."""

    min_images: int = Field(ge=1)
    max_duplicate_share: float = Field(ge=0, le=1)
    max_flat_share: float = Field(ge=0, le=1)
    min_label_share: float = Field(ge=0, le=1)
    """The least share of the images that a label may have, relative to an even share: with 0.5 half an even share."""
    mean_intensity: tuple[float, float]
    """The range of the dataset's mean pixel value (0 to 255)."""


class DetectorParams(Block):
    """The outlier detector: its members and its false-alarm rates."""

    size: int | None = Field(default=None, ge=4)
    """Pixels a side for its own statistics; its models read at their size. null takes data.size, at most 32."""
    tiles: int | None = Field(default=None, ge=64, le=1024, multiple_of=8)
    """Pixels a side of overlapping tiles in which the local members read every picture at data.size as well, for
    defects that are too small at detector.size. null: they read at detector.size alone."""
    members: tuple[str, ...] = Field(min_length=1)
    """Names of scores: MEMBERS of densitywatch/detector/member_table.py."""
    reads: tuple[str, ...] = Field(default=("pixelcnn",), min_length=1)
    """Models that the members read: calibrate waits for these and runs again when their weights change."""
    rivals_read: tuple[str, ...] = ()
    """More models for rows of the benchmark; without them those rows are left out."""
    declared: tuple[Literal["flip", "rotate", "invert"], ...] = ()
    """Transformations of the world that count as outliers; none by default."""
    small_network_steps: int = Field(default=100, ge=1)
    """Training steps of the small networks that some scores train themselves (detector/scores/network_training.py)."""
    declared_steps: int = Field(default=1000, ge=1)
    """Training steps of the judge of declared transformations, each of 64 images and 64 transformed ones."""
    panel: Literal["auto", "foreign", "own"] = "auto"
    """What the benchmark is measured on: `foreign` images (digits, noise, constants, and test images turned, mirrored
    and inverted), or your `own` test images with local defects. auto: foreign for fashion_mnist and mnist, own for
    every other source."""
    panel_images: int = Field(default=1000, ge=2)
    """Number of images of each member of the panel that the benchmark scores."""
    slow_images: int = Field(default=60, ge=2)
    """The same for scores that take many times as long."""
    folds: int = Field(default=10, ge=0)
    """Number of classes for each of which the benchmark fits a detector without that class."""
    false_discovery_rate: float = Field(gt=0, lt=1)
    false_alarm_rate: float = Field(gt=0, lt=1)
    batch_size: int = Field(ge=1)


Control = Literal["stream", "batch"]


class InboxParams(Block):
    """Where batches arrive, one folder a batch, and where results are written."""

    address: str
    results: str
    settle_seconds: float = Field(ge=0)
    """A batch without a _SUCCESS marker waits until its newest file is this old."""
    cron: str
    labels: str | None = Field(default=None, min_length=1)
    """A conditional density whose champion labels every image; null leaves labels out."""
    label_prior: Literal["training", "uniform"] = "training"
    """How likely each label is before an image is seen: its share of the training images, or the same for all."""
    strict: bool = False
    """Hold the false-discovery rate for this calibration set, not only on average over such sets."""
    control: Control = "stream"
    """What the false-discovery rate is the rate of, in the scheduled job. stream: of all batches together, which are
    judged with one budget. batch: of each batch by itself, on average; where most batches hold no outlier, the share of
    false alarms among all flagged images together is then much higher."""
    alike: int = Field(default=1, ge=1)
    """Images of one scene in a batch, at most; all of them are in one batch. The stream's promise is void where this is
    too low: in simulated streams of undeclared scenes 0.6 to 1.0 of all flags were false."""
    follow_links: bool = False
    """Read the files that symbolic links in a batch lead to, and batches that are links, as in a Hugging Face cache."""
    drift_alarm: float | None = Field(default=0.01, gt=0, lt=1)
    """At most this share of normal streams, of any length, ever has a drift alarm; null turns the test off."""
    drift_seen: str | None = Field(default=None, min_length=1)
    """The last batch of a drift alarm that you have looked at: the test starts anew after it."""
    max_quarantined_share: float = Field(default=0.2, ge=0, lt=1)
    max_repeated_share: float = Field(default=0.2, ge=0, lt=1)
    """With larger shares of unreadable files, or of repeated files, a batch's flow run fails: the results are kept, but
    someone should look at the camera or the transfer."""
    metrics_file: str | None = Field(default=None, pattern=r"^.*[^/]\.prom$")
    """Where each run of the scheduled job writes its figures for Prometheus: a file NAME.prom in the folder that
    node_exporter's textfile collector reads. null: nowhere."""


class RetrainParams(Block):
    """When a retraining starts without a hand."""

    cron: str | None = Field(default=None, pattern=r"^\S+( \S+){4}$")
    """When the deployment `retrain` starts by the clock, such as `0 3 * * 0`, in UTC; null: never. Where nothing has
    changed, the run ends at once."""
    on_drift: bool = True
    """Whether a drift alarm starts the deployment `retrain`, on the server of `make up`."""
    cool_down: float = Field(default=24.0, ge=0)
    """Hours after a retraining that had images to learn from, in which drift starts no other one."""


class NotifyParams(Block):
    """Who is told of a drift alarm, and of a run that failed or crashed."""

    block: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """A block of Prefect's server, TYPE/NAME, such as webhook/alarm, slack-webhook/team or sendgrid-email/team; null
    tells nobody."""


class MlflowParams(Block):
    tracking_uri: str
    """The store of runs and of the registry; the environment variable MLFLOW_TRACKING_URI overrides it."""
    experiment: str = Field(min_length=1)


class GateMargin(Block):
    """How much worse than the champion a candidate may be at most, by the measure of its kind."""

    bits: float = Field(default=0.01, ge=0)
    """Densities and bounds: bits/dim."""
    error: float = Field(default=0.05, ge=0)
    """Reconstructions: share of the champion's mean squared error."""
    samples: float = Field(default=0.1, ge=0)
    """Models that only draw samples: share of the champion's FID."""
    detector: float = Field(default=0.01, ge=0)
    """The detector: AUROC on images with defects."""
    power: float = Field(default=0.05, ge=0)
    """The detector, too: share of the images with defects that the rule of `inbox` finds, where 5 % of a batch are."""


class GateParams(Block):
    """When a candidate is promoted: it is measured on the same images as the champion, and nothing else uses them."""

    images: int = Field(ge=1)
    """At most this many images of the split `gate`; a detector scores half as many, each as it is and altered."""
    least_images: int = Field(default=50, ge=2)
    """With fewer images nothing is promoted."""
    margin: GateMargin = GateMargin()
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure one must be that the candidate is worse by no more than the margin."""
    floor: bool = True
    """Whether a candidate must beat a trivial model of its kind as well."""
    tolerance: float = Field(ge=0)
    """Widens every margin by this share of the champion's figure."""
    known_defects: str | None = None
    """A folder that you have sorted, as `densitywatch assess` takes it. A detector that has surely gone worse on one of
    its kinds is refused. Figures of `assess` on the same images are then too good; keep others for it."""


class GitParams(Block):
    """What a run makes of the git repository that the checkout is."""

    uncommitted: Literal["record", "refuse"] = "record"
    """Code or params that are not committed when a run begins: `record` names them in the run, `refuse` stops it.
    dvc.lock and metrics/ do not count: runs change them."""


class Params(Block):
    """The whole of params.yaml."""

    seed: int = Field(ge=0, lt=2**31)
    data: DataParams
    expectations: ExpectationParams
    device: DeviceParams
    models: dict[str, ModelBlock] = Field(min_length=1)
    classifier: ClassifierParams
    evaluate: EvaluateParams
    detector: DetectorParams
    inbox: InboxParams
    retrain: RetrainParams = RetrainParams()
    notify: NotifyParams = NotifyParams()
    mlflow: MlflowParams
    gate: GateParams
    git: GitParams = GitParams()

    @property
    def own_panel(self) -> bool:
        """Whether the outlier benchmark is measured on the dataset's own images with defects."""
        if self.detector.panel == "auto":
            return self.data.source not in ("fashion_mnist", "mnist")
        return self.detector.panel == "own"

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, ModelBlock]) -> dict[str, ModelBlock]:
        for name in models:
            if not name.isidentifier() or name != name.lower() or name in ("detector", "classifier"):
                raise ValueError(f"'{name}' is no model name: use lower-case letters, digits and underscores")
        return models

    @model_validator(mode="after")
    def _sizes(self) -> Params:
        readers: dict[str, Block] = {f"models.{name}": block for name, block in self.models.items()}
        for name, block in (readers | {"classifier": self.classifier, "detector": self.detector}).items():
            size: int | None = getattr(block, "size")  # noqa: B009 - blocks of three types
            longest = max(height_width(self.data.size))
            if size is not None and size > longest:
                raise ValueError(
                    f"{name}.size is {size}, more than the {longest} pixels of data.size; lower the one or raise the"
                    " other"
                )
        if self.detector.tiles is not None and self.detector.size == self.data.size:
            raise ValueError(
                f"detector.tiles: detector.size is data.size, {self.data.size} pixels, so tiles show nothing more; set"
                " null, lower detector.size or raise data.size"
            )
        return self


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check `path`; the settings of each model are checked by models/storage.py.

    Raises ParamsError: one sentence naming the key that is unknown, missing, of a wrong type or out of range.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the project's top folder or pass --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected a mapping of blocks such as `data:` and `models:`")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as `key: what is wrong`, in one line."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = " ".join(problem["msg"].removeprefix("Value error, ").split())
    given = problem.get("input")
    shown = f" (given: {given!r:.80})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{key}: {message[0].lower() + message[1:]}{shown}" if key else message
