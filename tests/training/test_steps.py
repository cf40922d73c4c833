"""One step of training: the clipping of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densitywatch.training.steps import clip_gradients


def test_gradients_are_scaled_down_to_the_limit_and_their_norm_is_told() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(clip_gradients(layer, 1.0)) == pytest.approx(5.0)
    assert float(layer.weight.grad.norm()) == pytest.approx(1.0, abs=1e-4)
