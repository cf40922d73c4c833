"""The page of params.yaml, made from the pydantic models, the models' settings and the comments in params.yaml.

What none of them says of a key is in KEYS; a key of which nothing is said is an error.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from docs.scripts.from_code import ROOT, as_yaml, attribute_docs, cell, kinds

KEYS = {
    "seed": "The seed of every random choice: of the splits, of training, of samples.",
    "data.source": "What to fetch; `folder` is your own images.",
    "data.resize": "How an image becomes a square: its middle, all of it on black, or all of it distorted.",
    "expectations.min_images": "Fewer images stop the run.",
    "expectations.max_duplicate_share": "A larger share of images with the same pixels stops the run.",
    "expectations.max_flat_share": "A larger share of images of one colour stops the run.",
    "device.accelerator": "Where to compute; `auto` takes a GPU where there is one.",
    "device.precision": "Numbers in 32 bits, or matrix products in bfloat16.",
    "device.channels_last": "Memory layout of convolutions: colours of a pixel next to each other.",
    "classifier.settings.dropout": "In training, before the last layer.",
    "training.steps": "Optimiser steps.",
    "training.batch_size": "Images a step, over all processes together.",
    "training.learning_rate": "The highest one: it rises during warm-up and falls along a cosine.",
    "training.betas": "Adam's two decay rates, each at least 0 and below 1.",
    "training.weight_decay": "Share by which weights shrink at a learning rate of 1 (AdamW).",
    "training.warmup_steps": "Steps in which the learning rate rises from 0.",
    "training.gradient_clip": "Longest gradient; a longer one is scaled down to it. `null` for no limit.",
    "training.ema_decay": "Decay of the exponential average of the weights, which is what is saved.",
    "training.evaluate_every": "Steps between two looks at the validation images.",
    "training.checkpoint_every": "Steps between two resume points.",
    "evaluate.batch_size": "Images at once, at most; fewer of large ones.",
    "evaluate.importance_samples": "Samples of the importance-weighted bound.",
    "evaluate.importance_images": "Test images that this bound is taken on; `null` takes all.",
    "evaluate.latent.draws": "Pairs and sums of latents that are looked at.",
    "detector.false_discovery_rate": "Share of false alarms among flagged images; `inbox.control` says of which.",
    "detector.false_alarm_rate": "Share of normal images that may be flagged one by one (a report's threshold line).",
    "detector.batch_size": "Images of a chunk: scored and written at once. Fewer where they take over 256 MiB.",
    "inbox.address": "The folder or address in which each folder, archive or Parquet file is a batch.",
    "inbox.results": "Where each batch's results go.",
    "inbox.cron": "When the inbox is looked at.",
    "mlflow.experiment": "The experiment of training runs; scored batches are in NAME-batches.",
    "models.NAME.kind": "The file of `src/densitywatch/models/` that it is.",
    "models.NAME.settings": "Its settings, by kind below; what is not named has its default.",
    "settings.latent": "Numbers in a latent vector.",
    "settings.loss": "The generator's loss.",
    "settings.discriminator": "Widths of the discriminator's hidden layers.",
    "settings.channels": "Feature maps of a layer.",
    "settings.head": "How a pixel's distribution is written: 256 probabilities, or a mixture of logistics.",
    "settings.components": "Components of that mixture.",
    "settings.colour_order": "Order in which the colours of a pixel follow each other.",
    "settings.recurrence": "Which of the paper's two recurrences.",
    "settings.layers": "Recurrent layers.",
}
"""What the code does not say of a key."""


def page() -> str:
    """Every key of params.yaml: its value in the default profile, what it may be, what it means."""
    from densitywatch.models.storage import find_models
    from densitywatch.params import Params

    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    notes, values = comments(text), yaml.safe_load(text)
    parts = [
        "# params.yaml\n",
        "Made from `src/densitywatch/params.py`, `src/densitywatch/params_models.py`, the models' settings and the"
        " comments in `params.yaml`. An unknown key, a wrong type or a value out of range is an error that names the"
        " key. *Value* is that of the default profile.\n",
    ]
    for name, field in Params.model_fields.items():
        if name == "models":
            continue
        inner = block_of(field.annotation)
        parts.append(f"## {name}\n")
        if inner is None:
            parts.append(f"`{name}: {values[name]}`. {KEYS[name]}\n")
            continue
        parts += block(inner, (name,), values.get(name, {}), notes)
    model_block = block_of(Params.model_fields["models"].annotation)
    assert model_block is not None
    parts.append("## models\n")
    parts.append(
        "One block a model, under a name of your choice. Models start in the order in which they are named here."
        f" {inspect.cleandoc(model_block.__doc__ or '')}\n"
    )
    parts += block(model_block, ("models", "NAME"), {}, notes)
    for kind, model in find_models().items():
        settings = getattr(inspect.getmodule(model), "Settings")  # noqa: B009 - a module's attribute
        parts.append(f"### Settings of kind {kind}\n")
        parts.append(table_of(settings, ("models", kind, "settings"), {}, notes))
    return "\n".join(parts) + "\n"


def block(
    model: type[BaseModel], key: tuple[str, ...], values: Mapping[str, Any], notes: Mapping[Any, str]
) -> list[str]:
    """A block's own keys as a table, then each block inside it."""
    parts = []
    if len(key) == 1 and model.__doc__ and model.__doc__ != BaseModel.__doc__:
        parts.append(inspect.cleandoc(model.__doc__) + "\n")
    parts.append(table_of(model, key, values, notes))
    for name, field in model.model_fields.items():
        inner = block_of(field.annotation)
        if inner is not None:
            parts.append(f"### {'.'.join((*key, name))}\n")
            doc = inner.__doc__ if "__doc__" in vars(inner) else ""
            if doc and doc != BaseModel.__doc__:
                parts.append(inspect.cleandoc(doc) + "\n")
            parts += block(inner, (*key, name), (values or {}).get(name) or {}, notes)
    return parts


def table_of(model: type[BaseModel], key: tuple[str, ...], values: Mapping[str, Any], notes: Mapping[Any, str]) -> str:
    docs = attribute_docs(model)
    with_value = key[0] != "models"
    head = (
        "| key | value | may be | what it is |\n|---|---|---|---|"
        if with_value
        else "| key | default | may be | what it is |\n|---|---|---|---|"
    )
    rows = [head]
    for name, field in model.model_fields.items():
        if block_of(field.annotation) is not None:
            continue
        value = values.get(name, None if field.is_required() else field.get_default(call_default_factory=True))
        shown = "" if field.is_required() and name not in values else f"`{as_yaml(value)}`"
        said = meaning((*key, name), docs, notes)
        rows.append(f"| `{name}` | {shown} | {may_be(field)} | {cell(said)} |")
    return "\n".join(rows) + "\n"


def meaning(key: tuple[str, ...], docs: Mapping[str, str], notes: Mapping[Any, str]) -> str:
    """What a key means: its text in the code, in KEYS, or its comment in params.yaml. Raises KeyError for none."""
    text = docs.get(key[-1]) or KEYS.get(".".join(key)) or KEYS.get(".".join(key[-2:])) or notes.get(key)
    if not text:
        raise KeyError(f"docs/scripts/params_page.py: KEYS lacks {'.'.join(key)}, and params.py says nothing of it")
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The block that an annotation holds: itself, or the values of a dict of blocks."""
    for part in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(part) and issubclass(part, BaseModel):
            return part
    return None


def may_be(field: Any) -> str:
    """Type and limits of a field, as people read them."""
    limits = []
    for limit in field.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if getattr(limit, attribute, None) is not None:
                bound = getattr(limit, attribute)
                limits.append(f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound}")
    return cell(", ".join([kinds(field.annotation), *limits]))


def comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment on each key's line of a YAML file, with the comment lines that go on below it."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    last: tuple[str, ...] | None = None
    for line in text.splitlines():
        entry = re.match(r"( *)([a-z_0-9]+):", line)
        goes_on = re.match(r" {8,}# (.*)", line)
        if goes_on and last:
            found[last] += " " + goes_on[1]
            continue
        last = None
        if entry:
            depth = len(entry[1])
            path = [*((d, k) for d, k in path if d < depth), (depth, entry[2])]
            comment = re.search(r"\s# (.*)$", line)
            if comment:
                last = tuple(key for _, key in path)
                found[last] = comment[1]
    return found
