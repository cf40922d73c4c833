"""The blocks of params.yaml about models: where they compute, how they are trained, what is measured of them."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


class Block(BaseModel):
    """A frozen block of params.yaml; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


DecayRate = Annotated[float, Field(ge=0, lt=1)]


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
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.99)
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
    """Of the first convolution; the last one has four times as many, or twice as many up to 16 pixels a side."""
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

    labels: tuple[Annotated[int, Field(ge=1)], ...] = (100, 1000, 10000)
    """Numbers of labels of the curve, each at least 1; the last point has all labels."""
    regularisation: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1), min_length=1
    )
    """L2 weights (a share of the mean loss), each above 0, to choose from on the validation images."""
    slow_images: int = Field(default=10000, ge=10)
    """Most training images for autoregressive models, which are slow."""


class EvaluateParams(Block):
    test_images: int | None = Field(default=None, ge=2)
    """At most this many test images; null takes all. Figures of sample quality need a spread, so at least two."""
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
