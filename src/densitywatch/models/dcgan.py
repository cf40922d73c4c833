"""Deep convolutional GAN (Radford, Metz & Chintala 2016): the game of gan.py between two convolutional networks.

From the paper: strided and transposed convolutions instead of pooling; batch normalisation in both networks except at
the generator's output and the discriminator's input; ReLU in the generator with tanh at its end, leaky ReLU in the
discriminator; weights from N(0, 0.02).

What differs from the paper: as many doublings as the image's size needs (two for 28 x 28), narrower layers, a learning
rate for each player, and samples from an exponential average of the generator's weights.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.gan_losses import GeneratorLoss, discriminator_game_loss, game_logs, generator_game_loss
from densitywatch.models.common.latents import standard_normal
from densitywatch.models.common.map_sizes import halvings
from densitywatch.models.common.pixel_values import scale_images, unscale_images


class Settings(BaseModel):
    """`params.yaml`: models.<name>.settings for kind dcgan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent: int = Field(default=64, ge=1, le=65536)
    generator_channels: int = Field(default=128, ge=16, le=4096)
    """At the smallest map; every doubling of the size halves them, down to 16."""
    discriminator_channels: int = Field(default=32, ge=4, le=4096)
    """After the first layer; every halving of the size doubles them, up to eight times as many."""
    loss: GeneratorLoss = "non_saturating"


class Generator(nn.Module):
    """Latents (B, latent) to images in [-1, 1], (B, C, size, size)."""

    def __init__(self, settings: Settings, channels: int, size: int) -> None:
        super().__init__()
        doublings = halvings(size)
        self.size, self.start = size, -(-size // 2**doublings)
        widths = [max(16, settings.generator_channels // 2**i) for i in range(doublings)]
        self.project = nn.Linear(settings.latent, widths[0] * self.start**2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=o == channels)
            for i, o in zip(widths, [*widths[1:], channels], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.project(z).view(len(z), -1, self.start, self.start).contiguous(memory_format=torch.channels_last)
        for norm, double in zip(self.norms, self.doublings, strict=True):
            h = double(F.relu(norm(h)))
        return torch.tanh(h[:, :, : self.size, : self.size].float())


class Discriminator(nn.Module):
    """Images in [-1, 1] to logits (B,), positive where an image is taken for real."""

    def __init__(self, settings: Settings, channels: int, size: int) -> None:
        super().__init__()
        depth = halvings(size)
        widths = [channels] + [settings.discriminator_channels * min(8, 2**i) for i in range(depth)]
        self.halve = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1, bias=i == 0) for i in range(depth)
        )
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(width) for width in widths[2:])])
        self.out = nn.Linear(widths[-1] * (size // 2**depth) ** 2, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The activations of every layer."""
        found, h = [], x.contiguous(memory_format=torch.channels_last)
        for halve, norm in zip(self.halve, self.norms, strict=True):
            h = F.leaky_relu(norm(halve(h)), 0.2)
            found.append(h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.maps(x)[-1].flatten(1)).squeeze(1).float()
        return logits


class DCGAN(nn.Module):
    """Samples without a density. Images are uint8 (B, C, H, W), latents z (B, latent) are standard normal."""

    def __init__(self, settings: Settings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.generator = Generator(settings, channels, size)
        self.discriminator = Discriminator(settings, channels, size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def latents(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the prior, (n, latent); labels are ignored."""
        device = next(self.parameters()).device
        return standard_normal(n, self.settings.latent, generator=generator, device=device)

    def discriminator_loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the game's value on a batch and as many generated images, for the discriminator to minimise.

        Real and generated images pass in two batches, so each is normalised by its own statistics.
        """
        images = scale_images(x)
        with torch.no_grad():
            generated = self.generator(self.latents(len(x)))
        real, fake = self.discriminator(images), self.discriminator(generated)
        return discriminator_game_loss(real, fake), game_logs(images, generated, real, fake)

    def generator_loss(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `settings.loss` over n generated images, for the generator to minimise."""
        fake = self.discriminator(self.generator(self.latents(n)))
        return generator_game_loss(fake, self.settings.loss), {}

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images of latents (B, latent), uint8."""
        return unscale_images(self.generator(z))

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, uint8 (n, C, H, W)."""
        return self.decode(self.latents(n, generator=generator))

    def encode(self, x: Tensor) -> Tensor:
        """The discriminator's features for other tasks (section 5.1 of the paper), (B, D).

        Every layer's activations, max-pooled to a 4 x 4 grid. They are not latents: `decode` does not take them.
        """
        maps = self.discriminator.maps(scale_images(x))
        return torch.cat([F.adaptive_max_pool2d(h, 4).flatten(1) for h in maps], 1)


MODEL = DCGAN
