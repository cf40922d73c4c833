"""Training a model of params.yaml: `densitywatch train NAME`."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.reading import reading_size
from densitywatch.devices import say_if_eager, should_compile, start_fabric, usable_precision
from densitywatch.errors import ParamsError
from densitywatch.files import whole_folder
from densitywatch.models.offers import is_game, takes_labels
from densitywatch.models.storage import WEIGHTS, build_model, save_model
from densitywatch.params import ModelBlock, Params
from densitywatch.progress import say
from densitywatch.tracking.runs import training_run
from densitywatch.training.bookkeeping import note_training
from densitywatch.training.checkpoint import Progress, load_state
from densitywatch.training.identity import identity_of
from densitywatch.training.loop import Run, train
from densitywatch.training.sharing import check_share


def train_model(name: str, params: Params, root: Path) -> Path:
    """Train models.<name> on data/prepared and write models/<name>/{model.safetensors, history.json, training.json}.

    The run is logged to MLflow; how long it took is noted by bookkeeping.py. A run that was interrupted goes on from
    checkpoints/<name> when it is started again with the same params, data and source on a processor of the same kind,
    and ends with the same weights.
    On several devices only the first process writes and logs.

    Raises ParamsError for a name that is not in params.yaml, TrainingDiverged when the loss is no longer a number.
    """
    if name not in params.models:
        raise ParamsError(f"models.{name}: no such model in params.yaml; it has {', '.join(params.models)}")
    block = params.models[name]
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    size = reading_size(block.size, info.size)
    images, validation = open_split(prepared, "train", size), open_split(prepared, "validation", size)

    fabric = start_fabric(params.device, block.training.precision)
    torch.manual_seed(params.seed)
    try:
        model: Any = build_model(block, channels=info.channels, size=size, classes=len(info.class_names))
    except ValueError as error:
        raise ParamsError(f"models.{name}.settings: {error}") from None
    check_share(f"models.{name}", block.training.batch_size, fabric, game=is_game(model))
    model.data_size = info.size
    if params.device.channels_last:
        model = model.to(memory_format=torch.channels_last)

    compiled = block.training.compile and should_compile(params.device)
    if block.training.compile and fabric.is_global_zero:
        say_if_eager(params.device)
    identity = identity_of(
        block.model_dump(),
        params,
        model,
        fabric,
        data_digest=info.digest,
        precision=usable_precision(block.training.precision or params.device.precision, params.device),
        compiled=compiled,
    )
    folder = root / "checkpoints" / name
    earlier = load_state(folder, identity)
    run_id = earlier[1].run_id if earlier else None
    logs = fabric.is_global_zero
    with contextlib.ExitStack() as stack:
        logged = (
            stack.enter_context(
                training_run(
                    name,
                    params,
                    root,
                    dataset_name=info.name,
                    dataset_digest=info.digest,
                    stage=f"train@{name}",
                    resume_run_id=run_id,
                )
            )
            if logs
            else None
        )
        best, progress = train(
            fabric,
            model,
            images,
            validation,
            block.training,
            Run(
                name=name,
                seed=params.seed,
                folder=folder,
                identity=identity,
                compiled=compiled,
                log=logged.log if logged else None,
                run_id=logged.run_id if logged else None,
            ),
        )
        out = root / "models" / name
        if logged is not None:
            for warning in progress.warnings:
                say(f"{name}: warning: {warning}")
            counts = label_counts(images.labels, info.class_names) if takes_labels(best) else None
            write_model(out, best, block, info.class_names, info.digest, progress, counts)
            visits = block.training.steps * block.training.batch_size
            took = {
                "train_seconds": round(progress.seconds, 3),
                "images_per_second": round(visits / max(progress.seconds, 1e-9), 1),
                "mlflow_run_id": progress.run_id,
            }
            note_training(out / WEIGHTS, name, root, took)
            logged.log_artifacts(out, "model")
            shutil.rmtree(folder, ignore_errors=True)
            say(f"{name}: best of {progress.best_step} of {block.training.steps} steps -> {out}")
    fabric.barrier()  # no process ends before the folder is there
    return out


def label_counts(labels: npt.NDArray[np.int64], class_names: tuple[str, ...]) -> list[int]:
    """The number of images of each label."""
    return [int(count) for count in np.bincount(labels[labels >= 0], minlength=len(class_names))]


def write_model(
    out: Path,
    model: nn.Module,
    block: ModelBlock,
    class_names: tuple[str, ...],
    digest: str,
    progress: Progress,
    counts: list[int] | None = None,
) -> None:
    """Write the folder of a trained model, whole or not at all. Times and run ids are not in it (bookkeeping.py).

    `counts`: the training images of each label, which a conditional model's header keeps.
    """
    about: dict[str, Any] = {
        "data_digest": digest,
        "best_step": progress.best_step,
        "best_validation": progress.best_validation,
    }
    if counts is not None:
        about["label_counts"] = counts
    summary = {
        "steps": block.training.steps,
        "best_step": progress.best_step,
        "best_validation": progress.best_validation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "warnings": progress.warnings,
    }
    with whole_folder(out) as temporary:
        save_model(model, temporary, kind=block.kind, class_names=class_names, about=about)
        columns = list(dict.fromkeys(column for row in progress.history for column in row))
        history = {"columns": columns, "rows": progress.history}
        (temporary / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        (temporary / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
