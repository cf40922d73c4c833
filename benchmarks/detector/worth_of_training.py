"""What the PixelCNN's training is worth to the detector, for several trainings of it, on synthetic outliers.

    python benchmarks/detector/worth_of_training.py IMAGES FOLDER...

Each FOLDER holds a trained PixelCNN; the first is models/pixelcnn. For each, the members of params.yaml are fitted on
training images, their tails on the first half of the validation images, and measured on the second half against IMAGES
of it spoiled (choice_of_members.py). Prints mean AUROC with the trained network, with its untrained twin, and without a
network, and the paired gains with their intervals of 95 %. By this table a member that reads a network stays or goes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from choice_of_members import row, spoiled

from densitywatch.arrays import Floats
from densitywatch.detector.calibrate import fit_member, fitting_data
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData, Member
from densitywatch.detector.member_table import find_member
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise
from densitywatch.models.storage import load_model_folder
from densitywatch.outlier_benchmark.controls import paired_gain, untrained
from densitywatch.params import load_params

NORMAL = "normal"
Surprises = dict[str, Floats]
"""Kind of image -> a member's surprises."""


def main(count: int, folders: list[Path]) -> None:
    params = load_params()
    data, _ = fitting_data(params, Path.cwd())
    members = [find_member(name) for name in params.detector.members]
    validation = data.validation.images
    half = len(validation) // 2
    sets = {NORMAL: validation[half:], **spoiled(validation[half:][:count], params.seed)}

    def measured(member: Member, models: Models) -> Surprises:
        seen: FittingData = replace(
            data,
            sample=FeatureCache(data.sample.source, models, size=data.sample.size),
            validation=FeatureCache(validation[:half], models),
        )
        fitted = fit_member(member, seen)
        tail = fit_tail(np.asarray(member.score(seen.validation, fitted), dtype=np.float64))
        return {kind: tail_surprise(member.score(FeatureCache(x, models), fitted), tail) for kind, x in sets.items()}

    def together(parts: list[Surprises]) -> Surprises:
        return {kind: combined([part[kind] for part in parts]) for kind in sets}

    plain = [measured(member, Models()) for member in members if not member.reads]
    readers = [member for member in members if member.reads]
    without = together(plain)
    row("no network", without)
    kinds = [kind for kind in sets if kind != NORMAL]
    for seed, folder in enumerate(folders, start=1):
        network = load_model_folder(folder)
        rows = {"untrained": without, "trained": without}
        for name, model in (("untrained", untrained(network, seed)), ("trained", network)):
            rows[name] = together(plain + [measured(m, Models(loaded={"pixelcnn": model})) for m in readers])
            row(f"{name}, {folder}", rows[name])
        for name, other in (("untrained", rows["untrained"]), ("no network", without)):
            value, low, high = paired_gain(rows["trained"], other, NORMAL, kinds, params.seed)
            print(f"  gain over {name}: {value:+.4f} ({low:+.4f} to {high:+.4f})", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
