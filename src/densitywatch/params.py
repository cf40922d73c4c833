"""params.yaml as frozen, typed values; an unknown key or a wrong value is an error of one sentence with the key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from densitywatch.errors import ParamsError


class Block(BaseModel):
    """A frozen block of params.yaml; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Block):
    """What to fetch and how to prepare it."""

    source: Literal["fashion_mnist", "mnist", "photos", "folder"]
    address: str | tuple[str, ...] | None = None
    """Only for `source: folder`: a local folder, a zip, tar or Parquet file, or any fsspec address of these. A list
    joins several."""
    follow_links: bool = False
    """Read what symbolic links lead to, also outside of the folder."""
    size: int = Field(ge=4, le=1024)
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
    validation: float = Field(gt=0, lt=1)
    calibration: float = Field(gt=0, lt=1)
    gate: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    """Shares of the images. `validation` and `test` count only where the source has no such part."""

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


def _no_half_precision(value: object) -> object:
    if value == "16-mixed":
        raise ValueError(
            "16-mixed scales the loss, of which neither Muon, nor gradient_clip, nor a resumed run knows; take"
            " bf16-mixed or 32-true"
        )
    return value


Precision = Annotated[Literal["32-true", "bf16-mixed"], BeforeValidator(_no_half_precision)]


class DeviceParams(Block):
    """Where and how computation runs; passed to Lightning Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    """Processes of a training, each on its own device or, with accelerator cpu, on its share of the threads."""
    precision: Precision = "32-true"
    channels_last: bool = True
    compile: Literal["auto", True, False] = "auto"
    """auto: torch.compile where a C++ compiler (CPU) or Triton (CUDA) is found, and the eager form elsewhere."""
    slots: int = Field(default=1, ge=1)
    """Stages that compute at once. A small network uses one core, so two stages at once end sooner than in turn."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a stage; null takes its slot's share of the cores. Bit-identical runs need the same number."""

    @field_validator("devices")
    @classmethod
    def _at_least_one(cls, devices: int | str) -> int | str:
        if isinstance(devices, int) and devices < 1:
            raise ValueError(f"{devices} devices cannot compute; take 1 or more, or auto")
        return devices

    @property
    def threads_of_a_stage(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.slots)

    @property
    def threads_of_a_process(self) -> int:
        """CPU threads of a training's process: several processes on a CPU share the threads of the stage."""
        several = self.devices if self.accelerator == "cpu" and isinstance(self.devices, int) else 1
        return self.threads or max(1, self.threads_of_a_stage // several)


class TrainingParams(Block):
    """The training of one model."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: inner weights by Muon, the rest by AdamW (docs/decisions/0009); adversarial models always take adamw."""
    learning_rate: float = Field(gt=0, lt=10)
    matrix_learning_rate: float = Field(default=0.02, gt=0, lt=10)
    """Of Muon's weights."""
    discriminator_learning_rate: float | None = Field(default=None, gt=0, lt=10)
    """Only for adversarial models: the second time scale; null takes learning_rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """The learning rate at the end of the cosine, as a share of learning_rate."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    precision: Precision | None = None
    """null takes device.precision; on a CPU that only emulates bfloat16, bf16-mixed becomes 32-true."""
    compile: bool = False
    """Compile this model's loss where device.compile allows it. That takes about half a minute: for long runs."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    evaluate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)
    validation_images: int | None = Field(default=2000, ge=1)
    """Number of validation images that choose the best checkpoint; null takes all."""


class ModelBlock(Block):
    """One model: `kind` is the name of its file in densitywatch/models, `settings` are that file's Settings."""

    kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    size: int | None = Field(default=None, ge=4)
    """Pixels a side that the model sees; null takes data.size, at most 32."""
    settings: dict[str, Any] = Field(default_factory=dict)
    training: TrainingParams


class ClassifierSettings(Block):
    channels: int = Field(default=32, ge=2, le=4096)
    """Of the first convolution; the last one has four times as many."""
    features: int = Field(default=64, ge=2, le=65536)
    """The width of the feature space."""
    dropout: float = Field(default=0.3, ge=0, lt=1)


class ClassifierParams(Block):
    """The feature network of the sample-quality figures."""

    size: int | None = Field(default=None, ge=4)
    """Pixels a side that it sees; null takes data.size, at most 32."""
    settings: ClassifierSettings = ClassifierSettings()
    training: TrainingParams


class QualityParams(Block):
    """Sample quality in the feature network's space."""

    images: int = Field(default=10000, ge=8)
    """Number of images that a model draws: for a second FID, and for figures of labels."""
    slow_images: int = Field(default=1000, ge=8)
    """Number of samples on which all models are compared; models that draw pixel by pixel draw no more."""
    neighbours: int = Field(default=5, ge=1)
    """k of precision, recall, density and coverage."""
    neighbour_images: int = Field(default=5000, ge=8)
    """Most images of both kinds for those four figures, whose cost grows with the square."""
    label_training_steps: int = Field(default=300, ge=1)
    """Steps of the classifier that is trained on a conditional model's samples alone."""
    inception_weights: str | None = None
    """A safetensors file of the Inception network of the published FID; null leaves that figure out."""


class LatentParams(Block):
    """Walks and arithmetic in the latent space."""

    draws: int = Field(default=200, ge=1)


class ProbeParams(Block):
    """The linear probe on a model's features."""

    labels: tuple[int, ...] = (100, 1000, 10000)
    """Numbers of labels of the curve; the last point has all labels."""
    regularisation: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 1e-1), min_length=1)
    """L2 weights (a share of the mean loss) to choose from on the validation images."""
    slow_images: int = Field(default=10000, ge=10)
    """Most training images for autoregressive models, which are slow."""


class EvaluateParams(Block):
    test_images: int | None = Field(default=None, ge=1)
    """At most this many test images; null takes all."""
    batch_size: int = Field(ge=1)
    importance_samples: int = Field(ge=1)
    importance_images: int | None = Field(default=None, ge=1)
    sample_images: int = Field(ge=1)
    """Number of images that each model draws for its sample grid."""
    code_images: int = Field(default=128, ge=0)
    """Number of test images that are coded into a file and decoded by another process; 0 leaves that out."""
    label_images: int = Field(default=3000, ge=1)
    """Number of calibration images from which the usual scores of each label of a conditional density are taken."""
    quality: QualityParams = QualityParams()
    latent: LatentParams = LatentParams()
    probe: ProbeParams = ProbeParams()


class DetectorParams(Block):
    """The outlier detector: its members and its false-alarm rates."""

    size: int | None = Field(default=None, ge=4)
    """Pixels a side for its own statistics; its models read at their size. null takes data.size, at most 32."""
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
    """Images of one scene in a batch, at most; all of them are in one batch. The stream's rule relies on it."""
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
    mlflow: MlflowParams
    gate: GateParams

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
            if size is not None and size > self.data.size:
                raise ValueError(
                    f"{name}.size is {size}, more than the {self.data.size} pixels of data.size; lower the one or raise"
                    " the other"
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
