"""Training a model of params.yaml: `densitywatch train NAME`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densitywatch.compiling import should_compile
from densitywatch.data import open_split, read_info
from densitywatch.data.reading import reading_size
from densitywatch.errors import ParamsError
from densitywatch.files import whole_folder
from densitywatch.models import build_model, save_model
from densitywatch.params import DeviceParams, Params, Precision
from densitywatch.progress import say
from densitywatch.training.checkpoint import Progress, load_state
from densitywatch.training.loop import train


def train_model(name: str, params: Params, root: Path) -> Path:
    """Train models.<name> on data/prepared and write models/<name>/{model.safetensors, history.json, training.json}.

    The run is logged to MLflow. Interrupted, it goes on from checkpoints/<name> when started again with the same params
    and data, and ends with the same weights.

    Raises ParamsError for a name that is not in params.yaml, TrainingDiverged when the loss is no longer a number.
    """
    from densitywatch.tracking import training_run

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
    model.data_size = info.size
    if params.device.channels_last:
        model = model.to(memory_format=torch.channels_last)

    folder = root / "checkpoints" / name
    identity = identity_of(params, name, info.digest, fabric.world_size)
    earlier = load_state(folder, identity)
    run_id = earlier[1].run_id if earlier else None
    logs = fabric.is_global_zero
    with contextlib.ExitStack() as stack:
        run = (
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
            name=name,
            seed=params.seed,
            folder=folder,
            identity=identity,
            compiled=block.training.compile and should_compile(params.device),
            log=run.log if run else None,
            progress=Progress(run_id=run.run_id if run else None),
        )
        if fabric.is_global_zero:
            for warning in progress.warnings:
                say(f"{name}: warning: {warning}")
            visits = block.training.steps * block.training.batch_size
            summary = {
                "train_seconds": round(progress.seconds, 3),
                "images_per_second": round(visits / max(progress.seconds, 1e-9), 1),
                "steps": block.training.steps,
                "best_step": progress.best_step,
                "best_validation": progress.best_validation,
                "parameters": sum(p.numel() for p in best.parameters()),
                "mlflow_run_id": progress.run_id,
                "warnings": progress.warnings,
            }
            out = root / "models" / name
            write_model(out, best, block.kind, info.class_names, info.digest, progress, summary)
            if run is not None:
                run.log_artifacts(out, "model")
            shutil.rmtree(folder, ignore_errors=True)
            say(f"{name}: best of {progress.best_step} of {block.training.steps} steps -> {out}")
    return root / "models" / name


def write_model(
    out: Path,
    model: nn.Module,
    kind: str,
    class_names: tuple[str, ...],
    digest: str,
    progress: Progress,
    summary: dict[str, Any],
) -> None:
    """The folder of a trained model, whole or not at all."""
    about = {"data_digest": digest, "best_step": progress.best_step, "best_validation": progress.best_validation}
    with whole_folder(out) as beside:
        save_model(model, beside, kind=kind, class_names=class_names, about=about)
        columns = list(dict.fromkeys(column for row in progress.history for column in row))
        history = {"columns": columns, "rows": progress.history}
        (beside / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        (beside / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def start_fabric(device: DeviceParams, precision: Precision | None = None) -> Any:
    """Lightning Fabric on the devices of params.yaml, with this process's threads set; `precision` overrides theirs.

    Raises ParamsError when the accelerator that params ask for is not there.
    """
    import lightning_fabric

    torch.set_num_threads(device.threads_of_a_stage)
    try:
        fabric = lightning_fabric.Fabric(
            accelerator=device.accelerator,
            devices=1 if device.accelerator == "cpu" and device.devices == "auto" else device.devices,
            precision=usable_precision(precision or device.precision, device),
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ParamsError(f"device: accelerator {device.accelerator!r} cannot be used here: {message}") from None
    return fabric


def usable_precision(precision: Precision, device: DeviceParams) -> Precision:
    """bf16-mixed only where the processor computes with bfloat16 itself: emulated, it is slower than 32 bits."""
    on_cpu = device.accelerator == "cpu" or (device.accelerator == "auto" and not torch.accelerator.is_available())
    if precision == "bf16-mixed" and on_cpu and not computes_bfloat16():
        return "32-true"
    return precision


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself, and torch was not told to leave that aside."""
    # the capability that torch uses: ATEN_CPU_CAPABILITY=avx2 shows on a new processor what an older one does
    in_use = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return in_use and bool(torch.cpu._is_avx512_bf16_supported())


def identity_of(params: Params, name: str, data_digest: str, devices: int) -> str:
    """A digest of all that decides a run's weights; a state of another identity is not gone on from."""
    content = {
        "seed": params.seed,
        "device": params.device.model_dump(),
        "model": params.models[name].model_dump(),
        "data": data_digest,
        "devices": devices,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
