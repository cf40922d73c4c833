"""The page of the Python names that programs may count on, made from their signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docs.scripts.from_code import ROOT, attribute_docs, cell, first_sentence

PYTHON: dict[str, list[str]] = {
    "The detector": [
        "densitywatch.detector.detector.load",
        "densitywatch.detector.detector.Detector.score",
        "densitywatch.detector.detector.Detector.surprise_map",
        "densitywatch.detector.detector.Detector.explain",
        "densitywatch.detector.detector.Scores",
    ],
    "p-values and flags": [
        "densitywatch.detector.conformal.p_values",
        "densitywatch.detector.conformal.conditional_p_values",
        "densitywatch.detector.conformal.benjamini_hochberg",
        "densitywatch.detector.conformal.drift",
    ],
    "A batch": ["densitywatch.batches.score_batch.score_source"],
    "Params": ["densitywatch.params.load_params"],
}
"""By heading. What a model may offer is read from models/offers.py."""


def page() -> str:
    """The names that programs may count on, with their docstrings."""
    from densitywatch import errors

    parts = [
        "# Python\n",
        "Made from the docstrings. Images are uint8 `(B, C, H, W)` everywhere, log-likelihoods are natural logarithms"
        " `(B,)` nats. A model offers what it can do and nothing more: `isinstance(model, offers.Sampler)` asks.\n",
        '```python\nimport densitywatch\n\nmodel = densitywatch.load_model("models/pixelcnn")'
        "      # or models:/densitywatch-pixelcnn@champion\nimages = model.sample(16)"
        "                                # uint8 (16, 1, 28, 28)\nnats = model.log_prob(images)"
        "                            # (16,)\n```\n",
    ]
    parts += ["## A model\n", entry("densitywatch.load_model"), "## What a model may offer\n", offers()]
    for title, names in PYTHON.items():
        parts += [f"## {title}\n", *(entry(name) for name in names)]
    parts.append(
        "## Errors\n\nOne sentence each: what is wrong, where, and what to do.\n\n"
        "| error | when | exit code |\n|---|---|---|"
    )
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.DensitywatchError):
            parts.append(f"| `{name}` | {cell(first_sentence(error.__doc__))} | {error.exit_code} |")
    return "\n".join(parts) + "\n"


def entry(name: str) -> str:
    """One name: its signature, its file, its docstring."""
    found = resolve(name)
    title = ".".join(name.split(".")[-2:])
    return f"### `{title}`\n\n```python\n{signature(name, found)}\n```\n\nIn `{where(found)}`.\n\n{docstring(found)}\n"


def offers() -> str:
    """The protocols of models/offers.py as a table, with the kinds of model that have them."""
    from densitywatch.models import offers as module
    from densitywatch.models.storage import find_models

    rows = ["| method | what it is | kinds of model |", "|---|---|---|"]
    for offer in vars(module).values():
        if not inspect.isclass(offer) or offer.__module__ != module.__name__:
            continue
        for name, method in vars(offer).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            kinds = [kind for kind, model in find_models().items() if hasattr(model, name)]
            text = cell(first_sentence(inspect.getdoc(method) or inspect.getdoc(offer)))
            rows.append(f"| `{signature(name, method, wide=True)}` | {text} | {', '.join(kinds)} |")
    return f"In `{Path(module.__file__ or '').resolve().relative_to(ROOT)}`.\n\n" + "\n".join(rows) + "\n"


def resolve(name: str) -> Any:
    """The object of a dotted name. Raises AttributeError or ModuleNotFoundError where there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def where(found: Any) -> str:
    return str(Path(inspect.getsourcefile(inspect.unwrap(found)) or "").resolve().relative_to(ROOT))


def signature(name: str, found: Any, *, wide: bool = False) -> str:
    short = name.split(".")[-1]
    if inspect.isclass(found):
        return f"class {short}"
    text = str(inspect.signature(found)).replace("(self, ", "(").replace("(self)", "()")
    text = re.sub(r"'([^']*)'", r"\1", text)
    line = f"{short}{text}"
    if wide or len(line) <= 88:
        return line
    inner, _, end = text[1:].rpartition(")")
    commas = re.split(r", (?![^\[(]*[\])])", inner)
    return f"{short}(\n" + "".join(f"    {part},\n" for part in commas) + f"){end}"


def docstring(found: Any) -> str:
    text = inspect.cleandoc(inspect.getdoc(found) or "")
    if inspect.isclass(found):
        docs = attribute_docs(found)
        rows = [f"* `{name}`: {docs.get(name, '')}".rstrip(": ") for name in found.__annotations__]
        text += "\n\n" + "\n".join(rows)
    return text
