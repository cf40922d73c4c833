"""Whether the false-alarm rates hold: detectors fitted on many random splits of all good images.

    python benchmarks/photos/random_splits.py FOLDER... cells --splits 50

For every split as many good images as train/good has are drawn at random from train/good and test/good together. 60 %
of them fit the detector, 20 % are validation and 20 % calibration images; the good images that are left are tested.

The members own_place, lite0_place and lite0_whole, and detectors of several of them. The features of an image depend on
that image alone, so they are computed once and kept. Everything else is fitted again
for every split, as `calibrate` does it: principal components, Gaussians, their shrinkage, spreads, tails and ranks.

`due` is the rate that ranks promise: k / (n + 1), where k = level (n + 1) rounded down and n calibration images. The
count of false alarms among m images is then beta-binomial (m, k, n + 1 - k) in each split, and splits are drawn
independently. `interval` has 99 of 100 means over so many splits.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from defect_sets import LEVELS, cells, fitted_detector, folder_set, possible, scored
from scipy import stats
from torch import Tensor

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.detector.conformal import images_for, p_values
from densitywatch.detector.local.local_map import fit_local, local_score, local_surprise
from densitywatch.detector.local.sources import LITE0, OWN, Source
from densitywatch.detector.member_table import MEMBERS
from densitywatch.detector.scores import local

READ_AT_ONCE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--detectors", nargs="+", default=["own_place", "own_place,lite0_place,lite0_whole"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    detectors = possible(asked.detectors)
    for name in asked.sets:
        kinds = cells(asked.size) if name == "cells" else folder_set(Path(name), asked.size)
        good, size = np.concatenate([kinds["train"], kinds["good"]]), len(kinds["train"])
        started = time.perf_counter()
        for source in (OWN, LITE0):
            if any(source.name in row for row in detectors):
                with_kept_features(source, good)
        read = time.perf_counter() - started
        rates = over_splits(numbered(len(good), asked.size), size, detectors, asked.splits, asked.seed)
        seconds = time.perf_counter() - started - read
        print(f"\n{Path(name).name}: {asked.splits} splits of {len(good)} good images", flush=True)
        print(f"features read in {read:.0f} s, {seconds / asked.splits:.1f} s for each split")
        for row, found in rates.items():
            print(row)
            for what, of_splits in found.items():
                tell(what, of_splits, size // 5, len(good) - size)


def with_kept_features(source: Source, images: Pixels) -> None:
    """Let the members of a source look features of these images up by their number."""
    weights = source.weights()
    with torch.inference_mode():
        parts = [source.read(part, weights) for part in torch.from_numpy(images).split(READ_AT_ONCE)]
    kept = torch.cat(parts)

    def look_up(numbers: Tensor, _: Arrays) -> Tensor:
        return kept[numbers[:, 0, 0, :2].long() @ torch.tensor([256, 1])]

    kept_source = replace(source, weights=dict, read=look_up)
    name = f"{source.name}_place"
    MEMBERS[name] = replace(
        MEMBERS[name],
        fit=lambda data: fit_local(data, kept_source, "place"),
        score=lambda cache, fitted: local_score(cache, kept_source, fitted),
        places=lambda cache, fitted: local_surprise(cache, kept_source, fitted),
    )
    if source is LITE0:
        local.LITE0 = kept_source  # what lite0_whole reads


def numbered(count: int, size: int) -> Pixels:
    """Stand-ins for images: each holds its number in its first two pixels."""
    images = np.zeros((count, 1, size, size), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return images


def over_splits(good: Pixels, size: int, detectors: list[str], splits: int, seed: int) -> dict[str, dict[str, Floats]]:
    """The share of false alarms at each level, (splits, levels), by detector: images flagged, or with an outline."""
    members = list(dict.fromkeys(name for row in detectors for name in row.split(",")))
    rates: dict[str, dict[str, list[list[float]]]] = {row: {"flagged": [], "outlined": []} for row in detectors}
    for number in range(splits):
        order = np.random.default_rng([seed, number]).permutation(len(good))
        detector, calibration = fitted_detector(good[order[:size]], members, seed + number)
        reference, left = (scored(detector, part, detectors) for part in (calibration, good[order[size:]]))
        for row in detectors:
            for what, key in (("flagged", row), ("outlined", f"map of {row}")):
                p = p_values(np.sort(reference[key]), left[key])
                rates[row][what].append([float((p <= level).mean()) for level in LEVELS])
    return {row: {what: np.array(values) for what, values in found.items()} for row, found in rates.items()}


def tell(what: str, found: Floats, calibration: int, tested: int) -> None:
    """Print the mean rate at each level with what is due."""
    for level, rates in zip(LEVELS, found.T, strict=True):
        if calibration < images_for(level):
            print(
                f"  {what:9} {level:4.0%}: out of reach of {calibration} calibration images, {rates.mean():.2%} found"
            )
            continue
        k = int(level * (calibration + 1) + 1e-9)
        counts = stats.betabinom(tested, k, calibration + 1 - k).rvs((len(rates), 20_000), random_state=0)
        low, high = np.quantile(counts.mean(0) / tested, [0.005, 0.995])
        due = k / (calibration + 1)
        verdict = "holds" if low <= rates.mean() <= high else "ABOVE" if rates.mean() > high else "below"
        print(
            f"  {what:9} {level:4.0%}: {rates.mean():.2%}, due {due:.2%} (interval {low:.2%} to {high:.2%}): {verdict}"
        )


if __name__ == "__main__":
    main()
