"""Bits-back coding with a VAE: what goes in comes out, and what a chunk of images is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from densitywatch.evaluation.coding import bits_back
from densitywatch.models.vae import VAE, Settings


@pytest.fixture
def model() -> VAE:
    torch.manual_seed(0)
    return VAE(Settings(channels=4, latent=3), channels=1, size=8, classes=0).double().eval()


@pytest.mark.parametrize("n", [1, bits_back.CHUNK, bits_back.CHUNK + 3])
def test_images_come_back_from_one_chunk_and_from_several(model: VAE, n: int) -> None:
    x = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(bits_back.decode(model, n, bits_back.encode(model, x)), x)


def test_the_same_images_give_the_same_words(model: VAE) -> None:
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert bits_back.encode(model, x).tolist() == bits_back.encode(model, x).tolist()


@pytest.mark.parametrize(("size", "images"), [(8, 16), (64, 16), (128, 4), (1024, 1)])
def test_a_chunk_has_fewer_images_the_larger_they_are(size: int, images: int) -> None:
    model = SimpleNamespace(size=size)
    assert bits_back.chunk_of(model) == images  # type: ignore[arg-type]
