"""The training loop: exact resume, the best checkpoint, divergence, the order of the data."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from densitywatch import devices, stopping
from densitywatch.data.dataset import Split
from densitywatch.devices import start_fabric
from densitywatch.errors import TrainingDiverged
from densitywatch.params import DeviceParams, TrainingParams
from densitywatch.training import checkpoint, loop

RUNNER = Path(__file__).with_name("runner.py")


def run_to_the_end(kind: str, folder: Path) -> tuple[bytes, str]:
    subprocess.run([sys.executable, RUNNER, kind, folder], check=True, capture_output=True, timeout=300)
    return (folder / "model.safetensors").read_bytes(), (folder / "history.txt").read_text()


@pytest.mark.slow
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


def small_run(
    model: nn.Module, folder: Path, log: loop.Log | None = None, run_id: str | None = None, **changes: object
) -> tuple[nn.Module, checkpoint.Progress]:
    training = TrainingParams(
        **{"steps": 20, "batch_size": 4, "learning_rate": 0.1, "evaluate_every": 5, "checkpoint_every": 3, **changes}
    )
    split = Split(np.full((10, 1, 2, 2), 128, dtype=np.uint8), np.zeros(10, dtype=np.int64))
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1))
    run = loop.Run(name="slope", seed=1, folder=folder, identity="one", log=log, run_id=run_id)
    return loop.train(fabric, model, split, split, training, run)


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"slope: loss became nan at step 8; the checkpoint of step 6 is kept"):
        small_run(Slope(fail_at=8), tmp_path)
    state = checkpoint.load_state(tmp_path, "one")
    assert state is not None
    tensors, progress = state
    assert progress.step == 6
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_run_that_was_stopped_between_checkpoints_and_diverges_names_the_step_that_is_kept(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Slope()
    with monkeypatch.context() as patched:
        # the signal comes in this step, and its state is written after it
        patched.setattr(stopping, "_asked", None)
        patched.setattr(model, "loss", signalled(model, stopped_at, patched))
        with pytest.raises(KeyboardInterrupt):
            small_run(model, tmp_path)
    message = rf"loss became nan at step {stopped_at + 1}; the checkpoint of step {stopped_at} is kept"
    with pytest.raises(TrainingDiverged, match=message):
        small_run(Slope(fail_at=1), tmp_path)


def signalled(model: Slope, at: int, patched: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """The model's loss; its `at`-th step is told to stop."""
    loss = model.loss

    def told(x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = loss(x, labels)
        if model.calls == at:
            patched.setattr(stopping, "_asked", signal.SIGTERM)
        return found

    return told


def test_the_checkpoint_that_validation_likes_best_is_returned(tmp_path: Path) -> None:
    # a learning rate that grows the error after the first evaluation: an EMA-free run that overshoots for ever
    model, progress = small_run(Slope(), tmp_path, learning_rate=3.0, ema_decay=0.0, gradient_clip=None, warmup_steps=0)
    losses = {row["step"]: row["validation_loss"] for row in progress.history}
    assert progress.best_validation == min(losses.values())
    assert losses[progress.best_step] == progress.best_validation
    assert float((model.w - 128 / 255).detach() ** 2) == pytest.approx(progress.best_validation)


def test_a_row_is_the_mean_over_the_steps_since_the_last_one(tmp_path: Path) -> None:
    seen: list[float] = []

    class Seen(Slope):
        def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss, logs = super().loss(x, labels)
            if self.training:
                seen.append(float(loss.detach()))
            return loss, logs

    logged: dict[int, float] = {}
    _, progress = small_run(
        Seen(), tmp_path, steps=50, evaluate_every=15, log=lambda step, row: logged.update({step: row["train_loss"]})
    )
    ends = [15, 20, 30, 40, 45, 50]
    assert list(logged) == ends
    for start, end in zip([0, *ends], ends, strict=False):
        assert logged[end] == pytest.approx(np.mean(seen[start:end]), rel=1e-5)
    assert {row["step"]: row["train_loss"] for row in progress.history} == {
        end: logged[end] for end in (15, 30, 45, 50)
    }


def test_a_state_of_other_params_or_a_broken_one_is_not_gone_on_from(tmp_path: Path) -> None:
    small_run(Slope(), tmp_path)
    assert checkpoint.load_state(tmp_path, "one") is not None
    assert checkpoint.load_state(tmp_path, "another") is None
    path = tmp_path / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:40])
    assert checkpoint.load_state(tmp_path, "one") is None


def test_a_run_that_goes_on_under_another_id_keeps_that_one(tmp_path: Path) -> None:
    """Tracking begins a new run where its store lacks the old one."""
    small_run(Slope(), tmp_path, run_id="old")
    _, progress = small_run(Slope(), tmp_path, run_id="new")
    assert progress.run_id == "new"


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
def test_a_run_with_a_state_of_other_tensors_starts_from_the_beginning(
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
    model = Slope()
    again, progress = small_run(model, tmp_path)
    assert model.calls == 20  # a state of the last step that is accepted leaves no step
    assert torch.equal(again.w, whole.w)
    assert progress.step == 20


def test_the_moments_of_a_kernel_come_back_in_its_memory_format() -> None:
    kernel = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    first, second = ({"model": torch.optim.AdamW(kernel.parameters())} for _ in range(2))
    kernel(torch.ones(1, 3, 5, 5)).sum().backward()
    first["model"].step()
    tensors = {key: value.contiguous() for key, value in checkpoint.optimizer_tensors(first).items()}  # as in a file
    checkpoint.restore_optimizers(second, tensors)
    for parameter in kernel.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            restored = second["model"].state[parameter][key]
            assert torch.equal(restored, first["model"].state[parameter][key])
            assert restored.stride() == parameter.stride()


def test_every_image_is_seen_once_an_epoch_and_two_devices_share_a_batch() -> None:
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))

    def labels(step: int, rank: int, world: int) -> list[int]:
        fabric = SimpleNamespace(global_rank=rank, world_size=world, device="cpu")
        return loop.batch(split, step, 4, 3, fabric)[1].tolist()

    seen = [label for step in range(5) for label in labels(step, 0, 1)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert sorted(labels(2, 0, 2) + labels(2, 1, 2)) == sorted(labels(2, 0, 1))


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
    monkeypatch.setattr(devices, "computes_bfloat16", lambda: True)  # emulated where it does not
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1), "bf16-mixed")
    run = loop.Run(name="linear", seed=1, folder=tmp_path, identity="one")
    loop.train(fabric, Linear(), split, split, training, run)
    assert seen == [torch.bfloat16, torch.bfloat16]
