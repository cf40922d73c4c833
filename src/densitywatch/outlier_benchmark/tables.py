"""The tables and the chart of reports/outliers, and figures.json, which tells the report page what they show."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch.arrays import Floats, Pixels
from densitywatch.detector.power import BATCH as POWER_BATCH
from densitywatch.detector.power import BATCHES as POWER_BATCHES
from densitywatch.detector.power import STREAM
from densitywatch.detector.realised_alarms import INSIDE, Realised
from densitywatch.outlier_benchmark.auroc import MEASURES
from densitywatch.outlier_benchmark.deployed_power import SHARES, Found
from densitywatch.outlier_benchmark.kinds import in_words
from densitywatch.outlier_benchmark.realised_fdr import BATCH, BATCHES, CLEAN, FEW, STREAM_BATCH, STREAMS
from densitywatch.pages import charts, pictures
from densitywatch.params import Params

DETECTOR, DECLARED = "detector", "detector, transformations declared"
"""Names of the detector's own rows among the scores."""
RESAMPLES = 100
"""Bootstrap resamples for the intervals."""


SHOWN = 8
"""Example pictures of each kind on the report page."""


@dataclass(frozen=True)
class Findings:
    """What the benchmark measured."""

    power: Mapping[str, Found]
    """Kind of outlier -> what the deployed rule finds, the worst first."""
    calibration_images: int
    """Number of scores that p-values are ranks among."""
    separations: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    """Score -> kind of outlier -> measure -> [value, low, high]."""
    ablation: Mapping[str, Mapping[str, float]]
    """Member of the detector -> kind of outlier -> AUROC of the detector without the member."""
    gains: Mapping[str, list[float]]
    """Control -> [value, low, high] of the detector's mean AUROC minus the control's."""
    normal_p: Floats | None
    """p-values of normal test images. None where the calibration images are of another stream (renewed.py): then
    `power`, `alarms`, `rates`, `streams` and `no_class` are empty as well."""
    rates: Mapping[str, Mapping[float, Mapping[str, float]]]
    """Kind of outlier -> share of outliers in a batch -> rate -> value."""
    streams: Mapping[str, Mapping[str, float]]
    """Kind of outlier -> what is realised where outliers are rare (realised_fdr.rates_in_streams)."""
    folds: Mapping[str, Mapping[str, float]]
    """Class held out -> score -> AUROC."""
    not_folded: list[str]
    """Members of the detector that these figures are without, each with the reason."""
    no_class: Mapping[str, float]
    """Kind of image -> share that belongs to no class; empty where this is not measured."""
    left_out: list[str]
    """Scores that were not measured, each with the reason."""
    alarms: list[Realised]
    """What the promised rates came to on normal test images."""
    panel_images: int
    """Images of each kind, at most: what detector.panel_images asks for, or as many as fit into memory."""
    asked_images: int
    grouped: bool
    """Whether the images have groups: then one image of each counts."""


@dataclass(frozen=True)
class Table:
    """A CSV file and what the report page says about it."""

    file: str
    header: list[str]
    rows: list[list[Any]]
    title: str
    caption: str


def write_tables(folder: Path, findings: Findings, params: Params, examples: Mapping[str, Pixels]) -> None:
    """Write every table, example pictures, the chart and figures.json into `folder`.

    `examples`: kind of image -> images (N, C, H, W), of which the first SHOWN are shown; normal ones come first.
    """
    figures: list[dict[str, Any]] = []
    for table in all_tables(findings, params):
        with (folder / table.file).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
        figures.append({"file": table.file, "title": table.title, "caption": table.caption})
    figures.insert(1, write_examples(folder, examples))
    write_every_score(folder / "every_score.csv", findings)
    if findings.normal_p is not None:
        (folder / "calibration.svg").write_text(calibration_chart(findings.normal_p), encoding="utf-8")
        figures.append(
            {
                "file": "calibration.svg",
                "title": "Are the p-values honest?",
                "caption": "A share a of normal images, no more, should have a p-value up to a. That holds on average "
                "over calibration sets, if future normal images are like the calibration images.",
            }
        )
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def all_tables(findings: Findings, params: Params) -> Iterable[Table]:
    """The tables in the order of the report page; those without rows are left out."""
    if findings.power:
        yield power_table(findings, params)
    yield auroc_table(findings, params.detector.slow_images)
    yield interval_table(findings)
    if findings.ablation:
        yield ablation_table(findings)
    if findings.alarms:
        yield alarm_table(findings)
    if findings.rates:
        yield false_discovery_table(findings, params.detector.false_discovery_rate)
        yield stream_table(findings, params.detector.false_discovery_rate)
    if findings.folds:
        yield held_out_table(findings)
    if findings.no_class:
        yield no_class_table(findings, params.detector.false_alarm_rate)


def power_table(findings: Findings, params: Params) -> Table:
    """The first table of the page: kinds of outliers, what is found least first."""
    aurocs = {kind: found["auroc"][0] for kind, found in findings.separations[DETECTOR].items()}
    rows = []
    for kind, found in findings.power.items():
        shares = [*found.by_share.values()]
        interval = f"{shares[0].found:.2f} ({found.low:.2f}–{found.high:.2f})"
        rest = [f"{figure:.2f}" for figure in (shares[1].found, *(one.false_alarms for one in shares))]
        rows.append([in_words(kind), interval, *rest, f"{aurocs[kind]:.3f}"])
    percents = [f"{100 * share:.0f} %" for share in SHARES]
    rule = {
        "stream": f"as streams of {STREAM}, each with one budget of false alarms (inbox.control: stream)",
        "batch": "one by one by Benjamini-Hochberg (inbox.control: batch)",
    }[params.inbox.control]
    return Table(
        "power.csv",
        [
            "outliers",
            *(f"found, {percent} outliers" for percent in percents),
            *(f"false alarms, {percent} outliers" for percent in percents),
            "AUROC",
        ],
        rows,
        "What the deployed rule finds",
        f"The worst kind first. {POWER_BATCHES} batches of {POWER_BATCH} images are flagged {rule}, at "
        f"{params.detector.false_discovery_rate:g}, with the calibration set as it is. Found: the share of the "
        "outliers that is flagged, where that share of a batch are outliers; in parentheses 95 % of resamples of the "
        "images. False alarms: the share of normal images among all that is flagged. AUROC needs no threshold, so it "
        f"is no promise of what is flagged.{nothing_found(findings.power, findings.calibration_images)}"
        + (
            f" Measured on {findings.panel_images:,} images of each kind in place of {findings.asked_images:,}: more"
            " pictures of this size fill the memory."
            if findings.panel_images < findings.asked_images
            else ""
        ),
    )


def nothing_found(power: Mapping[str, Found], calibration_images: int) -> str:
    """Why the rule flags no outlier, or so few that the table shows 0.00; else nothing."""
    if any(one.found >= 0.005 for found in power.values() for one in found.by_share.values()):
        return ""
    return (
        f" Next to nothing is found. With {calibration_images:,} calibration images no p-value is below "
        f"{1 / (calibration_images + 1):.2g}. Where that is too high for batches of {POWER_BATCH}, score smaller ones, "
        "or raise data.calibration."
    )


def write_examples(folder: Path, examples: Mapping[str, Pixels]) -> dict[str, Any]:
    """kinds.png: a row of pictures a kind; returns its entry of figures.json. A row that is short is filled up grey."""
    rows = []
    for images in examples.values():
        blank = np.full((SHOWN - len(images[:SHOWN]), *images.shape[1:]), 128, np.uint8)
        rows.append(np.concatenate([images[:SHOWN], blank]))
    (folder / "kinds.png").write_bytes(pictures.grid(np.concatenate(rows), SHOWN))
    names = ["as they are", *(in_words(kind) for kind in list(examples)[1:])]
    return {
        "file": "kinds.png",
        "title": "What the outliers look like",
        "caption": "Look whether they are what you want found. The first row is normal test images.",
        "alt": f"Rows of example pictures: {', '.join(names)}",
        "rows": names,
    }


def auroc_table(findings: Findings, slow_images: int) -> Table:
    kinds = list(findings.separations[DETECTOR])
    not_measured = f" Left out: {'; '.join(findings.left_out)}" if findings.left_out else ""
    aurocs = {name: [found[kind]["auroc"][0] for kind in kinds] for name, found in findings.separations.items()}
    return Table(
        "auroc.csv",
        ["score", *kinds, "min"],
        [[name, *(f"{value:.3f}" for value in values), f"{min(values):.3f}"] for name, values in aurocs.items()],
        "Every score on every kind of outlier: AUROC",
        "0.5 is guessing, 1 is perfect. The detector's row comes first; the row with declared transformations is told "
        "which transformations count as outliers. "
        f"{in_words_of_gains(findings.gains)}"
        f"Slow scores are measured on {slow_images} images.{not_measured}",
    )


def in_words_of_gains(gains: Mapping[str, list[float]]) -> str:
    """What the trained networks are worth, a sentence for each control."""
    return "".join(
        f"Mean AUROC is {value:+.4f} ({low:+.4f} to {high:+.4f}) next to '{name}'. "
        for name, (value, low, high) in gains.items()
    )


def interval_table(findings: Findings) -> Table:
    rows = [
        [f"{kind}{suffix}", *(f"{value:.3f}" for measure in MEASURES for value in found[measure])]
        for name, suffix in ((DETECTOR, ""), (DECLARED, " (declared)"))
        for kind, found in findings.separations.get(name, {}).items()
    ]
    return Table(
        "detector.csv",
        ["outliers", *(f"{measure} {end}" for measure in MEASURES for end in ("", "low", "high"))],
        rows,
        "The detector, with intervals",
        f"Low and high bound 95 % of {RESAMPLES} bootstrap resamples of test images and outliers.",
    )


def ablation_table(findings: Findings) -> Table:
    whole = {kind: found["auroc"][0] for kind, found in findings.separations[DETECTOR].items()}
    rows = {"nothing": whole, **findings.ablation}
    return Table(
        "ablation.csv",
        ["left out", *whole, "min"],
        [
            [name, *(f"{value:.3f}" for value in found.values()), f"{min(found.values()):.3f}"]
            for name, found in rows.items()
        ],
        "The detector without one of its members: AUROC",
        "For information: members are chosen on synthetic outliers (docs/lab/detector.md), never by this table.",
    )


def alarm_table(findings: Findings) -> Table:
    alarms = findings.alarms
    unit = "groups" if findings.grouped else "images"
    return Table(
        "false_alarms.csv",
        ["promised", f"share of new {unit}", "low", "high", "holds", "all images"],
        [
            [
                f"{alarm.promised:g}",
                *(f"{value:.3f}" for value in (alarm.share, alarm.low, alarm.high)),
                "yes" if alarm.holds else "no",
                f"{alarm.every_image:.3f}",
            ]
            for alarm in alarms
        ],
        f"Do the promised rates hold on {unit} that were never seen?",
        f"The share of {alarms[0].groups:,} normal test {unit} with a p-value up to the promised rate"
        + (", by one image of each" if findings.grouped else "")
        + f". Low and high bound {INSIDE:.0%} of such shares when the promise holds for this number of {unit} and of"
        " calibration scores. The last column has all test images"
        + (", every group counted the same." if findings.grouped else ".")
        + " With data.calibration_time: later the test images are the latest ones.",
    )


def false_discovery_table(findings: Findings, target: float) -> Table:
    rows = [
        [kind, share, *(f"{value:.3f}" for value in rates.values())]
        for kind, by_share in findings.rates.items()
        for share, rates in by_share.items()
    ]
    names = next(iter(next(iter(findings.rates.values())).values()))
    return Table(
        "false_discoveries.csv",
        ["outliers", "share of outliers", *names],
        rows,
        f"Is the false-discovery rate of {target:g} kept?",
        f"Mean over {BATCHES} batches of at most {BATCH} images drawn from normal images and outliers, with a "
        "calibration set drawn anew each time. The rate is the share of normal images among those called outliers; "
        "power is the share of outliers found. The conditional variant holds for 90 % of single calibration sets, and "
        "finds less.",
    )


def stream_table(findings: Findings, target: float) -> Table:
    return Table(
        "streams.csv",
        ["outliers", *next(iter(findings.streams.values()))],
        [[kind, *(f"{value:.3f}" for value in rates.values())] for kind, rates in findings.streams.items()],
        f"Where outliers are rare: the share of false alarms among all flags together, target {target:g}",
        f"{STREAMS} streams of batches of at most {STREAM_BATCH} images; {CLEAN:.0%} of the batches hold normal images "
        f"alone, the others 1 to {FEW} outliers. The batch rule keeps its rate on average over batches, and not here. "
        "The stream's rule judges all batches with one budget; its share is of max(1, flags).",
    )


def held_out_table(findings: Findings) -> Table:
    return Table(
        "held_out.csv",
        ["class held out", *next(iter(findings.folds.values()))],
        [[name, *(f"{value:.3f}" for value in fold.values())] for name, fold in findings.folds.items()],
        "A class never seen: AUROC",
        "For each class everything is fitted anew on a small budget without it; its test images are the outliers."
        + (f" Without members of the detector: {'; '.join(findings.not_folded)}." if findings.not_folded else ""),
    )


def no_class_table(findings: Findings, false_alarm_rate: float) -> Table:
    return Table(
        "no_class.csv",
        ["images", "share said to belong to no class"],
        [[kind, f"{share:.3f}"] for kind, share in findings.no_class.items()],
        "Labels with rejection: who belongs to no class?",
        "The class-conditional density gives each image a label. The detector's score is ranked among normal images "
        f"with that label, at a false-alarm rate of {false_alarm_rate:g}: about that share of normal images.",
    )


def write_every_score(file: Path, findings: Findings) -> None:
    """A row for each score and kind of outlier, unrounded, for `dvc plots`."""
    rows = [
        {"score": name, "outliers": kind, **{measure: found[measure][0] for measure in MEASURES}}
        for name, by_kind in findings.separations.items()
        for kind, found in by_kind.items()
    ]
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def calibration_chart(normal_p: Floats) -> str:
    """SVG: the share of normal test images at or below each p-value, next to the diagonal that is promised."""
    levels = np.linspace(0.0, 1.0, 41)
    rows = [
        {"p": round(float(level), 4), "share": round(float(share), 5), "images": name}
        for name, shares in (("test images", [(normal_p <= level).mean() for level in levels]), ("as promised", levels))
        for level, share in zip(levels, shares, strict=True)
    ]
    return charts.lines(
        rows, x="p", y="share", x_title="p-value", y_title="share of images at or below", series="images"
    )
