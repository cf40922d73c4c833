"""Test figures and pictures of every model, and the page that compares them.

`evaluate_model` runs what stands in evaluators.py; `report.write_report` makes the page. Nothing here imports torch
until it is needed, so the page is made without it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densitywatch.errors import ModelError, ParamsError
from densitywatch.files import whole_folder, write_whole
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.training.bookkeeping import training_of

if TYPE_CHECKING:
    from densitywatch.data.dataset import DatasetInfo

FROM_BOOKKEEPING = ("train_seconds", "images_per_second", "mlflow_run_id")


def evaluate_model(name: str, params: Params, root: Path) -> dict[str, Any]:
    """Evaluate models/<name> on the test images; write metrics/<name>.json and reports/models/<name>/.

    Returns the metrics. The folder holds the pictures, `figures.json` (what they show) and `about.json` (kind,
    settings, training warnings, what was left out). reports/plots/<name>.csv is the loss curve as `dvc plots` reads it.

    Raises ParamsError for a name that params.yaml does not have, ModelError for a model that is missing, does not fit
    the prepared data, or gives a figure that is not a finite number.
    """
    if name not in params.models:
        raise ParamsError(f"models.{name}: no such model in params.yaml; it has {', '.join(params.models)}")
    import torch

    from densitywatch.data.dataset import read_info
    from densitywatch.devices import choose_device, compiled_for_batches, say_if_eager, should_compile
    from densitywatch.evaluation.evaluators import EVALUATORS
    from densitywatch.evaluation.measures.context import Context
    from densitywatch.evaluation.measures.training_curves import loss_csv
    from densitywatch.models.offers import takes_labels
    from densitywatch.models.storage import WEIGHTS, load_model_folder

    model: Any = load_model_folder(root / "models" / name)
    info = read_info(root / "data" / "prepared")
    _check_fit(name, model, info, params)
    device = choose_device(params.device)
    classifier = root / "models" / "classifier"
    if hasattr(model, "every_label") and takes_labels(model):
        say_if_eager(params.device)
        if should_compile(params.device):
            # every test image is scored under every label, which pays for the compiler's time
            model.every_label = compiled_for_batches(model.every_label, model.IMAGES_AT_ONCE)
    training = _read_training(root / "models" / name)
    took = training_of(root / "models" / name / WEIGHTS, name, root)
    metrics: dict[str, Any] = {"parameters": training["parameters"]} if "parameters" in training else {}
    metrics |= {key: took[key] for key in FROM_BOOKKEEPING if took.get(key) is not None}
    metrics["size"] = model.size
    figures: list[dict[str, Any]] = []
    notes: list[str] = []
    target = root / "reports" / "models" / name
    torch.manual_seed(params.seed)
    with whole_folder(target) as out, torch.no_grad():
        context = Context(
            name=name,
            model=model.to(device).eval(),
            data=root / "data" / "prepared",
            info=replace(info, size=model.size),
            params=params,
            out=out,
            classifier=classifier if (classifier / WEIGHTS).exists() else None,
            device=device,
            shared={"history": training["history"]},
        )
        for evaluator in EVALUATORS:
            started = time.monotonic()
            result = evaluator(context)
            if result is None:
                continue
            say(f"{name}: {evaluator.__name__} took {time.monotonic() - started:.1f} s")
            if twice := metrics.keys() & result.metrics.keys():
                raise ValueError(f"{evaluator.__name__}: {', '.join(sorted(twice))} stands in the metrics already")
            metrics |= result.metrics
            figures += [asdict(figure) for figure in result.figures]
            notes += result.notes
        metrics = {key: _presentable(name, key, value) for key, value in metrics.items()}
        about = {
            "kind": params.models[name].kind,
            "settings": model.settings.model_dump(mode="json"),
            "warnings": training["warnings"],
            "notes": notes,
        }
        write_json(out / "figures.json", figures)
        write_json(out / "about.json", about)
    write_whole(root / "reports" / "plots" / f"{name}.csv", loss_csv(training["history"]))
    write_json(root / "metrics" / f"{name}.json", metrics)
    if run_id := metrics.get("mlflow_run_id"):
        from densitywatch.tracking.runs import log_evaluation

        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        log_evaluation(run_id, numbers, target, params, root)
    return metrics


def write_json(path: Path, value: Any) -> None:
    """Write `value` with sorted keys; NaN and infinity are refused, for they are not JSON."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def _presentable(name: str, key: str, value: Any) -> Any:
    """A metric with six significant digits: finer than any standard error here, coarse enough to read."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ModelError(
            f"{name}: {key} is {value}, so nothing was written; train the model again (lower learning rate?)"
        )
    return float(f"{value:.6g}")


def _check_fit(name: str, model: Any, info: DatasetInfo, params: Params) -> None:
    from densitywatch.data.reading import reading_size

    size = reading_size(params.models[name].size, info.size)
    if (model.channels, model.size) != (info.channels, size):
        raise ModelError(
            f"models/{name}: made for images of {model.size} x {model.size} pixels and {model.channels} channels, but"
            f" data/prepared gives {size} x {size} and {info.channels}; train it with `dvc repro train@{name}`"
        )


def _read_training(folder: Path) -> dict[str, Any]:
    """training.json and history.json of a model's folder; a model that was downloaded alone has neither."""
    read: dict[str, Any] = {"warnings": [], "history": []}
    for file in ("training.json", "history.json"):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ModelError(f"{folder / file}: not JSON ({error}); train the model again") from None
        if file == "training.json":
            read |= content
        else:
            read["history"] = content["rows"]
    return read
