"""Small adversarial models for the tests."""

from __future__ import annotations

from typing import Any

import torch

from densitywatch.models import conditional_gan, dcgan, gan

SMALL: dict[Any, dict[str, Any]] = {
    gan: {"generator": (8, 12), "discriminator": (12, 8)},
    dcgan: {"generator_channels": 16, "discriminator_channels": 4},
    conditional_gan: {"generator_channels": 16, "discriminator_channels": 4},
}


def small(module: Any, *, channels: int = 1, size: int = 8, classes: int = 3, **settings: Any) -> Any:
    torch.manual_seed(0)
    chosen = module.Settings(latent=5, **(SMALL[module] | settings))
    return module.MODEL(chosen, channels=channels, size=size, classes=classes)


def images(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
