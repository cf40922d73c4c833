"""Figures of metrics/ as tables for the pages of models and detector: read when the site is built, never copied."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from densitywatch.evaluation.report.comparison import ROWS, compare
from densitywatch.outlier_benchmark.kinds import in_words
from densitywatch.pages.words import DASH
from docs.scripts.from_code import ROOT, cell


def read(name: str) -> dict[str, Any]:
    """metrics/NAME.json."""
    found: dict[str, Any] = json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def models() -> list[str]:
    """The models of the default profile, in the order of params.yaml."""
    return list(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["models"])


def of_model(name: str) -> str:
    """The figures of one model, a row each."""
    rows = [
        f"| {row.title} | {cells[name].text}{small(cells[name].note)} |" for row, cells in compare({name: read(name)})
    ]
    return "| figure | default profile |\n|---|---|\n" + "\n".join(rows)


def of_all() -> str:
    """One table: a row a model, the main figures."""
    wanted = ("bits/dim", "FID (our features)", "Precision", "Recall", "Linear probe", "Parameters", "Training time")
    rows = [row for row in ROWS if row.title in wanted]
    table = dict((row.title, cells) for row, cells in compare({name: read(name) for name in models()}))
    lines = ["| model | " + " | ".join(row.title for row in rows) + " |", "|---|" + "---|" * len(rows)]
    for name in sorted(models(), key=rank):
        cells = [table[row.title][name] for row in rows]
        shown = [f"**{c.text}**" if c.best else c.text for c in cells]
        lines.append(f"| [{name}]({name}.md) | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def rank(name: str) -> tuple[float, float]:
    """Where a model goes in the table: densities first, by their bits/dim, then the others by their FID."""
    found = read(name)
    return found.get("bits_per_dim", found.get("iwae_bits_per_dim", math.inf)), found.get("fid", math.inf)


def real_images() -> str:
    """What training images have as samples: the ceiling of every model's FID, precision and recall."""
    found = next((m for m in map(read, models()) if "precision_of_real" in m), None)
    if found is None:
        return ""
    return (
        f"As many training images, measured in the same way, have an FID of {found['fid_floor']:.2f}, a precision of"
        f" {found['precision_of_real']:.3f} and a recall of {found['recall_of_real']:.3f}: what a perfect sampler gets,"
        " up to chance."
    )


def of_detector() -> str:
    """What the deployed rule finds of each kind of outlier, the worst first, next to AUROC."""
    found = read("outliers")
    columns = ("power_at_5", "power_at_1", "false_alarms_at_5")
    lines = [
        "| outliers | found, 5 % of a batch are outliers | found, 1 % | false alarms among the flagged, 5 % | AUROC |"
        " AUROC, all transformations declared |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for kind, auroc in found["auroc"].items():
        if kind != "min":
            # a benchmark that ran before these figures existed has none
            shares = [found.get(column, {}).get(kind) for column in columns]
            rows.append((shares, auroc, found["auroc_declared"][kind], in_words(kind)))
    rows.sort(key=lambda row: (*(0.0 if share is None else share for share in row[0][:2]), row[1]))
    for shares, auroc, declared, words in rows:
        shown = [DASH if share is None else f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| {words} | {' | '.join(shown)} | {auroc:.3f} | {declared:.3f} |")
    if "held_out_auroc_detector" in found:
        lines.append(f"| a class never seen, mean of ten folds | | | | {found['held_out_auroc_detector']:.3f} | |")
    return "\n".join(lines)


def controls() -> str:
    """AUROC of the detector, with its networks untrained and without any, the lowest and the mean; and the gains."""
    found = read("outliers")
    lines = ["| detector | mean AUROC | lowest AUROC | the detector's gain in mean AUROC, 95 % |", "|---|---|---|---|"]
    for name, words in (("", "as it is"), ("untrained", "networks untrained"), ("no_network", "no network")):
        row = found.get(f"auroc_{name}" if name else "auroc")
        if row is None:  # the benchmark ran before there were controls, or no member reads a network
            continue
        values = [value for kind, value in row.items() if kind != "min"]
        ends = [found.get(f"auroc_gain_over_{name}{end}") for end in ("", "_low", "_high")]
        gain = "" if None in ends else f"{ends[0]:+.4f} ({ends[1]:+.4f} to {ends[2]:+.4f})"
        lines.append(f"| {words} | {sum(values) / len(values):.4f} | {row['min']:.3f} | {gain} |")
    return "\n".join(lines)


def false_discoveries() -> str:
    """The realised false-discovery rate, and the power, by the share of outliers in a batch."""
    found = read("outliers")
    lines = [
        "| outliers in the batch | highest share of false alarms | lowest and highest share found |",
        "|---|---|---|",
    ]
    for percent in (1, 5, 10):
        rates = found[f"false_discovery_rate_at_{percent}_percent_outliers"].values()
        power = found[f"power_at_{percent}_percent_outliers"].values()
        lines.append(f"| {percent} % | {max(rates):.3f} | {min(power):.2f} to {max(power):.2f} |")
    return "\n".join(lines)


def small(note: str) -> str:
    return f"<br><small>{cell(note.replace(chr(10), ', '))}</small>" if note else ""
