"""The stage `benchmark`: every score on every member of the panel, and whether the false-discovery rate is kept.

Writes metrics/outliers.json (git keeps it) and reports/outliers. Nothing is fitted or chosen by these.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.reading import images_within
from densitywatch.detector import conformal, detector
from densitywatch.detector.feature_cache import Readings
from densitywatch.detector.member_table import all_members, find_member
from densitywatch.detector.scores.networks import TRANSFORMATIONS
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.errors import ModelError
from densitywatch.files import whole_folder, write_whole
from densitywatch.outlier_benchmark import held_out_classes as held_out
from densitywatch.outlier_benchmark import no_class as rejection
from densitywatch.outlier_benchmark.auroc import FIGURES, auroc, separation
from densitywatch.outlier_benchmark.panel import foreign_digits, panel_sets
from densitywatch.outlier_benchmark.realised_fdr import BATCH, BATCHES, OUTLIER_SHARES, realised_rates
from densitywatch.pages import charts
from densitywatch.params import Params
from densitywatch.progress import track

Floats = NDArray[np.float64]
Table = dict[str, dict[str, list[float]]]
"""Panel member -> figure -> [value, low, high]."""

RESAMPLES = 100
KINDS = 8
"""Of images: the normal ones and the members of the panel."""
DETECTOR, DECLARED = "detector", "detector, transformations declared"


def benchmark(params: Params, root: Path) -> dict[str, Any]:
    """Measure the detector in models/detector and every other score; returns what metrics/outliers.json holds."""
    data = root / "data" / "prepared"
    info = read_info(data)
    detector.drop_unread(root / detector.READ / "rivals", params.detector.rivals_read)
    fitted = detector.load(root / "models" / "detector")
    test = open_split(data, "test").images
    # every kind of image is held at the data's size
    n = images_within(min(params.detector.panel_images, len(test)), KINDS * info.channels * info.size**2)
    # transformed images are others than the normal ones where there are enough
    start = n if len(test) >= 2 * n else 0
    normal = Readings(np.array(test[:n]), fitted.models, size=fitted.reading)
    sets = panel_sets(np.array(test[start : start + n]), foreign_digits(root, info, n), params.seed)
    readings = {name: Readings(images, fitted.models, size=fitted.reading) for name, images in sets.items()}

    scores, left_out = every_score(params, root, fitted, normal, readings)
    tables = {
        name: {
            member: separation(values["normal"], values[member], resamples=RESAMPLES, seed=params.seed)
            for member in track(list(sets), name)
        }
        for name, values in scores.items()
    }
    without = one_left_out(fitted, scores, list(sets))
    normal_p = conformal.p_values(fitted.calibration, scores[DETECTOR]["normal"])
    rates = {
        member: realised_rates(
            np.concatenate([fitted.calibration, scores[DETECTOR]["normal"]]),
            scores[DETECTOR][member],
            calibration_size=len(fitted.calibration),
            target=params.detector.false_discovery_rate,
            seed=params.seed,
        )
        for member in track(list(sets), "false-discovery rate")
    }
    folds = held_out.held_out_classes(params, root) if info.class_names else {}
    metrics = summary(tables, rates, folds, normal_p, params)
    no_class = rejection.no_class_rates(params, root, {"normal": np.asarray(normal.source), **sets})
    if no_class:
        metrics["no_class_rate"] = {kind: round(no_class[kind], 4) for kind in sets}
        metrics["no_class_rate_on_test_images"] = round(no_class["normal"], 4)
    write_whole(root / "metrics" / "outliers.json", json.dumps(metrics, indent=2) + "\n")
    with whole_folder(root / "reports" / "outliers") as folder:
        write_report(folder, tables, without, rates, folds, no_class, scores, normal_p, left_out, params)
    return metrics


def every_score(
    params: Params,
    root: Path,
    fitted: detector.Detector,
    normal: Readings,
    panel: Mapping[str, Readings],
) -> tuple[dict[str, dict[str, Floats]], list[str]]:
    """Score -> "normal" or panel member -> values; and the scores that were left out, with the reason."""
    declared = fitted.facts["declared"] or list(TRANSFORMATIONS)
    given, _ = detector.what_is_given(params, root)
    few = len(normal)  # enough to fit what only rivals need
    given = replace(
        given, declared=tuple(declared), sample=first(given.sample, few), validation=first(given.validation, few)
    )
    sets = {"normal": normal, **panel}
    result: dict[str, dict[str, Floats]] = {}
    left_out = []
    judge: Any = None
    known = (*fitted.facts["models"], *params.detector.reads, *params.detector.rivals_read)
    # the detector's own members first: they read more of the models than most, and the others find it read
    for name in sorted(all_members(), key=lambda name: name not in fitted.facts["members"]):
        member = find_member(name)
        if missing := [model for model in member.reads if model not in known]:
            left_out.append(f"{name}: reads the model '{missing[0]}', which detector.rivals_read does not name")
            continue
        try:
            arrays = fitted.fitted(name) if name in fitted.facts["members"] else detector.fit_member(member, given)
            some = params.detector.slow_images if member.slow else None
            result[name] = {
                key: np.asarray(member.score(first(seen, some), arrays), dtype=np.float64)
                for key, seen in track(sets.items(), name, total=len(sets))
            }
            if name == detector.DECLARED_MEMBER:
                judge = fit_tail(np.asarray(member.score(given.validation, arrays), dtype=np.float64))
        except ModelError as error:
            left_out.append(f"{name}: {error}")
    whole = {key: fitted.combine({name: result[name][key] for name in fitted.facts["members"]}) for key in sets}
    ordered: dict[str, dict[str, Floats]] = {DETECTOR: whole}
    if not fitted.facts["declared"] and judge is not None:
        ordered[DECLARED] = {
            key: whole[key] + fitted.overlap * tail_surprise(result[detector.DECLARED_MEMBER][key], judge)
            for key in sets
        }
    return ordered | {name: result[name] for name in all_members() if name in result}, left_out


def one_left_out(
    fitted: detector.Detector, scores: Mapping[str, Mapping[str, Floats]], sets: list[str]
) -> dict[str, dict[str, float]]:
    """Member of the detector -> panel member -> AUROC of the detector without it, at the weights that it has."""
    names = [member.name for member in fitted.members]
    result = {}
    for name in names if len(names) > 1 else []:
        rest = [other for other in names if other != name]
        left = {key: fitted.combine({other: scores[other][key] for other in rest}) for key in ("normal", *sets)}
        result[name] = {key: auroc(left["normal"], left[key]) for key in sets}
    return result


def first(seen: Readings, some: int | None) -> Readings:
    """The same readings, or fresh ones of the first `some` images."""
    return seen if some is None or len(seen) <= some else seen.first(some)


def summary(
    tables: Mapping[str, Table],
    rates: Mapping[str, Mapping[float, Mapping[str, float]]],
    folds: Mapping[str, Mapping[str, float]],
    normal_p: Floats,
    params: Params,
) -> dict[str, Any]:
    """What metrics/outliers.json holds: the detector's figures by panel member, and single figures beside them."""
    metrics: dict[str, Any] = {}
    for figure in FIGURES:
        values = {member: round(table[figure][0], 4) for member, table in tables[DETECTOR].items()}
        worst, name = (max, "max") if figure == "fpr_at_95_tpr" else (min, "min")
        metrics[figure] = {**values, name: worst(values.values())}
    if DECLARED in tables:
        values = {member: round(table["auroc"][0], 4) for member, table in tables[DECLARED].items()}
        metrics["auroc_declared"] = {**values, "min": min(values.values())}
    for share in OUTLIER_SHARES:
        key = f"{share:.0%}_outliers".replace("%", "_percent")
        for figure in ("false_discovery_rate", "power"):
            metrics[f"{figure}_at_{key}"] = {m: round(rate[share][figure], 4) for m, rate in rates.items()}
    if folds:
        for score in ("detector", "pixel_mixture"):
            metrics[f"held_out_auroc_{score}"] = round(float(np.mean([fold[score] for fold in folds.values()])), 4)
    alarm = params.detector.false_alarm_rate
    metrics["false_alarm_rate_on_test_images"] = round(float((normal_p <= alarm).mean()), 4)
    return metrics


def write_report(
    folder: Path,
    tables: Mapping[str, Table],
    without: Mapping[str, Mapping[str, float]],
    rates: Mapping[str, Mapping[float, Mapping[str, float]]],
    folds: Mapping[str, Mapping[str, float]],
    no_class: Mapping[str, float],
    scores: Mapping[str, Mapping[str, Floats]],
    normal_p: Floats,
    left_out: list[str],
    params: Params,
) -> None:
    """Tables, pictures and figures.json, as the report page reads them."""
    sets = list(tables[DETECTOR])
    figures: list[dict[str, str]] = []

    def table(file: str, header: list[str], rows: list[list[Any]], title: str, caption: str) -> None:
        with (folder / file).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows([header, *rows])
        figures.append({"file": file, "title": title, "caption": caption})

    not_measured = f" Left out: {'; '.join(left_out)}" if left_out else ""
    table(
        "auroc.csv",
        ["score", *sets, "min"],
        [
            [name, *(f"{t[m]['auroc'][0]:.3f}" for m in sets), f"{min(t[m]['auroc'][0] for m in sets):.3f}"]
            for name, t in tables.items()
        ],
        "Every score on every kind of outlier: AUROC",
        "0.5 is guessing, 1 is perfect. The detector's row comes first; the row with declared transformations is told "
        "which transformations count as outliers. "
        f"Slow scores are measured on {params.detector.slow_images} images.{not_measured}",
    )
    table(
        "detector.csv",
        ["outliers", *(f"{f} {end}" for f in FIGURES for end in ("", "low", "high"))],
        [
            [m, *(f"{value:.3f}" for f in FIGURES for value in t[f])]
            for m, t in (
                (f"{m}{suffix}", tables[name][m])
                for name, suffix in ((DETECTOR, ""), (DECLARED, " (declared)"))
                if name in tables
                for m in sets
            )
        ],
        "The detector, with intervals",
        f"Low and high bound 95 % of {RESAMPLES} bootstrap resamples of test images and outliers.",
    )
    if without:
        table(
            "ablation.csv",
            ["left out", *sets, "min"],
            [
                [name, *(f"{value:.3f}" for value in found.values()), f"{min(found.values()):.3f}"]
                for name, found in (
                    ("nothing", {m: values["auroc"][0] for m, values in tables[DETECTOR].items()}),
                    *without.items(),
                )
            ],
            "The detector without one of its members: AUROC",
            "For information: members are chosen on synthetic outliers (docs/lab/detector.md), never by this table.",
        )
    table(
        "false_discoveries.csv",
        ["outliers", "share of outliers", *next(iter(next(iter(rates.values())).values()))],
        [
            [m, share, *(f"{value:.3f}" for value in rate.values())]
            for m, r in rates.items()
            for share, rate in r.items()
        ],
        f"Is the false-discovery rate of {params.detector.false_discovery_rate:g} kept?",
        f"Mean over {BATCHES} batches of at most {BATCH} images drawn from normal images and outliers, with a "
        "calibration set drawn anew each time. The rate is the share of normal images among those called outliers; "
        "power is the share of outliers found. The conditional variant holds for 90 % of single calibration sets, and "
        "finds less.",
    )
    if folds:
        table(
            "held_out.csv",
            ["class held out", *next(iter(folds.values()))],
            [[name, *(f"{value:.3f}" for value in fold.values())] for name, fold in folds.items()],
            "A class never seen: AUROC",
            "For each class everything is fitted anew on a small budget without it; its test images are the outliers.",
        )
    if no_class:
        table(
            "no_class.csv",
            ["images", "share said to belong to no class"],
            [[kind, f"{share:.3f}"] for kind, share in no_class.items()],
            "Labels with rejection: who belongs to no class?",
            "The class-conditional density alone, by how likely an image is for each label, at a false-alarm rate of "
            f"{params.detector.false_alarm_rate:g}. It is no outlier detector: compare with the detector's own rows.",
        )
    every = [
        {"score": name, "outliers": m, **{f: t[m][f][0] for f in FIGURES}} for name, t in tables.items() for m in sets
    ]
    with (folder / "every_score.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(every[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
    levels = np.linspace(0.0, 1.0, 41)
    rows = [
        {"p": round(float(level), 4), "share": round(float(share), 5), "images": name}
        for name, shares in (("test images", [(normal_p <= level).mean() for level in levels]), ("as promised", levels))
        for level, share in zip(levels, shares, strict=True)
    ]
    (folder / "calibration.svg").write_text(
        charts.lines(rows, x="p", y="share", x_title="p-value", y_title="share of images at or below", series="images"),
        encoding="utf-8",
    )
    figures.append(
        {
            "file": "calibration.svg",
            "title": "Are the p-values honest?",
            "caption": "A share a of normal images, no more, should have a p-value up to a. That holds on average over "
            "calibration sets, if future normal images are like the calibration images.",
        }
    )
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
