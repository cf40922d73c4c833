"""The published FID, on the features of Inception's last pooling layer, for those who have its weights on disk.

Every published FID uses a network that TensorFlow trained (Heusel et al. 2017; ported by Seitzer's pytorch-fid). It is
torchvision's Inception v3 with two changes: average pools leave padding out, and the last block has a max pool. Its
weights are the file pt_inception-2015-12-05 of that port as safetensors; docs/how-to/published-fid.md says how to
convert it. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from densitywatch.data.reading import Images
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.distances import frechet_distance
from densitywatch.models.header import check_tensors

SIZE = 299
CLASSES = 1008


def average_pool(x: Tensor) -> Tensor:
    """The mean of the 3 x 3 neighbours that lie inside the map."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class PortedA(InceptionA):  # type: ignore[misc] # torchvision has no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average_pool(x))]


class PortedC(InceptionC):  # type: ignore[misc] # torchvision has no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))]


class PortedE(InceptionE):  # type: ignore[misc] # torchvision has no types
    max_pool = False

    def _forward(self, x: Tensor) -> list[Tensor]:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else average_pool(x)
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1),
            self.branch_pool(pooled),
        ]


def inception() -> nn.Module:
    """The network without its weights; images (B, 3, 299, 299) in [-1, 1] to features (B, 2048)."""
    network: nn.Module = Inception3(num_classes=CLASSES, aux_logits=False, transform_input=False, init_weights=False)
    network.Mixed_5b, network.Mixed_5c, network.Mixed_5d = PortedA(192, 32), PortedA(256, 64), PortedA(288, 64)
    for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, PortedC(768, channels))
    network.Mixed_7b, network.Mixed_7c = PortedE(1280), PortedE(2048)
    network.Mixed_7c.max_pool = True
    return network


def load_inception(weights: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network with the weights of a safetensors file, in eval mode; its output is the features.

    Raises ModelError when the file is missing, incomplete or made for another network.
    """
    network = inception()
    try:
        check_tensors(weights, network.state_dict())  # reads the header alone: a wrong file takes no memory
        network.load_state_dict(safetensors.torch.load_file(weights))
    except FileNotFoundError:
        raise ModelError(
            f"{weights}: no such file; set evaluate.quality.inception_weights to null or to the file"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, OSError, ModelError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{weights}: not Inception's weights as safetensors ({reason}); see docs/how-to/published-fid.md"
        ) from None
    network.dropout, network.fc = nn.Identity(), nn.Identity()
    return network.to(device).eval()


@torch.no_grad()
def inception_features(network: nn.Module, images: Images, batch_size: int = 50) -> Tensor:
    """Features (N, 2048), on the CPU, of uint8 images (N, C, H, W).

    Grey images are repeated in three channels. All are stretched to 299 x 299 and scaled to [-1, 1].
    """
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(np.array(images[start : start + batch_size])).to(device).float() / 127.5 - 1.0
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        parts.append(network(x.expand(-1, 3, -1, -1)).cpu())
    return torch.cat(parts)


def inception_fid(weights: Path, real: Images, generated: Images, device: torch.device | str = "cpu") -> float:
    """The published FID between two sets of uint8 images (N, C, H, W) and (M, C, H, W)."""
    network = load_inception(weights, device)
    return frechet_distance(inception_features(network, real), inception_features(network, generated))
