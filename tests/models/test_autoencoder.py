"""The autoencoder: the loss is the error it names, noise is for training alone, any size and colour fits."""

from __future__ import annotations

import pytest
import torch

from densitywatch.models.autoencoder import Autoencoder, Settings


def images(n: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 4), (3, 33), (1, 5)])
def test_reconstructions_and_codes_have_the_shapes_they_promise(channels: int, size: int) -> None:
    model = Autoencoder(Settings(code=7, channels=4), channels=channels, size=size, classes=0).eval()
    x = images(3, channels, size)
    assert model.encode(x).shape == (3, 7)
    again = model.reconstruct(x)
    assert again.shape == x.shape
    assert again.dtype == torch.uint8
    assert torch.equal(again, model.decode(model.encode(x)))


def test_the_loss_is_the_squared_error_of_pixels_from_0_to_1() -> None:
    torch.manual_seed(0)
    model = Autoencoder(Settings(code=3, channels=4), channels=1, size=8, classes=0).eval()
    x = images(6, 1, 8)
    loss, logs = model.loss(x)
    error = ((model.reconstruct(x).float() - x.float()) / 255).square().mean()
    assert loss.item() == pytest.approx(float(error), rel=1e-2)  # reconstructions are rounded to 8 bits
    assert float(logs["reconstruction_mse"]) == loss.item()


def test_noise_spoils_what_the_encoder_sees_in_training_and_nothing_in_use() -> None:
    torch.manual_seed(0)
    model = Autoencoder(Settings(code=3, channels=4, noise=0.5), channels=1, size=8, classes=0)
    x = images(6, 1, 8)
    assert model.loss(x)[0].item() != model.loss(x)[0].item()
    model.eval()
    assert model.loss(x)[0].item() == model.loss(x)[0].item()


def test_a_few_steps_of_training_bring_the_error_down() -> None:
    torch.manual_seed(0)
    model = Autoencoder(Settings(code=8, channels=8), channels=1, size=8, classes=0)
    x = images(16, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)  # four grey squares: eight numbers hold it
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model.loss(x)[0].item()
    for _ in range(60):
        loss, _ = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first
