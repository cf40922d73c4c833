from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densitywatch.evaluation.measures import samples
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.samples import sample_grid
from densitywatch.params import Params
from tests.evaluation.conftest import NAMES


class Flat(torch.nn.Module):
    """Draws flat images of the label's number times ten; without labels all are of 200."""

    def __init__(self, conditional: bool) -> None:
        super().__init__()
        self.conditional = conditional
        self.asked: list[int] = []

    def sample(self, n: int, labels: Tensor | None = None, generator: Any = None) -> Tensor:
        self.asked.append(n)
        value = torch.full((n,), 200) if labels is None else labels * 10
        return value.to(torch.uint8)[:, None, None, None].expand(n, 1, 8, 8)


def test_a_conditional_model_fills_one_row_per_label(context_of: Callable[..., Context]) -> None:
    context = context_of(Flat(conditional=True))
    result = sample_grid(context)
    assert result is not None
    assert result.figures[0].rows == NAMES
    assert result.figures[0].caption.startswith("One row per label.")
    sheet = np.asarray(Image.open(context.out / "samples.png"))[:, :, 0]
    assert sheet[::58, 0].tolist() == [10 * label for label in range(10)]
    assert sheet.shape[1] == 2 * 58 - 2, "20 images of 10 labels"


def test_labels_beyond_the_first_are_left_out_and_it_is_said(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CLASSES_SHOWN", 4)
    result = sample_grid(context_of(Flat(conditional=True)))
    assert result is not None
    assert result.figures[0].rows == NAMES[:4]
    assert result.notes == ["samples of the first 4 of 10 labels are shown"]


def test_samples_are_drawn_in_batches_and_their_speed_is_measured(
    context_of: Callable[..., Context], params: Params
) -> None:
    model = Flat(conditional=False)
    evaluate = params.evaluate.model_copy(update={"sample_images": 50})
    context = context_of(model, params=params.model_copy(update={"evaluate": evaluate}))
    result = sample_grid(context)
    assert result is not None
    assert model.asked == [20, 20, 10]
    assert float(result.metrics["sample_images_per_second"]) > 0
    assert result.figures[0].rows == ()


def test_a_model_that_draws_nothing_has_no_grid(context_of: Callable[..., Context]) -> None:
    assert sample_grid(context_of(torch.nn.Identity())) is None
