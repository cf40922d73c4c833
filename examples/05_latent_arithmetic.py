"""Turn images of one class into another by adding and subtracting in the VAE's latent space."""

from pathlib import Path

import numpy as np
import torch

import densitywatch
from densitywatch.data.dataset import open_split, read_info
from densitywatch.pages import pictures

data, model = Path("data/prepared"), densitywatch.load_model("models/vae")
names = read_info(data).class_names
train = open_split(data, "train", model.size)
images, labels = torch.from_numpy(np.array(train.images[:2000])), train.labels[:2000]

with torch.no_grad():
    z = model.encode(images)  # (2000, D)
    means = torch.stack([z[labels == label].mean(0) for label in range(len(names))])
    before = z[labels == 0][:8]
    moved = model.decode(before - means[0] + means[1])
    # seen again by the encoder: to which class's mean is the result nearest?
    nearest = torch.cdist(model.encode(moved), means).argmin(1)

print(f"{names[0]} - mean({names[0]}) + mean({names[1]}): {(nearest == 1).sum()} of {len(moved)} become {names[1]}")
out = Path("var/examples/latent_arithmetic.png")
out.parent.mkdir(parents=True, exist_ok=True)
rows = torch.cat([images[labels == 0][:8], model.decode(before), moved])
out.write_bytes(pictures.grid(rows.numpy(), columns=8))
print(f"images, the same as the decoder draws them, and the results, row by row: {out}")
