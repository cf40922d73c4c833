"""params.yaml as frozen, typed values; anything unknown, missing or out of range is one sentence naming the key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from densitywatch.errors import ParamsError


class Block(BaseModel):
    """A frozen block of params.yaml that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Block):
    """What to fetch and how to prepare it."""

    source: Literal["fashion_mnist", "mnist", "photos", "folder"]
    address: str | None = None
    """Only for `source: folder`: a local folder, a zip, tar or Parquet file, or any fsspec address of these."""
    follow_links: bool = False
    """Read what symbolic links lead to, outside of the folder as well."""
    size: int = Field(ge=4, le=1024)
    channels: Literal[1, 3]
    resize: Literal["crop", "pad", "stretch"] = "crop"
    max_pixels: int = Field(default=150_000_000, ge=1)
    """An image file with more pixels is not usable; decoding takes up to 8 bytes of memory for each."""
    limit: int | None = Field(default=None, ge=8)
    """At most this many images of each part of the source; null takes all."""
    validation: float = Field(gt=0, lt=1)
    calibration: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    """Shares of the images; `validation` and `test` count only for sources without such a part of their own."""

    @model_validator(mode="after")
    def _consistent(self) -> DataParams:
        if (self.source == "folder") != (self.address is not None):
            raise ValueError("address must be given for source: folder, and only for it")
        if self.validation + self.calibration + self.test >= 1:
            raise ValueError("validation + calibration + test must leave images to train on (sum below 1)")
        return self


class ExpectationParams(Block):
    """The limits of the Great Expectations suite on the manifest."""

    min_images: int = Field(ge=1)
    max_duplicate_share: float = Field(ge=0, le=1)
    max_flat_share: float = Field(ge=0, le=1)
    min_label_share: float = Field(ge=0, le=1)
    """Each label's share of the images, relative to an even share: 0.5 lets a class be half its even share."""
    mean_intensity: tuple[float, float]
    """The dataset's mean pixel value (0 to 255) lies between these."""


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
    """Processes of a training, each on a device of its own or, with accelerator cpu, on its share of the threads."""
    precision: Precision = "32-true"
    channels_last: bool = True
    compile: Literal["auto", True, False] = "auto"
    """auto: torch.compile where a C++ compiler (CPU) or Triton (CUDA) is found, the eager form elsewhere."""
    slots: int = Field(default=1, ge=1)
    """Stages that compute at once. Small networks fill one core: two beside each other are done sooner than in turn."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a stage; null takes its slot's share of the cores. Part of what makes two runs bit-identical."""

    @field_validator("devices")
    @classmethod
    def _at_least_one(cls, devices: int | str) -> int | str:
        if isinstance(devices, int) and devices < 1:
            raise ValueError(f"{devices} devices compute nothing; take 1 or more, or auto")
        return devices

    @property
    def threads_of_a_stage(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.slots)

    @property
    def threads_of_a_process(self) -> int:
        """Of a training's; several of them on a CPU share the stage's."""
        several = self.devices if self.accelerator == "cpu" and isinstance(self.devices, int) else 1
        return self.threads or max(1, self.threads_of_a_stage // several)


class TrainingParams(Block):
    """One model's training; the defaults are those of every model that does not say otherwise."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: inner weights by Muon, the rest by AdamW (docs/decisions/0013); adversarial models always take adamw."""
    learning_rate: float = Field(gt=0, lt=10)
    matrix_learning_rate: float = Field(default=0.02, gt=0, lt=10)
    """Muon's."""
    discriminator_learning_rate: float | None = Field(default=None, gt=0, lt=10)
    """Only for adversarial models: the second time scale; null takes learning_rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """The cosine's end, as a share of learning_rate."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    precision: Precision | None = None
    """null takes device.precision; bf16-mixed is left aside on a CPU that would only emulate it."""
    compile: bool = False
    """Compile this model's step where device.compile allows it; that takes about half a minute: for long runs."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    evaluate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)
    validation_images: int | None = Field(default=2000, ge=1)
    """How many validation images choose the best checkpoint; null takes all."""


class ModelBlock(Block):
    """One model: `kind` names the file in densitywatch/models, `settings` are that file's own."""

    kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    size: int | None = Field(default=None, ge=4)
    """Pixels a side that the model sees; null takes data.size, at most 32."""
    settings: dict[str, Any] = Field(default_factory=dict)
    training: TrainingParams


class ClassifierSettings(Block):
    channels: int = Field(default=32, ge=2, le=4096)
    """Of the first convolution; those of the last are four times as many."""
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
    """How many images a model draws for the figures."""
    slow_images: int = Field(default=1000, ge=8)
    """The same for models that draw pixel by pixel."""
    neighbours: int = Field(default=5, ge=1)
    """k of precision, recall, density and coverage."""
    neighbour_images: int = Field(default=5000, ge=8)
    """At most this many of both kinds for those four figures: their cost grows with the square."""
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
    """Points of the curve; all labels come after them."""
    regularisation: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 1e-1), min_length=1)
    """L2 weights (a share of the mean loss) to choose from on the validation images."""
    slow_images: int = Field(default=10000, ge=10)
    """Limit on the training images for autoregressive models, which are slow to read them all."""


class EvaluateParams(Block):
    test_images: int | None = Field(default=None, ge=1)
    """At most this many test images; null takes all."""
    batch_size: int = Field(ge=1)
    importance_samples: int = Field(ge=1)
    importance_images: int | None = Field(default=None, ge=1)
    sample_images: int = Field(ge=1)
    """How many images each model draws for its sample grid."""
    code_images: int = Field(default=128, ge=0)
    """How many test images are coded into a file and decoded by another process; 0 leaves that out."""
    label_images: int = Field(default=3000, ge=1)
    """How many calibration images say what is usual for each label of a conditional density."""
    quality: QualityParams = QualityParams()
    latent: LatentParams = LatentParams()
    probe: ProbeParams = ProbeParams()


class DetectorParams(Block):
    """The outlier detector: what it is made of and how loud it may be."""

    size: int | None = Field(default=None, ge=4)
    """Pixels a side at which its own statistics are taken; its models read at theirs. null: data.size, at most 32."""
    members: tuple[str, ...] = Field(min_length=1)
    """Names of scores: MEMBERS of densitywatch/detector/member_table.py."""
    reads: tuple[str, ...] = Field(default=("pixelcnn",), min_length=1)
    """The models that the members read: calibrate waits for these and runs again when their weights change."""
    rivals_read: tuple[str, ...] = ()
    """Further models that the benchmark's rows read; without them those rows are left out."""
    declared: tuple[Literal["flip", "rotate", "invert"], ...] = ()
    """Transformations of the world that count as outliers; none by default."""
    small_network_steps: int = Field(default=100, ge=1)
    """Length of the training of the small networks that some scores bring along (detector/scores/small_density.py)."""
    declared_steps: int = Field(default=1000, ge=1)
    """Length of the training of the judge of declared transformations, batches of 64 images and as many transformed."""
    panel_images: int = Field(default=1000, ge=2)
    """Number of images that the benchmark scores of each member of the panel."""
    slow_images: int = Field(default=60, ge=2)
    """The same for scores that take many times as long."""
    folds: int = Field(default=10, ge=0)
    """Number of classes for which the benchmark fits the detector anew without the class."""
    false_discovery_rate: float = Field(gt=0, lt=1)
    false_alarm_rate: float = Field(gt=0, lt=1)
    batch_size: int = Field(ge=1)


class InboxParams(Block):
    """Where incoming batches arrive (one folder a batch) and where results go."""

    address: str
    results: str
    settle_seconds: float = Field(ge=0)
    """A batch without a _SUCCESS marker is left alone until its newest file is this old."""
    cron: str
    labels: str | None = Field(default=None, min_length=1)
    """The model whose champion labels every image, a conditional density; null leaves labels out."""
    strict: bool = False
    """Hold the false-discovery rate for the calibration set at hand, not only on average over such sets."""
    follow_links: bool = False
    """Read the files that symbolic links in a batch lead to, and batches that are links, as in a Hugging Face cache."""
    max_quarantined_share: float = Field(default=0.2, ge=0, lt=1)
    max_repeated_share: float = Field(default=0.2, ge=0, lt=1)
    """Beyond these shares of unreadable files, or of files that are there more than once, a batch's flow run fails: the
    results stand, but someone should look at the camera or the transfer."""


class MlflowParams(Block):
    tracking_uri: str
    """Where runs and the registry live; the environment variable MLFLOW_TRACKING_URI goes before it."""
    experiment: str = Field(min_length=1)


class GateParams(Block):
    """What a candidate must meet, beside the champion on the same validation images, to be promoted."""

    images: int = Field(ge=1)
    tolerance: float = Field(ge=0)
    """How much worse, relatively, a candidate may be and still pass; 0 asks it to be at least as good."""


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
