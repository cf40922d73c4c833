"""The stage `benchmark`: every score on every kind of outlier, and whether the false-discovery rate is kept.

Writes metrics/outliers.json (git keeps it) and reports/outliers. Nothing is fitted or chosen by these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.dataset import DatasetInfo, open_split, read_info
from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.reading import images_within
from densitywatch.detector import conformal
from densitywatch.detector.calibrate import WEIGHT_COPIES, drop_stale_copies, fit_member, fitting_data
from densitywatch.detector.detector import DECLARED_MEMBER, Detector, load
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member_table import MEMBERS
from densitywatch.detector.realised_alarms import realised_alarms
from densitywatch.detector.scores.transformations import TRANSFORMATIONS
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.errors import ModelError
from densitywatch.files import whole_folder, write_whole
from densitywatch.outlier_benchmark.auroc import MEASURES, auroc, separation
from densitywatch.outlier_benchmark.controls import CONTROLS, control_rows, gains
from densitywatch.outlier_benchmark.deployed_power import power_by_kind, power_figures
from densitywatch.outlier_benchmark.held_out_classes import fold_size, held_out_classes, measured
from densitywatch.outlier_benchmark.no_class import no_class_rates
from densitywatch.outlier_benchmark.panel import MOST_KINDS, make_panel
from densitywatch.outlier_benchmark.realised_fdr import OUTLIER_SHARES, rates_in_streams, realised_rates
from densitywatch.outlier_benchmark.renewed import WHY, is_renewed
from densitywatch.outlier_benchmark.tables import DECLARED, DETECTOR, RESAMPLES, SHOWN, Findings, write_tables
from densitywatch.params import Params
from densitywatch.progress import say, track
from densitywatch.sizes import height_width

KINDS = 1 + MOST_KINDS
"""Kinds of images that are in memory at once: the normal ones and those of the panel."""
NORMAL = "normal"
CONTROL_IMAGES = 500
"""Limit on the images of each kind that untrained networks read, which is slow."""


def benchmark(params: Params, root: Path) -> dict[str, Any]:
    """Measure the detector in models/detector and every other score; returns what metrics/outliers.json holds."""
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    drop_stale_copies(root / WEIGHT_COPIES / "rivals", params.detector.rivals_read)
    detector = load(root / "models" / "detector")
    tested = open_split(prepared, "test")
    test = tested.images
    n, asked = images_of_a_kind(params, info, len(test)), min(params.detector.panel_images, len(test))
    # where there are enough test images, the ones that are transformed are not among the normal ones
    start = n if len(test) >= 2 * n else 0
    normal = FeatureCache(np.array(test[:n]), detector.models, size=detector.reading_size)
    panel = make_panel(params, root, info, np.array(test[start : start + n]))
    features = {
        kind: FeatureCache(images, detector.models, size=detector.reading_size) for kind, images in panel.items()
    }

    scores, left_out = every_score(params, root, detector, {NORMAL: normal, **features})
    separations = {
        name: {
            kind: separation(values[NORMAL], values[kind], resamples=RESAMPLES, seed=params.seed)
            for kind in track(list(panel), name)
        }
        for name, values in scores.items()
    }
    # the controls have no judge of declared transformations, so they are held against the detector without it
    members = [name for name in detector.facts["members"] if name != DECLARED_MEMBER]
    without_judge = {
        kind: detector.combine({name: scores[name][kind] for name in members}) for kind in (NORMAL, *panel)
    }
    normal_p = conformal.p_values(detector.calibration, scores[DETECTOR][NORMAL])
    groups = None if tested.groups is None else tested.groups[:n]
    # frames of one scene are not exchangeable with the calibration scores, one of each scene is
    exchangeable = scores[DETECTOR][NORMAL]
    if groups is not None:
        exchangeable = exchangeable[one_of_each_group(groups, params.seed)]
    renewed = is_renewed(prepared)
    ranked = [] if renewed else list(panel)  # kinds of which figures rank test images among calibration images
    if renewed:
        say(f"benchmark: left out: {WHY}")
        left_out.append(WHY)
    folded, not_folded = measured(detector.facts["members"], fold_size(params, info.size))
    if info.class_names and params.detector.folds and not_folded:
        say(f"benchmark: classes held out are measured without members of the detector: {'; '.join(not_folded)}")
    findings = Findings(
        separations=separations,
        ablation=one_left_out(detector, scores, list(panel)),
        power=power_by_kind(
            detector.calibration,
            exchangeable,
            {kind: scores[DETECTOR][kind] for kind in ranked},
            params,
        ),
        gains=gains(scores | {DETECTOR: without_judge}, DETECTOR, NORMAL, seed=params.seed),
        calibration_images=len(detector.calibration),
        normal_p=None if renewed else normal_p,
        alarms=[] if renewed else realised_alarms(normal_p, groups, len(detector.calibration), seed=params.seed),
        rates={
            kind: realised_rates(
                np.concatenate([detector.calibration, exchangeable]),
                scores[DETECTOR][kind],
                calibration_size=len(detector.calibration),
                target=params.detector.false_discovery_rate,
                seed=params.seed,
            )
            for kind in track(ranked, "false-discovery rate")
        },
        streams={
            kind: rates_in_streams(
                np.concatenate([detector.calibration, exchangeable]),
                scores[DETECTOR][kind],
                calibration_size=len(detector.calibration),
                target=params.detector.false_discovery_rate,
                seed=params.seed,
            )
            for kind in track(ranked, "streams of batches")
        },
        folds=held_out_classes(params, root, folded) if info.class_names else {},
        not_folded=not_folded,
        no_class={}
        if renewed
        else no_class_rates(params, root, detector, {NORMAL: np.asarray(normal.source), **panel}, scores[DETECTOR]),
        left_out=left_out,
        panel_images=n,
        asked_images=asked,
        grouped=groups is not None,
    )
    metrics = summary(findings, params)
    write_whole(root / "metrics" / "outliers.json", json.dumps(metrics, indent=2) + "\n")
    with whole_folder(root / "reports" / "outliers") as folder:
        write_tables(folder, findings, params, {NORMAL: np.array(test[start : start + SHOWN]), **panel})
    return metrics


def images_of_a_kind(params: Params, info: DatasetInfo, test_images: int) -> int:
    """Images of each kind, at most; fewer than detector.panel_images where large pictures would fill the memory."""
    asked = min(params.detector.panel_images, test_images)
    # every kind of image is held at the data's size
    n = images_within(asked, KINDS * info.channels * math.prod(height_width(info.size)))
    if n < asked:
        say(f"benchmark: {n:,} images of each kind in place of {asked:,}: more pictures of this size fill the memory")
    return n


def every_score(
    params: Params, root: Path, detector: Detector, images: Mapping[str, FeatureCache]
) -> tuple[dict[str, dict[str, Floats]], list[str]]:
    """Score -> kind of image -> values; and the scores that were left out, each with the reason.

    The first rows are the detector, the detector as it would be with declared transformations, and the controls: with
    untrained networks, and without any.
    """
    members = detector.facts["members"]
    declared = detector.facts["declared"] or list(TRANSFORMATIONS)
    everything, _ = fitting_data(params, root)
    few = len(images[NORMAL])  # enough to fit what only rivals need
    data = replace(
        everything,
        declared=tuple(declared),
        sample=first(everything.sample, few),
        validation=first(everything.validation, few),
    )
    result: dict[str, dict[str, Floats]] = {}
    left_out = []
    judge_tail: Arrays | None = None
    known = (*detector.facts["models"], *params.detector.reads, *params.detector.rivals_read)
    # the detector's own members first: they read most of what the models say, and the other scores find it in the cache
    for name in sorted(MEMBERS, key=lambda name: name not in members):
        member = MEMBERS[name]
        if member.smallest > detector.reading_size:  # made for photographs
            continue
        if missing := [model for model in member.reads if model not in known]:
            left_out.append(f"{name}: reads the model '{missing[0]}', which detector.rivals_read does not name")
            continue
        try:
            arrays = detector.fitted(name) if name in members else fit_member(member, data)
            limit = params.detector.slow_images if member.slow else None
            result[name] = {
                kind: np.asarray(member.score(first(features, limit), arrays), dtype=np.float64)
                for kind, features in track(images.items(), name, total=len(images))
            }
            if name == DECLARED_MEMBER:
                judge_tail = fit_tail(np.asarray(member.score(data.validation, arrays), dtype=np.float64))
        except ModelError as error:
            left_out.append(f"{name}: {error}")
    whole = {kind: detector.combine({name: result[name][kind] for name in members}) for kind in images}
    rows: dict[str, dict[str, Floats]] = {DETECTOR: whole}
    if not detector.facts["declared"] and judge_tail is not None:
        rows[DECLARED] = {
            kind: whole[kind] + detector.judge_weight * tail_surprise(result[DECLARED_MEMBER][kind], judge_tail)
            for kind in images
        }
    rows |= control_rows(detector, everything, images, result, CONTROL_IMAGES)
    return rows | {name: result[name] for name in MEMBERS if name in result}, left_out


def one_left_out(
    detector: Detector, scores: Mapping[str, Mapping[str, Floats]], kinds: list[str]
) -> dict[str, dict[str, float]]:
    """Member of the detector -> kind of outlier -> AUROC of the detector without it; the other weights stay."""
    names = [member.name for member in detector.members]
    result = {}
    for name in names if len(names) > 1 else []:
        rest = [other for other in names if other != name]
        left = {kind: detector.combine({other: scores[other][kind] for other in rest}) for kind in (NORMAL, *kinds)}
        result[name] = {kind: auroc(left[NORMAL], left[kind]) for kind in kinds}
    return result


def first(features: FeatureCache, limit: int | None) -> FeatureCache:
    """The same cache, or a new one of the first `limit` images where there are more."""
    return features if limit is None or len(features) <= limit else features.first(limit)


def summary(findings: Findings, params: Params) -> dict[str, Any]:
    """What metrics/outliers.json holds: the detector's measures by kind of outlier, and single figures after them."""
    metrics = power_figures(findings.power) if findings.power else {}
    separations = findings.separations
    for measure in MEASURES:
        values = {kind: round(found[measure][0], 4) for kind, found in separations[DETECTOR].items()}
        worst, name = (max, "max") if measure == "fpr_at_95_tpr" else (min, "min")
        metrics[measure] = {**values, name: worst(values.values())}
    if DECLARED in separations:
        values = {kind: round(found["auroc"][0], 4) for kind, found in separations[DECLARED].items()}
        metrics["auroc_declared"] = {**values, "min": min(values.values())}
    for row, name in CONTROLS.items():
        if row in separations:
            values = {kind: round(found["auroc"][0], 4) for kind, found in separations[row].items()}
            metrics[f"auroc_{name}"] = {**values, "min": min(values.values())}
            for end, value in zip(("", "_low", "_high"), findings.gains[row], strict=True):
                metrics[f"auroc_gain_over_{name}{end}"] = round(value, 4)
    for share in OUTLIER_SHARES if findings.rates else ():
        key = f"{share:.0%}_outliers".replace("%", "_percent")
        for rate in ("false_discovery_rate", "power"):
            metrics[f"{rate}_at_{key}"] = {kind: round(rates[share][rate], 4) for kind, rates in findings.rates.items()}
    for rate in next(iter(findings.streams.values()), {}):
        metrics[f"{rate}_where_outliers_are_rare"] = {
            kind: round(rates[rate], 4) for kind, rates in findings.streams.items()
        }
    if findings.folds:
        for score in ("detector", "pixel_mixture"):
            mean = float(np.mean([fold[score] for fold in findings.folds.values()]))
            metrics[f"held_out_auroc_{score}"] = round(mean, 4)
    alarm = params.detector.false_alarm_rate
    if findings.normal_p is not None:
        metrics["false_alarm_rate_on_test_images"] = round(float((findings.normal_p <= alarm).mean()), 4)
    for found in findings.alarms:
        key = f"realised_at_{100 * found.promised:g}_percent"
        metrics |= {key: round(found.share, 4), f"{key}_low": round(found.low, 4), f"{key}_high": round(found.high, 4)}
    if findings.no_class:
        shares = {kind: round(share, 4) for kind, share in findings.no_class.items()}
        on_test_images = shares.pop(NORMAL)
        metrics |= {"no_class_rate": shares, "no_class_rate_on_test_images": on_test_images}
    metrics["panel_images"] = findings.panel_images
    return metrics
