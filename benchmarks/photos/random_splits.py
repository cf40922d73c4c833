"""Whether the false-alarm rates hold: detectors fitted on many random splits of all good images.

    python benchmarks/photos/random_splits.py FOLDER... cells --splits 50

For every split as many good images as train/good has are drawn at random from train/good and test/good together. 60 %
of them fit the detector, 20 % are validation and 20 % calibration images; the good images that are left are tested.

The features of an image depend on that image alone, so they are computed once and kept. Everything else is fitted again
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
from defect_sets import LEVELS, cells, fitted_detector, folder_set, scored
from scipy import stats
from torch import Tensor

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.detector.conformal import images_for, p_values
from densitywatch.detector.local.local_map import Density, fit_local, local_score, local_surprise
from densitywatch.detector.local.sources import LITE0, OWN, SMALLEST, Source
from densitywatch.detector.member_table import MEMBERS

LOCAL: dict[str, tuple[Source, Density]] = {"own_place": (OWN, "place"), "lite0_place": (LITE0, "place")}
READ_AT_ONCE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--members", nargs="+", default=["own_place", "lite0_place"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.sets:
        kinds = cells(asked.size) if name == "cells" else folder_set(Path(name), asked.size)
        good, size = np.concatenate([kinds["train"], kinds["good"]]), len(kinds["train"])
        for member in asked.members:
            started = time.perf_counter()
            with_kept_features(member, good)
            read = time.perf_counter() - started
            rates = over_splits(numbered(len(good)), size, member, asked.splits, asked.seed)
            seconds = time.perf_counter() - started - read
            print(f"\n{Path(name).name}, {member}: {asked.splits} splits of {len(good)} good images", flush=True)
            print(f"features read in {read:.0f} s, {seconds / asked.splits:.1f} s for each split")
            for what, found in rates.items():
                tell(what, found, size // 5, len(good) - size)


def with_kept_features(name: str, images: Pixels) -> None:
    """Put a member into the table that looks features of these images up by their number."""
    source, density = LOCAL[name]
    weights = source.weights()
    with torch.inference_mode():
        parts = [source.read(part, weights) for part in torch.from_numpy(images).split(READ_AT_ONCE)]
    kept = torch.cat(parts)

    def look_up(numbers: Tensor, _: Arrays) -> Tensor:
        return kept[numbers[:, 0, 0, :2].long() @ torch.tensor([256, 1])]

    kept_source = replace(source, weights=dict, read=look_up)
    MEMBERS[name] = replace(
        MEMBERS[name],
        fit=lambda data: fit_local(data, kept_source, density),
        score=lambda cache, fitted: local_score(cache, kept_source, fitted),
        places=lambda cache, fitted: local_surprise(cache, kept_source, fitted),
    )


def numbered(count: int) -> Pixels:
    """Stand-ins for images: each holds its number in its first two pixels."""
    images = np.zeros((count, 1, SMALLEST, SMALLEST), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return images


def over_splits(good: Pixels, size: int, member: str, splits: int, seed: int) -> dict[str, Floats]:
    """The share of false alarms at each level, (splits, levels): of images flagged, and with an outline."""
    rates: dict[str, list[list[float]]] = {"flagged": [], "outlined": []}
    for number in range(splits):
        order = np.random.default_rng([seed, number]).permutation(len(good))
        detector, calibration = fitted_detector(good[order[:size]], [member], seed + number)
        reference, left = (scored(detector, part, [member]) for part in (calibration, good[order[size:]]))
        for what, row in (("flagged", member), ("outlined", f"map of {member}")):
            p = p_values(np.sort(reference[row]), left[row])
            rates[what].append([float((p <= level).mean()) for level in LEVELS])
    return {what: np.array(found) for what, found in rates.items()}


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
