"""The training loop: exact resume, the best checkpoint, divergence, the schedule, the order of the data."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from densitywatch.data.dataset import Split
from densitywatch.devices import start_fabric
from densitywatch.errors import TrainingDiverged
from densitywatch.params import DeviceParams, TrainingParams
from densitywatch.training import checkpoint, loop
from densitywatch.training.optimizers import KernelMuon, make_optimizers, orthogonal, schedule
from densitywatch.training.steps import clip_gradients

RUNNER = Path(__file__).with_name("runner.py")


def run_to_the_end(kind: str, folder: Path) -> tuple[bytes, str]:
    subprocess.run([sys.executable, RUNNER, kind, folder], check=True, capture_output=True, timeout=300)
    return (folder / "model.safetensors").read_bytes(), (folder / "history.txt").read_text()


@pytest.mark.parametrize(("kind", "kills"), [("pixelcnn", [7, 1, 2]), ("vae", [5, 4])])
def test_a_run_killed_at_any_step_ends_with_the_weights_of_one_never_stopped(
    kind: str, kills: list[int], tmp_path: Path
) -> None:
    unbroken = run_to_the_end(kind, tmp_path / "unbroken")
    for steps in kills:
        killed = subprocess.run(
            [sys.executable, RUNNER, kind, tmp_path / "broken", str(steps)], capture_output=True, timeout=300
        )
        assert killed.returncode == -signal.SIGKILL
    assert run_to_the_end(kind, tmp_path / "broken") == unbroken


class Slope(nn.Module):
    """Minimises (w - target)^2 where the target is the batch's mean; enough of a model for the loop."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))
        self.calls, self.fail_at = 0, fail_at

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += self.training
        loss = (self.w - x.float().mean() / 255) ** 2
        if self.fail_at is not None and self.calls >= self.fail_at:
            loss = loss * float("nan")
        return loss, {"weight": self.w.detach()}


def small_run(model: nn.Module, folder: Path, **changes: object) -> tuple[nn.Module, checkpoint.Progress]:
    training = TrainingParams(
        **{"steps": 20, "batch_size": 4, "learning_rate": 0.1, "evaluate_every": 5, "checkpoint_every": 3, **changes}
    )
    split = Split(np.full((10, 1, 2, 2), 128, dtype=np.uint8), np.zeros(10, dtype=np.int64))
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1))
    run = loop.Run(name="slope", seed=1, folder=folder, identity="one")
    return loop.train(fabric, model, split, split, training, run)


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"slope: loss became nan at step 8; the checkpoint of step 6 is kept"):
        small_run(Slope(fail_at=8), tmp_path)
    state = checkpoint.load_state(tmp_path, "one")
    assert state is not None
    tensors, progress = state
    assert progress.step == 6
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_checkpoint_that_validation_likes_best_is_returned(tmp_path: Path) -> None:
    # a learning rate that grows the error after the first evaluation: an EMA-free run that overshoots for ever
    model, progress = small_run(Slope(), tmp_path, learning_rate=3.0, ema_decay=0.0, gradient_clip=None, warmup_steps=0)
    losses = {row["step"]: row["validation_loss"] for row in progress.history}
    assert progress.best_validation == min(losses.values())
    assert losses[progress.best_step] == progress.best_validation
    assert float((model.w - 128 / 255).detach() ** 2) == pytest.approx(progress.best_validation)


def test_a_state_of_other_params_or_a_broken_one_is_not_gone_on_from(tmp_path: Path) -> None:
    small_run(Slope(), tmp_path)
    assert checkpoint.load_state(tmp_path, "one") is not None
    assert checkpoint.load_state(tmp_path, "another") is None
    path = tmp_path / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:40])
    assert checkpoint.load_state(tmp_path, "one") is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model/w", torch.zeros(1_000_000)),
        ("model/w", torch.zeros((), dtype=torch.int64)),
        ("best/w", None),
        ("foreign", torch.zeros(1)),
        ("optimizer/all/0/exp_avg", torch.zeros(1_000_000)),
        ("optimizer/all/70/exp_avg", torch.zeros(())),
    ],
)
def test_a_state_whose_tensors_are_not_the_runs_is_begun_anew(
    tmp_path: Path, name: str, tensor: torch.Tensor | None
) -> None:
    whole, _ = small_run(Slope(), tmp_path)
    path = tmp_path / checkpoint.STATE
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    optimizer = next(key.split("/")[1] for key in tensors if key.startswith("optimizer/"))
    name = name.replace("/all/", f"/{optimizer}/")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    again, progress = small_run(Slope(), tmp_path)
    assert torch.equal(again.w, whole.w)
    assert progress.step == 20


def test_every_image_is_seen_once_an_epoch_and_two_devices_share_a_batch() -> None:
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))

    def labels(step: int, rank: int, world: int) -> list[int]:
        fabric = SimpleNamespace(global_rank=rank, world_size=world, device="cpu")
        return loop.batch(split, step, 4, 3, fabric)[1].tolist()

    seen = [label for step in range(5) for label in labels(step, 0, 1)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert sorted(labels(2, 0, 2) + labels(2, 1, 2)) == sorted(labels(2, 0, 1))


def test_the_schedule_warms_up_and_ends_where_params_say() -> None:
    training = TrainingParams(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)
    shares = [schedule(step, training) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(shares[9], abs=0.03)
    assert shares[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_gradients_are_scaled_down_to_the_limit_and_their_norm_is_told() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(clip_gradients(layer, 1.0)) == pytest.approx(5.0)
    assert float(layer.weight.grad.norm()) == pytest.approx(1.0, abs=1e-4)


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


def test_every_parameter_has_exactly_one_optimiser() -> None:
    from densitywatch.models.pixelcnn import PixelCNN, Settings

    model = PixelCNN(Settings(channels=4, conditional=True), channels=1, size=8, classes=3)
    training = TrainingParams(steps=1, batch_size=1, learning_rate=1e-3, optimizer="muon")
    optimizers = make_optimizers(model, training)
    addresses = [p.data_ptr() for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(addresses) == sorted(p.data_ptr() for p in model.parameters())
    moved_by_muon = {p.data_ptr() for p in optimizers["matrices"].param_groups[0]["params"]}
    assert model.head.out.weight.data_ptr() not in moved_by_muon
    assert model.layers[0].vertical.weight.data_ptr() in moved_by_muon


def test_mixed_precision_reaches_the_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fabric applies its precision to `forward` alone; the losses are other methods."""
    seen: list[torch.dtype] = []

    class Linear(Slope):
        def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            product = self.w.expand(1, 4) @ x.flatten(1).float().T
            if self.training:
                seen.append(product.dtype)
            return product.float().square().mean(), {}

    training = TrainingParams(steps=2, batch_size=4, learning_rate=0.1, evaluate_every=2)
    split = Split(np.full((10, 1, 2, 2), 128, dtype=np.uint8), np.zeros(10, dtype=np.int64))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # emulated where it is not
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1), "bf16-mixed")
    run = loop.Run(name="linear", seed=1, folder=tmp_path, identity="one")
    loop.train(fabric, Linear(), split, split, training, run)
    assert seen == [torch.bfloat16, torch.bfloat16]
