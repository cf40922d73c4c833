"""The detector on photographs with small defects: found and false alarms, next to what needs no model.

    python benchmarks/photos/defect_sets.py FOLDER...            each with train/good, test/good and test/KIND
    python benchmarks/photos/defect_sets.py FOLDER... cells      and the package elpv-dataset, where it is installed
    python benchmarks/photos/defect_sets.py FOLDER --detectors own_place own_place,lite0_place
    python benchmarks/photos/defect_sets.py --synthetic FOLDER   to choose by: defects made of images of train/good,
                                                                 which is all that FOLDER needs; --camera as well:
                                                                 defects that were before the camera

A member that reads a model, such as pyramid_excess, takes two calls more, with --synthetic in each or in none. The
model must see no image that is scored:

    python benchmarks/photos/defect_sets.py FOLDER --write-fit PNGS            the images that densities are fitted on
    python benchmarks/pyramid/compression.py train MODELS/pixelcnn_pyramid --images PNGS --most 2000 --seconds 100
    python benchmarks/photos/defect_sets.py FOLDER --models MODELS --detectors own_place own_place,pyramid_excess

Every set is treated alike. `train/good` is split at random into train, validation and calibration images; the detector
is fitted on the first two as `calibrate` does it and ranks among the third. Test images are scored once, at the end:
nothing is fitted or chosen on them.

False alarms are counted on test/good. `interval` is where 99 of 100 such counts lie when the rate is the one asked for.
Whether rates hold does not rest on one split: random_splits.py fits on many.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from synthetic_defects import synthetic_defects

from densitywatch.arrays import Arrays, Floats, Pixels
from densitywatch.data.decoding.images import fit_image
from densitywatch.detector.calibrate import fit_members, present
from densitywatch.detector.conformal import images_for, p_values
from densitywatch.detector.detector import Detector
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.image_statistics import webp_nats
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import find_member
from densitywatch.outlier_benchmark.auroc import auroc

Parts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp"}
LEVELS = (0.01, 0.05, 0.1)
CHUNK = 50
DETECTORS = ["own_place", "lite0_place", "lite0_place,lite0_whole", "own_place,lite0_place,lite0_whole"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=DETECTORS,
        help="members with commas between them; each detector has a row. Without the weights of EfficientNet-Lite0 on"
        " this machine, rows that need them are left out",
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--write", type=Path, help="a folder for the images as the detector sees them, for peers.py")
    parser.add_argument("--models", type=Path, help="a folder of the models that members read, by their names")
    parser.add_argument("--write-fit", type=Path, help="a folder for what densities are fitted on; nothing is measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synthetic", action="store_true", help="leave the test part alone")
    parser.add_argument(
        "--camera",
        action="store_true",
        help="synthetic defects that keep the camera's noise and are no sharper than it",
    )
    asked = parser.parse_args()
    if asked.camera and not asked.synthetic:
        parser.error("--camera is of synthetic defects; add --synthetic")
    for name in asked.sets:
        kinds = cells(asked.size) if name == "cells" else folder_set(Path(name), asked.size, test=not asked.synthetic)
        if asked.synthetic:
            kinds = made_of_training_images(kinds["train"], asked.seed, asked.camera)
        if asked.write:
            asked.write.mkdir(parents=True, exist_ok=True)
            np.savez(asked.write / f"{Path(name).name}.npz", allow_pickle=False, **kinds)
        if asked.write_fit:
            write_pngs(kinds["train"][parts_of(len(kinds["train"]), asked.seed)[2]], asked.write_fit)
        else:
            measure(Path(name).name, kinds, possible(asked.detectors), asked.seed, asked.models)


def possible(detectors: list[str]) -> list[str]:
    """Those whose members this machine can fit; a line about each other member."""
    names = dict.fromkeys(name for row in detectors for name in row.split(","))
    kept = {member.name for member in present([find_member(name) for name in names])}
    return [row for row in detectors if kept.issuperset(row.split(","))]


def folder_set(folder: Path, size: int, *, test: bool = True) -> dict[str, Pixels]:
    """Images by `train` and, of the test part where it is asked for, by kind; RGB where the first image is."""

    def read(part: Path) -> Pixels:
        files = sorted(file for file in part.iterdir() if file.suffix.lower() in IMAGE_FILES)
        return np.stack([shown(Image.open(file), size, channels) for file in files])

    first = next(file for file in sorted((folder / "train/good").iterdir()) if file.suffix.lower() in IMAGE_FILES)
    channels = 1 if Image.open(first).mode in ("L", "I", "I;16") else 3
    kinds = sorted(part for part in (folder / "test").iterdir() if part.is_dir()) if test else []
    return {"train": read(folder / "train/good"), **{part.name: read(part) for part in kinds}}


def made_of_training_images(train: Pixels, seed: int, camera: bool) -> dict[str, Pixels]:
    """A quarter of the training images, and defects made of them, in place of a test part."""
    order = np.random.default_rng(seed + 1).permutation(len(train))
    held, rest = order[: len(train) // 4], order[len(train) // 4 :]
    return {"train": train[rest], "good": train[held], **synthetic_defects(train[held], seed, camera=camera)}


def cells(size: int) -> dict[str, Pixels]:
    """Solar cells (Buerhop-Lutz et al. 2018): 1,131 functional ones to train, 377 to test, 715 sure defects."""
    import elpv_dataset

    folder = Path(str(elpv_dataset.__file__)).parent / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
    order = np.random.default_rng(0).permutation(sum(float(row[1]) == 0 for row in rows))
    good = [folder / row[0] for row in rows if float(row[1]) == 0]
    parts = {
        "train": [good[i] for i in order[:1131]],
        "good": [good[i] for i in order[1131:]],
        "defective": [folder / row[0] for row in rows if float(row[1]) == 1],
    }
    return {name: np.stack([shown(Image.open(file), size, 1) for file in files]) for name, files in parts.items()}


def shown(image: Image.Image, size: int, channels: int) -> Pixels:
    """The image as `prepare` stores it with data.resize: stretch."""
    return fit_image(image, size=size, channels=channels, resize="stretch")


def write_pngs(images: Pixels, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / f"{number:05d}.png")


def parts_of(count: int, seed: int) -> Parts:
    """The images of the validation part, of the calibration part, and those that densities are fitted on."""
    order = np.random.default_rng(seed).permutation(count)
    held = count // 5
    return order[:held], order[held : 2 * held], order[2 * held :]


def fitted_detector(
    train: Pixels,
    members: list[str],
    seed: int,
    folder: Path | None = None,
    parts: Parts | None = None,
    grouped: bool = False,
) -> tuple[Detector, Pixels]:
    """A detector of 60 % of the images, tails and spreads of 20 %, and the other 20 %, which it has not seen.

    The detector has no p-values yet. `folder`: of the models that members read. `parts`: the images, in the place of
    those of `parts_of`. `grouped`: they were drawn by groups.
    """
    validation, calibration, rest = parts or parts_of(len(train), seed)
    models, size = Models(*([] if folder is None else [folder])), train.shape[-1]

    def cache(rows: Pixels) -> FeatureCache:
        return FeatureCache(rows, models, size=size)

    quarter = len(rest) // 4
    data = FittingData(
        train=cache(train[rest[quarter:]]),
        sample=cache(train[rest[:quarter]]),
        all_train=train[rest],
        validation=cache(train[validation]),
        seed=seed,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
        grouped=grouped,
    )
    arrays: Arrays = fit_members([find_member(name) for name in members], data)
    facts = {
        "size": size,
        "channels": train.shape[1],
        "resize": "stretch",
        "false_discovery_rate": 0.1,
        "false_alarm_rate": 0.05,
        "class_names": [],
        "density": None,
        "members": members,
    }
    return Detector(facts, arrays | {"calibration.score": np.zeros(1)}, models), train[calibration]


def measure(name: str, kinds: dict[str, Pixels], detectors: list[str], seed: int, models: Path | None = None) -> None:
    """Fit every member once on kinds["train"], score the rest and print a table."""
    members = list(dict.fromkeys(member for names in detectors for member in names.split(",")))
    started = time.perf_counter()
    detector, calibration = fitted_detector(kinds["train"], members, seed, models)
    fitted = time.perf_counter() - started
    started, count = time.perf_counter(), 0
    scores: dict[str, dict[str, Floats]] = {}
    for kind, images in {"calibration": calibration, **kinds}.items():
        if kind == "train":
            continue
        scores[kind] = scored(detector, images, detectors)
        count += len(images)
    seconds = time.perf_counter() - started
    bad = [kind for kind in kinds if kind not in ("train", "good")]
    print(f"\n{name}: {len(kinds['train'])} good images to fit and calibrate on, {len(kinds['good'])} good test images")
    print(f"fitted in {fitted:.0f} s, {count / seconds:.1f} images/s scored")
    print(f"{'AUROC':36}" + "".join(f"{kind[:14]:>15}" for kind in [*bad, "all"]))
    rows = {row: {kind: scores[kind][row] for kind in ("good", *bad)} for row in detectors}
    rows |= floors({kind: kinds[kind] for kind in ("good", *bad)})
    for row, values in rows.items():
        found = [auroc(values["good"], values[kind]) for kind in bad]
        found.append(auroc(values["good"], np.concatenate([values[kind] for kind in bad])))
        print(f"{row:36}" + "".join(f"{figure:15.3f}" for figure in found))
    for row in detectors:
        p = p_values(np.sort(scores["calibration"][row]), np.concatenate([scores[kind][row] for kind in bad]))
        print(f"{row}: found at " + ", ".join(f"{level:.0%}: {(p <= level).mean():.0%}" for level in LEVELS))
        false_alarms("  flagged", scores, row)
        if f"map of {row}" in scores["good"]:
            false_alarms("  with an outline", scores, f"map of {row}")


def scored(detector: Detector, images: Pixels, detectors: list[str]) -> dict[str, Floats]:
    """The score of each detector, and the largest value of its map of places."""
    parts: dict[str, list[Floats]] = {}
    for start in range(0, len(images), CHUNK):
        features = detector.features(images[start : start + CHUNK])
        members = detector.member_scores(features)
        largest = {
            member.name: member.places(features, detector.fitted(member.name)).max((1, 2))
            for member in detector.members
            if member.places is not None
        }
        for row in detectors:
            names = row.split(",")
            parts.setdefault(row, []).append(detector.combine({name: members[name] for name in names}))
            if maps := [largest[name] for name in names if name in largest]:
                parts.setdefault(f"map of {row}", []).append(np.max(maps, axis=0))
    return {name: np.concatenate(values) for name, values in parts.items()}


def floors(kinds: dict[str, Pixels]) -> dict[str, dict[str, Floats]]:
    """Statistics that need no model, each in its better direction: what a figure has to beat."""
    result: dict[str, dict[str, Floats]] = {}
    for name, read in (("mean intensity", lambda x: x.mean((1, 2, 3))), ("WebP length", webp_nats)):
        values = {kind: np.asarray(read(images), dtype=np.float64) for kind, images in kinds.items()}
        bad = np.concatenate([v for kind, v in values.items() if kind != "good"])
        sign = 1.0 if auroc(values["good"], bad) >= 0.5 else -1.0
        result[f"floor: {name}"] = {kind: sign * v for kind, v in values.items()}
    return result


def false_alarms(what: str, scores: dict[str, dict[str, Floats]], row: str) -> None:
    """Print the share of good test images with p <= each level. Of a map the largest place decides."""
    calibration, good = np.sort(scores["calibration"][row]), scores["good"][row]
    n, told = len(calibration), []
    for level in LEVELS:
        if n < images_for(level):
            told.append(f"{level:.0%}: out of reach of {n} calibration images")
            continue
        # a rank among n is at most k = level (n + 1): the count of m images is beta-binomial (k, n + 1 - k)
        k = int(level * (n + 1) + 1e-9)
        low, high = stats.betabinom.ppf([0.005, 0.995], len(good), k, n + 1 - k) / len(good)
        realised = (p_values(calibration, good) <= level).mean()
        told.append(f"{level:.0%}: {realised:.1%} (interval {low:.1%} to {high:.1%})")
    print(f"{what} of {len(good)} good ones, asked " + "; ".join(told))


if __name__ == "__main__":
    main()
