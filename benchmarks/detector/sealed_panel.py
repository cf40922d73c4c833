"""The sealed panel: kinds of outliers that no choice was made on, evaluated once, after the members stand.

    python benchmarks/detector/sealed_panel.py [IMAGES]

Reads the calibrated detector. The first IMAGES test images are normal, the next IMAGES are spoiled (sealed_kinds.py).
Prints by kind what Benjamini-Hochberg finds in a batch by itself (calibration sets drawn anew) and the AUROC of the
detector and of its controls (untrained networks, no network); then the paired gain over each control with its interval
of 95 %.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sealed_kinds import sealed_kinds

from densitywatch.arrays import Floats
from densitywatch.data.dataset import open_split
from densitywatch.detector import detector
from densitywatch.detector.calibrate import fitting_data
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.outlier_benchmark.controls import control_rows, gains
from densitywatch.outlier_benchmark.realised_fdr import realised_rates
from densitywatch.params import load_params

DETECTOR, NORMAL = "detector", "normal"


def main(count: int) -> None:
    params, root = load_params(), Path.cwd()
    fitted = detector.load(root / "models" / "detector")
    test = np.array(open_split(root / "data" / "prepared", "test").images[: 2 * count])
    sets = {NORMAL: test[:count], **sealed_kinds(test[count:], params.seed)}
    images = {kind: FeatureCache(x, fitted.models, size=fitted.reading_size) for kind, x in sets.items()}
    by_kind = {kind: fitted.member_scores(features) for kind, features in images.items()}
    scores: dict[str, dict[str, Floats]] = {DETECTOR: {kind: fitted.combine(found) for kind, found in by_kind.items()}}
    members = {m.name: {kind: found[m.name] for kind, found in by_kind.items()} for m in fitted.members}
    data, _ = fitting_data(params, root)
    scores |= control_rows(fitted, data, images, members)
    kinds = [kind for kind in sets if kind != NORMAL]
    power = {
        kind: realised_rates(
            np.concatenate([fitted.calibration, scores[DETECTOR][NORMAL]]),
            scores[DETECTOR][kind],
            calibration_size=len(fitted.calibration),
            target=params.detector.false_discovery_rate,
            seed=params.seed,
        )[0.05]["power"]
        for kind in kinds
    }
    print("| kind | found in a batch by itself, 5 % outliers | " + " | ".join(f"AUROC, {row}" for row in scores) + " |")
    print("|---|---|" + "---|" * len(scores))
    found = {row: {kind: auroc(values[NORMAL], values[kind]) for kind in kinds} for row, values in scores.items()}
    for kind in sorted(kinds, key=power.__getitem__):
        cells = " | ".join(f"{found[row][kind]:.3f}" for row in scores)
        print(f"| {kind} | {power[kind]:.2f} | {cells} |")
    means = " | ".join(f"{np.mean(list(found[row].values())):.4f}" for row in scores)
    print(f"| mean | {np.mean(list(power.values())):.2f} | {means} |")
    for row, (value, low, high) in gains(scores, DETECTOR, NORMAL, seed=params.seed).items():
        print(f"\nmean AUROC of the detector minus that of '{row}': {value:+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
