"""Do the promised rates hold for scenes that were never seen? `python benchmarks/detector/scenes.py`; about a minute.

A folder of 2,000 frames is made from Fashion-MNIST's test images (data/raw): 200 scenes, each one image in ten frames
that are slightly moved and noisy. It is fetched, prepared, and a small detector is calibrated on it, once for each
setting of `data.group`. Then frames of other scenes are scored. The table has the share of them with p <= 1, 5 and
10 %, and next to it the range in which 95 % of such shares lie when the promise holds: of m new scenes, one frame each,
beta-binomial for a calibration set of K scenes or images.

That is one calibration set. A second table repeats it without a network, with other scenes each time: grouping, splits
and the distance to the nearest training image, and the mean of the shares next to what is promised. The names of the
frames hold the scene, or are running numbers as of a film. No setting is chosen by these figures. How much frames move
and how noisy they are was reduced once, after a first look at them.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from other_data import train
from PIL import Image as Pillow
from scipy import ndimage

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.dataset import open_split, read_facts
from densitywatch.data.fetch import fetch
from densitywatch.data.groups.choose import grouped
from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.groups.likeness import Looks
from densitywatch.data.image_table import Image, add_images, image_table
from densitywatch.data.prepare import PREPARED, prepare
from densitywatch.data.raw import read_idx
from densitywatch.data.splits import assign
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.conformal import p_values
from densitywatch.detector.detector import load
from densitywatch.detector.realised_alarms import LEVELS, expected_range
from densitywatch.params import DataParams, Params, load_params

TOP = Path(__file__).parents[2]
SCENES, FRAMES, NEW = 200, 10, 1000
NOISE = 3.0
"""Of a frame, in grey levels (standard deviation)."""
SHARES = {"validation": 0.1, "calibration": 0.5, "gate": 0.05, "test": 0.05}
"""Half of the scenes calibrate: with 100 of them the smallest p-value is just below 1 %."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=TOP / "params.yaml")
    parser.add_argument("--raw", type=Path, default=TOP / "data/raw", help="the folder of Fashion-MNIST's files")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the small PixelCNN")
    parser.add_argument("--repeats", type=int, default=10, help="folders of the second table")
    given = parser.parse_args()
    published = np.asarray(read_idx(given.raw / "t10k-images-idx3-ubyte"))
    pictures = published[np.random.default_rng(0).permutation(len(published))]
    new = np.concatenate([frames(picture, 1, seed=SCENES + n) for n, picture in enumerate(pictures[SCENES:][:NEW])])
    print(f"{SCENES} scenes of {FRAMES} frames; one frame of each of {NEW} new scenes\n")
    print(f"{'data.group':16}{'rule found':28}{'score':22}{'n':>5}" + "".join(f"{f'p <= {a:.0%}':>22}" for a in LEVELS))
    for setting in ("auto", "near_duplicates", None):
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            write_folder(root / "frames", pictures[:SCENES])
            params = with_data(load_params(given.params), setting)
            for name, calibration, scores in scored(params, root, new, given.steps):
                rule = read_facts(root / PREPARED).groups.rule
                print(
                    f"{setting or 'null':16}{rule or 'none':28}{name:22}{len(calibration):5}" + row(calibration, scores)
                )

    repeated(published, given.repeats)


def repeated(pictures: NDArray[np.uint8], repeats: int) -> None:
    """Print the mean shares over `repeats` folders, and the share that is promised for the number of scores."""
    data = DataParams.model_validate({"source": "folder", "address": "frames", "size": 14, "channels": 1, **SHARES})
    names = {"scene in the name": "scene_{0:03d}_frame_{1}.png", "running numbers": "frame_{2:05d}.png"}
    print(f"\nmean of {repeats} folders, nearest training image; in brackets the promise")
    print(f"{'data.group':12}{'names':20}{'rule found':28}{'n':>7}" + "".join(f"{f'p <= {a:.0%}':>26}" for a in LEVELS))
    for setting, kind in (("auto", "scene in the name"), ("auto", "running numbers"), (None, "running numbers")):
        shares, promised, sizes = [], [], []
        for repeat in range(repeats):
            drawn = np.random.default_rng(repeat).permutation(len(pictures))
            known = np.concatenate([frames(pictures[i], FRAMES, seed=int(i)) for i in drawn[:SCENES]])
            new = np.concatenate([frames(pictures[i], 1, seed=int(i)) for i in drawn[SCENES : SCENES + NEW // 2]])
            paths = [names[kind].format(n // FRAMES, n % FRAMES, n) for n in range(len(known))]
            with image_table(None) as table:
                add_images(
                    table,
                    [
                        Image(n, path, sha256=hashlib.sha256(known[n].tobytes()).hexdigest())
                        for n, path in enumerate(paths)
                    ],
                )
                Looks.of(known).write(table, 0)
                found = grouped(setting, table)
                assign(table, data, repeat, by_groups=found.rule is not None)
                rows = "SELECT number, set_number FROM placed WHERE split = ? ORDER BY place"
                ranked, groups = np.array(table.execute(rows, ("calibration",)).fetchall()).T
                trained_on, _ = np.array(table.execute(rows, ("train",)).fetchall()).T
            ranked = ranked[one_of_each_group(groups, repeat)] if found.rule is not None else ranked
            train_images = known[trained_on]
            scores = np.sort(nearest(known[ranked], train_images))
            p = p_values(scores, nearest(new, train_images))
            shares.append([(p <= level).mean() for level in LEVELS])
            promised.append([np.floor(level * (len(scores) + 1) + 1e-9) / (len(scores) + 1) for level in LEVELS])
            sizes.append(len(scores))
        error = np.std(shares, axis=0, ddof=1) / np.sqrt(repeats)
        cells = [
            f"{share:.3f} +- {e:.3f} ({promise:.3f})"
            for share, e, promise in zip(np.mean(shares, axis=0), error, np.mean(promised, axis=0), strict=True)
        ]
        rule = found.rule or "none"
        print(f"{setting or 'null':12}{kind:20}{rule:28}{np.mean(sizes):7.0f}" + "".join(f"{c:>26}" for c in cells))


def row(calibration: Floats, scores: Floats) -> str:
    p = p_values(np.sort(calibration), scores)
    cells = []
    for level in LEVELS:
        low, high = expected_range(level, len(calibration), len(p))
        cells.append(f"{(p <= level).mean():.3f} ({low:.3f}-{high:.3f})")
    return "".join(f"{cell:>22}" for cell in cells)


def scored(params: Params, root: Path, new: Pixels, steps: int) -> list[tuple[str, Floats, Floats]]:
    """Name, calibration scores and scores of the new frames: of the detector, and of a score that remembers."""
    fetch(params, root)
    prepare(params, root)
    train(params, root, steps)
    calibrate(params, root)
    detector = load(root / "models" / "detector")
    prepared = root / PREPARED
    known = np.array(open_split(prepared, "train").images)
    calibration = np.array(open_split(prepared, "calibration").one_of_each_group(params.seed).images)
    return [
        ("detector", detector.calibration, detector.score(new).score),
        ("nearest training image", nearest(calibration, known), nearest(new, known)),
    ]


def nearest(images: Pixels, known: Pixels) -> Floats:
    """The distance to the nearest known image. It remembers, so it shows that training and calibration share scenes."""
    flat, others = (np.reshape(x, (len(x), -1)).astype(np.float32) for x in (images, known))
    squares = (flat**2).sum(1)[:, None] + (others**2).sum(1) - 2 * flat @ others.T
    return np.asarray(np.sqrt(np.maximum(squares, 0).min(axis=1)), dtype=np.float64)


def with_data(params: Params, group: str | None) -> Params:
    """Small and quick: images of 14 pixels, a few seconds of training."""
    data: dict[str, Any] = {"source": "folder", "address": "frames", "group": group, "size": 14, "channels": 1}
    small = {"members": ("composition", "gradient_arrangement"), "small_network_steps": 50}
    return params.model_copy(
        update={
            "data": DataParams(**{**params.data.model_dump(), **data, **SHARES}),
            "detector": params.detector.model_copy(update=small),
        }
    )


def write_folder(folder: Path, pictures: NDArray[np.uint8]) -> None:
    """One PNG a frame, its name by scene and frame."""
    folder.mkdir()
    for scene, picture in enumerate(pictures):
        for number, frame in enumerate(frames(picture, FRAMES, seed=scene, size=28)):
            Pillow.fromarray(frame[0]).save(folder / f"scene_{scene:03d}_frame_{number:02d}.png")


def frames(picture: NDArray[np.uint8], count: int, *, seed: int, size: int = 14) -> Pixels:
    """Frames of one scene: the picture moved by up to a quarter of a pixel, and noisy; (count, 1, size, size)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        moved = ndimage.shift(picture.astype(np.float64), rng.uniform(-0.25, 0.25, 2), order=1)
        noisy = (moved + rng.normal(0.0, NOISE, picture.shape)).clip(0, 255).round().astype(np.uint8)
        image = Pillow.fromarray(noisy)
        if size != image.width:  # as `prepare` resizes it
            image = image.resize((size, size), Pillow.Resampling.LANCZOS, reducing_gap=3.0)
        found.append(np.asarray(image))
    return np.stack(found)[:, None]


if __name__ == "__main__":
    main()
