"""What each member of the detector is worth on synthetic outliers: each alone, and the detector without it.

    python benchmarks/detector/ablation.py [IMAGES]

Reads the calibrated detector. Only tails are fitted anew, on the first half of the validation images. The second half
is normal, and IMAGES of it are spoiled (choice_of_members.py). Members are kept or removed by this table. The stage
`benchmark` makes the same table for the panel (reports/outliers/ablation.csv), by which nothing is chosen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from choice_of_members import row, spoiled, summed

from densitywatch.data.dataset import open_split
from densitywatch.detector import detector
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.params import load_params


def main(count: int) -> None:
    fitted = detector.load(Path("models/detector"))
    validation = np.array(open_split(Path("data/prepared"), "validation").images)
    half = len(validation) // 2
    normal = validation[half:]
    sets = {"reference": validation[:half], "normal": normal, **spoiled(normal[:count], load_params().seed)}
    scores = {key: fitted.member_scores(fitted.features(images)) for key, images in sets.items()}
    reference = scores.pop("reference")
    tails = {
        name: {key: tail_surprise(values[name], tail) for key, values in scores.items()}
        for name, tail in ((name, fit_tail(values)) for name, values in reference.items())
    }
    print(f"{'score':28} {'mean':>6} {'low 5':>6}  lowest")
    for name, values in tails.items():
        row(name, values)
    row("the detector", summed(tails, list(tails)))
    for name in tails:
        row(f"  without {name}", summed(tails, [other for other in tails if other != name]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
