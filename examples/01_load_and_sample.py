"""Load a trained model, ask how probable test images are under it, and draw new images from it."""

import math
from pathlib import Path

import numpy as np
import torch

import densitywatch
from densitywatch.data.dataset import open_split
from densitywatch.pages import pictures

# a folder, or an address in the registry: "models:/densitywatch-pixelcnn@champion"
model = densitywatch.load_model("models/pixelcnn")
test = open_split(Path("data/prepared"), "test", model.size)
images = torch.from_numpy(np.array(test.images[:100]))  # uint8 (100, C, H, W)

with torch.no_grad():
    nats = -model.log_prob(images)  # (100,), exact
bits = nats / (math.log(2) * images[0].numel())
print(f"{len(images)} test images take {bits.mean():.3f} bits/dim on average (without a model: 8)")
print(f"the most probable one takes {bits.min():.3f}, the least probable one {bits.max():.3f}")

with torch.no_grad():
    samples = model.sample(16, generator=torch.Generator().manual_seed(1))
out = Path("var/examples/samples.png")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_bytes(pictures.grid(samples.numpy(), columns=4))
print(f"{len(samples)} new images are in {out}")
