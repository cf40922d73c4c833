from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.reconstruction import reconstruction


class Negative(torch.nn.Module):
    """Gives every image back as its negative."""

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return 255 - x


class Copy(torch.nn.Module):
    """Gives every image back as it is."""

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_the_error_is_that_of_pixels_from_0_to_1(context_of: Callable[..., Context]) -> None:
    context = context_of(Negative())
    images = torch.cat([x for x, _ in context.test_batches(context.params.evaluate.importance_images)])
    result = reconstruction(context)
    assert result is not None
    expected = float(((255 - 2 * images.double()) / 255).square().mean())
    assert result.metrics["reconstruction_mse"] == pytest.approx(expected)
    assert f"mean squared error of {len(images)} images" in result.figures[0].caption
    assert (context.out / "reconstructions.png").stat().st_size > 100


def test_an_image_given_back_as_it_is_has_no_error(context_of: Callable[..., Context]) -> None:
    result = reconstruction(context_of(Copy()))
    assert result is not None
    assert result.metrics["reconstruction_mse"] == 0.0


def test_a_model_that_reconstructs_nothing_is_left_out(context_of: Callable[..., Context]) -> None:
    assert reconstruction(context_of(torch.nn.Identity())) is None
