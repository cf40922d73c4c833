"""The one training loop: likelihood and adversarial models differ by the step they are given."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densitywatch import stopping
from densitywatch.data.dataset import Split
from densitywatch.data.reading import images_at_once
from densitywatch.devices import compiled as compile_function
from densitywatch.errors import TrainingDiverged
from densitywatch.models.offers import SingleLoss, is_game
from densitywatch.params import TrainingParams
from densitywatch.progress import track
from densitywatch.training.adversarial import adversarial_step, adversarial_warnings
from densitywatch.training.checkpoint import Progress, load_state, optimizer_tensors, restore_optimizers, save_state
from densitywatch.training.optimizers import make_optimizers, schedule, set_learning_rate
from densitywatch.training.sharing import average_figures, average_statistics, total
from densitywatch.training.steps import likelihood_step

LOG_EVERY = 20
"""Steps between two rows that `Run.log` gets; a validation makes one too."""

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Run:
    """The name of a training, where its state is kept, and who is told of its steps."""

    name: str
    """In the progress bar and in messages."""
    seed: int
    folder: Path
    """Where the state is kept until the training is done."""
    identity: str
    """A digest of params, data and source (identity.py); a run only goes on from a state of its own identity."""
    compiled: bool = False
    """Whether the loss is compiled."""
    log: Log | None = None
    """Called with the number of a step and the mean of each figure since the last call."""
    run_id: str | None = None
    """MLflow's id, kept in the state, so that a run that goes on is logged to the same place."""


def train(
    fabric: Any, model: Any, images: Split, validation: Split, training: TrainingParams, run: Run
) -> tuple[nn.Module, Progress]:
    """Train `model` and return the EMA weights of its best checkpoint by validation, with what happened on the way.

    The state is written to `run.folder` every `checkpoint_every` steps and when the process is told to stop. A run that
    finds a state of the same identity goes on from it and ends with the weights of a run never stopped, bit for bit:
    batches and random numbers follow from (seed, step). Several processes share every batch. All end with the same
    weights, and only the first one writes.

    Raises TrainingDiverged when the loss is NaN or infinite; the state of the last checkpoint stays.
    """
    ema = copy.deepcopy(model)  # the moving average of the weights, which is what is validated and kept
    best = copy.deepcopy(model)
    progress = Progress(run_id=run.run_id)
    step_function: Any = adversarial_step if is_game(model) else likelihood_step

    model = fabric.to_device(model)
    optimizers = make_optimizers(model, training)
    parts = {"model/": model, "ema/": ema, "best/": best}
    # go on where an earlier process of the same run was stopped
    if (found := load_state(run.folder, run.identity, named(parts), optimizers)) is not None:
        tensors, progress = found
        for prefix, part in parts.items():
            part.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        restore_optimizers(optimizers, tensors)
        # another than the state's where the store lacks that run: a new one was begun
        progress.run_id = run.run_id

    if run.compiled and not is_game(model):
        model.loss = compile_function(model.loss)
    optimizers = {key: fabric.setup_optimizers(optimizer) for key, optimizer in optimizers.items()}
    ema, best = ema.to(fabric.device), best.to(fabric.device)

    sums = {key: torch.tensor(value, device=fabric.device) for key, value in progress.sums.items()}
    since, started = progress.seconds, time.monotonic()
    left = range(progress.step, training.steps)
    for step in stopping.between(track(left, f"train {run.name}") if fabric.is_global_zero else left):
        # the step's images, random numbers and learning rate follow from its number alone
        x, labels = batch(images, step, training.batch_size, run.seed, fabric)
        torch.manual_seed(seed_of(run.seed, step, fabric.global_rank))
        set_learning_rate(optimizers, schedule(step, training))
        # forward, backward, update
        logs = average_figures(fabric, step_function(fabric, model, optimizers, x, labels, training))
        average_statistics(fabric, model)
        stop_if_diverged(run.name, logs, step, progress.step, run.folder)
        # a short memory at first, so that the initial weights are soon forgotten
        update_ema(ema, model, min(training.ema_decay, (1 + step) / (10 + step)))

        # a row is the mean over the steps since the last one: the loss of a single batch is mostly noise
        sums = {key: value.detach().float() + sums.get(key, 0.0) for key, value in logs.items()}
        progress.summed += 1
        last = step + 1 == training.steps
        evaluated = last or (step + 1) % training.evaluate_every == 0
        if evaluated or (step + 1) % LOG_EVERY == 0:
            row = {"step": float(step + 1)}
            row |= {f"train_{key}": float(value) / progress.summed for key, value in sums.items()}
            sums, progress.summed = {}, 0
            # validate, keep the best
            if evaluated:
                figures = validate(ema, validation, training, run.seed, fabric)
                row |= {f"validation_{key}": value for key, value in figures.items()}
                # a game has no loss that says which checkpoint is best, so the last one is kept
                figure = row.get("validation_loss")
                if figure is None or progress.best_validation is None or figure <= progress.best_validation:
                    progress.best_validation, progress.best_step = figure, step + 1
                    best.load_state_dict(ema.state_dict())
                progress.history.append(row)
            if run.log is not None:
                run.log(step + 1, row)

        # write the state
        if last or stopping.asked() or (step + 1) % training.checkpoint_every == 0:
            progress.step = step + 1
            progress.sums = {key: float(value) for key, value in sums.items()}
            progress.seconds = since + time.monotonic() - started
            if fabric.is_global_zero:
                save_state(run.folder, run.identity, named(parts) | optimizer_tensors(optimizers), progress)
    progress.warnings += adversarial_warnings(progress.history)
    return best.cpu().eval(), progress


def named(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of every part, the part's name before each."""
    return {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}


def seed_of(seed: int, step: int, rank: int) -> int:
    """Another seed for every step of every device, far from those of other runs."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def batch(images: Split, step: int, size: int, seed: int, fabric: Any) -> tuple[Tensor, Tensor]:
    """The images of `step`: position step * size in an endless sequence of shuffled epochs, this device's share.

    It follows from (seed, step) alone, which is what makes a resumed run exact.
    """
    n = len(images)
    positions = np.arange(step * size, (step + 1) * size)
    chosen = np.empty(size, dtype=np.int64)
    for epoch in np.unique(positions // n):
        order = epoch_order(seed, int(epoch), n)
        inside = positions // n == epoch
        chosen[inside] = order[positions[inside] % n]
    chosen = chosen[fabric.global_rank :: fabric.world_size]
    x, labels = torch.from_numpy(images.images[chosen]), torch.from_numpy(images.labels[chosen])
    return x.to(fabric.device, non_blocking=True), labels.to(fabric.device, non_blocking=True)


@lru_cache(maxsize=2)  # a batch may take the end of one epoch and the start of the next
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of the n images in an epoch; kept, since drawing it takes longer than copying a small batch."""
    return np.random.default_rng((seed, epoch)).permutation(n)


@torch.no_grad()
def validate(model: nn.Module, split: Split, training: TrainingParams, seed: int, fabric: Any) -> dict[str, float]:
    """The mean of every scalar of `model.loss` over the validation images, `loss` among them; empty for a game.

    `model` is on the device of `fabric`; several processes share the images.
    """
    if not isinstance(model, SingleLoss):
        return {}
    most = min(len(split), training.validation_images or len(split))
    # fewer images than processes: each takes all of them, which gives the same mean
    mine = range(fabric.global_rank, most, fabric.world_size) if most >= fabric.world_size else range(most)
    count = len(mine)
    sums: dict[str, float] = {}
    torch.manual_seed(seed)  # the same noise for every checkpoint, so that they compare
    model.eval()
    step = images_at_once(128, split.images.shape[-1])
    for start in range(0, count, step):
        part = mine[start : start + step]
        rows = slice(part.start, part.stop, part.step)
        x = torch.from_numpy(np.array(split.images[rows])).to(fabric.device)
        labels = torch.from_numpy(np.array(split.labels[rows])).to(fabric.device)
        with fabric.autocast():
            loss, logs = model.loss(x, labels)
        for key, value in {"loss": loss, **logs}.items():
            sums[key] = sums.get(key, 0.0) + float(value) * len(x)
    model.train()
    sums, count = total(fabric, sums, count)
    return {key: value / count for key, value in sums.items()}


def stop_if_diverged(name: str, logs: dict[str, Tensor], step: int, kept: int, folder: Path) -> None:
    """kept: the step of the state in `folder`; 0 where there is none yet."""
    for key, value in logs.items():
        if key.endswith("loss") and not math.isfinite(float(value)):
            where = f"the checkpoint of step {kept} is kept in {folder}" if kept else "no checkpoint was written yet"
            raise TrainingDiverged(
                f"{name}: {key} became {float(value)} at step {step + 1}; {where}; "
                f"lower models.{name}.training.learning_rate or gradient_clip"
            )


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model; buffers such as batch statistics are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1.0 - decay)
    for kept, new in zip(ema.buffers(), model.buffers(), strict=True):
        kept.copy_(new)
