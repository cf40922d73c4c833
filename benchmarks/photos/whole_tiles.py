"""Whether tiles that are new are told from defective ones: pictures held out one by one, and whole tiles.

    python benchmarks/photos/whole_tiles.py FOLDER [--splits 3] [--detectors own_place ...]

FOLDER is the set `tiles` (Huang et al. 2018) with train/good, test/good and test/KIND. It shows some 200 good tiles,
most of them six times, in other light: exp1_num_320808.jpg and exp3_num_320833.jpg are one tile. Where pictures are
drawn one by one, as the set's own test part was, nearly every good test picture shows a tile that was fitted on. The
defective tiles are others, so a detector that knows tiles by heart looks better than it is.

Of all good pictures 60 % are fitted on, 20 % shape the maps and 20 % are told from all defective ones (AUROC).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from defect_sets import IMAGE_FILES, Parts, fitted_detector, folder_set, possible, scored
from numpy.typing import NDArray

from densitywatch.outlier_benchmark.auroc import auroc

SHARES = (0.6, 0.8)
"""Where the part that is fitted on ends, and the validation part."""
FAR = 60
"""Pictures of one tile have numbers that are no farther apart than this, in the order of their light."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--detectors", nargs="+", default=["own_place"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--splits", type=int, default=3)
    asked = parser.parse_args()
    detectors = possible(asked.detectors)
    members = list(dict.fromkeys(name for row in detectors for name in row.split(",")))
    kinds = folder_set(asked.folder, asked.size)
    good = np.concatenate([kinds["train"], kinds["good"]])
    bad = np.concatenate([images for kind, images in kinds.items() if kind not in ("train", "good")])
    tile = tiles([name for part in ("train/good", "test/good") for name in names(asked.folder / part)])
    print(f"{len(good)} good pictures of {tile.max() + 1} tiles, {len(bad)} defective ones")
    for what, group in (("pictures held out one by one", np.arange(len(good))), ("whole tiles held out", tile)):
        found: dict[str, list[float]] = {row: [] for row in detectors}
        for seed in range(asked.splits):
            parts = parts_by(group, seed)
            detector, held_out = fitted_detector(good, members, seed, parts=parts, grouped=group is tile)
            of_good, of_bad = (scored(detector, images, detectors) for images in (held_out, bad))
            for row in detectors:
                found[row].append(auroc(of_good[row], of_bad[row]))
        for row, values in found.items():
            print(f"{what}, {row}: {np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})", flush=True)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in IMAGE_FILES)


def tiles(files: list[str]) -> NDArray[np.int64]:
    """The number of each picture's tile. A new one begins where the light does not go on, or the numbers leap."""
    found = [(int(number), int(light)) for light, number in (re.findall(r"exp(\d)_num_(\d+)", f)[0] for f in files)]
    tile, now, before = np.zeros(len(files), np.int64), -1, (-FAR - 1, 9)
    for place in sorted(range(len(files)), key=found.__getitem__):
        number, light = found[place]
        now += light <= before[1] or number - before[0] > FAR
        tile[place], before = now, (number, light)
    return tile


def parts_by(group: NDArray[np.int64], seed: int) -> Parts:
    """Pictures of the validation part, of those that are told from defective ones, and of those to fit on."""
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    part = np.empty(len(sizes), np.int64)
    part[order] = np.searchsorted(SHARES, np.cumsum(sizes[order]) / len(group))
    return np.flatnonzero(part[group] == 1), np.flatnonzero(part[group] == 2), np.flatnonzero(part[group] == 0)


if __name__ == "__main__":
    main()
