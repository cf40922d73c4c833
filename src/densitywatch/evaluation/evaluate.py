"""`densitywatch evaluate`: the test figures and pictures of one model.

`evaluate_model` runs every evaluator of evaluators.py. `report/report.py` makes the page that compares the models.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densitywatch.data.dataset import DatasetInfo, read_info
from densitywatch.data.reading import reading_size
from densitywatch.devices import choose_device, compiled_for_batches, say_if_eager, should_compile
from densitywatch.errors import ModelError, ParamsError
from densitywatch.evaluation.evaluators import EVALUATORS
from densitywatch.evaluation.measures.context import Context, Figure
from densitywatch.evaluation.measures.training_curves import loss_csv
from densitywatch.files import whole_folder, write_whole
from densitywatch.models.offers import EveryLabel, Model, takes_labels
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.tracking.runs import log_evaluation
from densitywatch.training.bookkeeping import training_of

FROM_BOOKKEEPING = ("train_seconds", "images_per_second", "mlflow_run_id")


@dataclass
class Measured:
    """What the evaluators found so far."""

    metrics: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate_model(name: str, params: Params, root: Path) -> dict[str, Any]:
    """Evaluate models/<name> on the test images; write metrics/<name>.json and reports/models/<name>/.

    Returns the metrics. The folder holds the pictures, `figures.json` (what they show) and `about.json` (kind,
    settings, training warnings, what was left out). reports/plots/<name>.csv is the loss curve for `dvc plots`.

    Raises ParamsError for a name that params.yaml does not have, ModelError for a model that is missing, does not fit
    the prepared data, or gives a figure that is not a finite number.
    """
    if name not in params.models:
        raise ParamsError(f"models.{name}: no such model in params.yaml; it has {', '.join(params.models)}")
    model: Any = load_model_folder(root / "models" / name)
    info = read_info(root / "data" / "prepared")
    _check_fit(name, model, info, params)
    device = choose_device(params.device)
    _compile_if_it_pays(model, params)
    training = _read_training(root / "models" / name)
    metrics = {**_known_before(name, training, root), "size": model.size}
    classifier = root / "models" / "classifier"
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
        measured = _measure(context, metrics)
        metrics = {key: _presentable(name, key, value) for key, value in measured.metrics.items()}
        about = {
            "kind": params.models[name].kind,
            "settings": model.settings.model_dump(mode="json"),
            "warnings": training["warnings"],
            "notes": measured.notes,
        }
        write_json(out / "figures.json", [asdict(figure) for figure in measured.figures])
        write_json(out / "about.json", about)
    write_whole(root / "reports" / "plots" / f"{name}.csv", loss_csv(training["history"]))
    write_json(root / "metrics" / f"{name}.json", metrics)
    if run_id := metrics.get("mlflow_run_id"):
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        log_evaluation(run_id, numbers, target, params, root)
    return metrics


def _measure(context: Context, metrics: dict[str, Any]) -> Measured:
    """The results of every evaluator, added to `metrics`. Raises ValueError when two evaluators give the same key."""
    measured = Measured(dict(metrics))
    for evaluator in EVALUATORS:
        started = time.monotonic()
        result = evaluator(context)
        if result is None:
            continue
        say(f"{context.name}: {evaluator.__name__} took {time.monotonic() - started:.1f} s")
        if twice := measured.metrics.keys() & result.metrics.keys():
            raise ValueError(f"{evaluator.__name__}: another evaluator already gave {', '.join(sorted(twice))}")
        measured.metrics |= result.metrics
        measured.figures += result.figures
        measured.notes += result.notes
    return measured


def _compile_if_it_pays(model: nn.Module, params: Params) -> None:
    """Compile the scoring under every label: it runs on every test image, so the time to compile is won back."""
    if isinstance(model, EveryLabel) and takes_labels(model):
        say_if_eager(params.device)
        if should_compile(params.device):
            model.every_label = compiled_for_batches(model.every_label, model.IMAGES_AT_ONCE)  # type: ignore[method-assign]


def _known_before(name: str, training: dict[str, Any], root: Path) -> dict[str, Any]:
    """The metrics that training wrote: `parameters`, how long it took, its run."""
    took = training_of(root / "models" / name / WEIGHTS, name, root)
    metrics = {"parameters": training["parameters"]} if "parameters" in training else {}
    return metrics | {key: took[key] for key in FROM_BOOKKEEPING if took.get(key) is not None}


def write_json(path: Path, value: Any) -> None:
    """Write `value` with sorted keys. NaN and infinity raise ValueError: JSON does not have them."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def _presentable(name: str, key: str, value: Any) -> Any:
    """A float with six significant digits, finer than any standard error here; other values as they are.

    Raises ModelError when it is not a finite number.
    """
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ModelError(
            f"{name}: {key} is {value}, so nothing was written; train the model again (lower learning rate?)"
        )
    return float(f"{value:.6g}")


def _check_fit(name: str, model: Model, info: DatasetInfo, params: Params) -> None:
    """Raises ModelError when the model was made for images of another size or number of channels."""
    size = reading_size(params.models[name].size, info.size)
    if (model.channels, model.size) != (info.channels, size):
        raise ModelError(
            f"models/{name}: made for images of {model.size} x {model.size} pixels and {model.channels} channels, but"
            f" data/prepared gives {size} x {size} and {info.channels}; train it with `dvc repro train@{name}`"
        )


def _read_training(folder: Path) -> dict[str, Any]:
    """The content of training.json, and the rows of history.json as `history`; a downloaded model has neither file."""
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
