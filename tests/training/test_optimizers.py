"""The optimisers: Muon by its definition, one optimiser a parameter, the schedule of the learning rate."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from densitywatch.models.pixelcnn import PixelCNN, Settings
from densitywatch.params import TrainingParams
from densitywatch.training.optimizers import KernelMuon, make_optimizers, orthogonal, schedule


def test_the_schedule_warms_up_and_ends_where_params_say() -> None:
    training = TrainingParams(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)
    shares = [schedule(step, training) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(shares[9], abs=0.03)
    assert shares[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_every_parameter_has_exactly_one_optimiser() -> None:
    model = PixelCNN(Settings(channels=4, conditional=True), channels=1, size=8, classes=3)
    training = TrainingParams(steps=1, batch_size=1, learning_rate=1e-3, optimizer="muon")
    optimizers = make_optimizers(model, training)
    addresses = [p.data_ptr() for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(addresses) == sorted(p.data_ptr() for p in model.parameters())
    moved_by_muon = {p.data_ptr() for p in optimizers["matrices"].param_groups[0]["params"]}
    assert model.head.out.weight.data_ptr() not in moved_by_muon
    assert model.layers[0].vertical.weight.data_ptr() in moved_by_muon


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_a_kernel_as_the_matrix_that_it_is(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 2, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(kernel.detach().clone(memory_format=torch.contiguous_format).flatten(1))
    ours, theirs = KernelMuon([kernel], lr=0.1), torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn(6, 4, 2, 3)
        kernel.grad, matrix.grad = gradient.to(memory_format=memory_format), gradient.flatten(1)
        ours.step()
        theirs.step()
    # torch's computes its Newton-Schulz iteration in bfloat16
    assert torch.allclose(kernel.detach().contiguous().flatten(1), matrix.detach(), atol=0.02)
    ours.zero_grad()
    assert kernel.grad is None


@pytest.mark.parametrize("shape", [(6, 24), (24, 6), (16, 16), (64, 192)])
def test_muon_orthogonalises_as_its_definition_says_to_single_precision(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, ours in zip(matrices, orthogonal(matrices), strict=True):
        x = matrix.double() if shape[0] <= shape[1] else matrix.double().T
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        theirs = x if shape[0] <= shape[1] else x.T
        assert ours.dtype == torch.float32
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


def test_muon_of_a_matrix_of_low_rank_or_of_zeros_is_finite() -> None:
    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    flat = torch.randn(24, 1, generator=torch.Generator().manual_seed(1)) @ row
    found = orthogonal(torch.stack([flat, torch.zeros(24, 40)]))
    assert found.isfinite().all()
    assert 0.6 < torch.linalg.svdvals(found[0])[0] < 1.3
    assert found[1].abs().max() == 0


def test_muon_computes_nothing_in_bfloat16() -> None:
    weight = nn.Parameter(torch.randn(8, 12))
    optimizer = KernelMuon([weight], lr=0.1)
    weight.grad = torch.randn(8, 12)
    with SeenTypes() as seen:
        optimizer.step()
    assert seen.types == {torch.float32}


class SeenTypes(TorchDispatchMode):
    """Notes the floating-point types of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else [result]
        self.types |= {value.dtype for value in found if isinstance(value, Tensor) and value.is_floating_point()}
        return result
