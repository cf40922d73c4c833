"""A model of your own, measured in the same units as PixelCNN. How to train and register one: CONTRIBUTING.md."""

import math
from pathlib import Path

import numpy as np
import torch

import densitywatch
from densitywatch.data.dataset import open_split


class Histograms(torch.nn.Module):
    """Every pixel by itself: how often it has each of the 256 values, counted in `images` (N, C, H, W)."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        counts = torch.stack([(images == value).sum(0) for value in range(256)]) + 1.0  # so that none is 0
        self.log_p = (counts / counts.sum(0)).log()  # (256, C, H, W)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:  # uint8 (B, C, H, W) -> nats (B,)
        return self.log_p.gather(0, x.long()).sum((1, 2, 3))


data, pixelcnn = Path("data/prepared"), densitywatch.load_model("models/pixelcnn")
train = torch.from_numpy(np.array(open_split(data, "train", pixelcnn.size).images[:5000]))
test = torch.from_numpy(np.array(open_split(data, "test", pixelcnn.size).images[:100]))
for name, model in {"every pixel by itself": Histograms(train), "PixelCNN": pixelcnn}.items():
    bits = -model.log_prob(test).detach().mean() / (math.log(2) * test[0].numel())
    print(f"{name}: {bits:.3f} bits/dim on {len(test)} test images")
