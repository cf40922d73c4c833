"""The drift test over streams of batches: false alarms of normal streams, and the delay until a change is seen.

    python benchmarks/detector/drift_over_a_stream.py alarms     simulated normal streams; reads nothing
    python benchmarks/detector/drift_over_a_stream.py delay      blur, brightness +5 %, another class in 5 %
    python benchmarks/detector/drift_over_a_stream.py            both

`alarms`: streams of `--batches` batches of `--images` images, in scenes of 1 to 20 frames that are nearly equal. For
every promised share of streams, the share with any alarm and its 95 % interval (Clopper-Pearson).

`delay`: batches until the alarm, the first changed one counted in, from `models/detector` and images of `--split` in
`data/prepared`. Streams are drawn from these images with replacement; so are calibration images. "Another class": as in
the benchmark's folds, the members are fitted anew on a small budget without one class, whose calibration images then
come in among those of the other classes. A stream has `--before` normal batches before the change, or none. `-` is no
alarm within `--within` batches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from densitywatch.arrays import Floats, Pixels
from densitywatch.batches.chunks import sharpness
from densitywatch.data.dataset import open_split, read_info
from densitywatch.detector import detector
from densitywatch.detector.conformal import p_values
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import find_member
from densitywatch.detector.scores.small_density import fit_small_density, load_small_density
from densitywatch.detector.stream_drift import HIGH, LOW, Finding, Look, follow, look
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise
from densitywatch.params import load_params

SCENES = (1, 5, 10, 20, None)
"""Frames a scene; None: every batch of a stream has its own number from 1 to 20."""
ALIKE = 0.99
"""Correlation of the scores of two frames of one scene, before the square root."""
CALIBRATION = 6000
CLASSES = (0, 1, 5, 8)
"""Classes that are held out in turn. The AUROC of such a detector is 0.77, 0.66, 0.85 and 0.98."""
OF_IMAGES = ("bits_per_dim", "brightness", "sharpness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["alarms", "delay"])
    parser.add_argument("--streams", type=int, default=100, help="normal streams of a row")
    parser.add_argument("--frames", type=int, help="this row of normal streams alone; 0 for the mixed one")
    parser.add_argument("--batches", type=int, default=2880)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--changed", type=int, default=20, help="changed streams of a row")
    parser.add_argument("--before", type=int, default=300)
    parser.add_argument("--within", type=int, default=300)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--root", type=Path, default=Path(), help="the project with models/ and data/prepared/")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.part != "delay":
        alarms(asked)
    if asked.part != "alarms":
        delay(asked)


def alarms(asked: argparse.Namespace) -> None:
    print(f"{asked.streams} normal streams a row, {asked.batches} batches of {asked.images} images", flush=True)
    print(f"{'frames a scene':16}{'promised':>10}{'streams with an alarm':>24}{'95 % interval':>18}{'seconds':>9}")
    for scene in SCENES if asked.frames is None else (asked.frames or None,):
        rng, started, seen = np.random.default_rng([asked.seed, scene or 0]), time.monotonic(), {0.01: 0, 0.1: 0}
        for _ in range(asked.streams):
            looks = normal_stream(rng, asked.batches, asked.images, scene)
            # bounds and the evidence that is asked for are both stricter at the smaller share: no alarm at 0.1, none at
            # 0.01 either
            for promised in (0.1, 0.01):
                found = follow(looks, CALIBRATION, promised)
                if found.alarm is None:
                    break
                seen[promised] += 1
        for promised, count in seen.items():
            low, high = stats.binomtest(count, asked.streams).proportion_ci(0.95)
            name = "1 to 20, mixed" if scene is None else str(scene)
            share = f"{count / asked.streams:.4f}"
            seconds = time.monotonic() - started
            print(f"{name:16}{promised:>10}{share:>24}{low:>11.4f}, {high:.4f}{seconds:>8.0f}", flush=True)


def normal_stream(rng: np.random.Generator, batches: int, images: int, scene: int | None) -> list[Look]:
    """Looks at normal batches whose scores, and numbers of every image, are normal variables; frames are alike."""
    calibration = np.sort(rng.normal(size=CALIBRATION))
    which = np.stack([frames(rng, images, scene) for _ in range(batches)])
    scores, other = (
        ALIKE * np.take_along_axis(rng.standard_normal((batches, images)), which, axis=1)
        + np.sqrt(1 - ALIKE**2) * rng.standard_normal((batches, images))
        for _ in range(2)
    )
    numbers = dict(zip(OF_IMAGES, (-scores, other, scores + other), strict=True))
    ties = rng.uniform(size=batches)
    p = p_values(calibration, scores.ravel()).reshape(scores.shape)
    looks = all_looks(scores, p, numbers, calibration, ties)
    one = {name: values[0] for name, values in numbers.items()}
    assert looks[0] == look(scores[0], p[0], one, calibration, tie=float(ties[0]))
    return looks


def all_looks(scores: Floats, p: Floats, numbers: dict[str, Floats], calibration: Floats, ties: Floats) -> list[Look]:
    """`look` at many batches of one size at once, which takes a fifth of the time; every array is (batches, images)."""
    n, images = len(calibration), scores.shape[1]
    places = [(scores > calibration[n - max(1, round(share * n))]) for share in HIGH]
    places += [(scores < calibration[max(1, round(share * n)) - 1]) for share in LOW]
    shares = np.stack([place.sum(axis=1) / images for place in places], axis=1)
    measures = [-np.log(p).mean(axis=1), np.abs(2 * p - 1).mean(axis=1), *(x.mean(axis=1) for x in numbers.values())]
    return [
        Look(images, tuple(row), tuple(values), tie)
        for row, values, tie in zip(shares.tolist(), np.stack(measures, axis=1).tolist(), ties.tolist(), strict=True)
    ]


def frames(rng: np.random.Generator, images: int, scene: int | None) -> NDArray[np.intp]:
    """The number of every image's scene, (images,)."""
    return np.arange(images) // (int(rng.integers(1, 21)) if scene is None else scene)


def delay(asked: argparse.Namespace) -> None:
    print(
        f"batches of {asked.images}, promise 0.01, median of {asked.changed} streams (10 %, 90 %), {asked.split} images"
    )
    print(f"{'change':28}{'frames a scene':>16}{'after ' + str(asked.before):>20}{'from the first':>20}", flush=True)
    for name, normal, changed, share in changes(asked):
        for scene in (1, 10):
            cells = []
            for before in (asked.before, 0):
                rng = np.random.default_rng([asked.seed, scene, before])
                found = [one_delay(rng, normal, changed, share, scene, before, asked) for _ in range(asked.changed)]
                cells.append(in_a_cell(found))
            print(f"{name:28}{scene:>16}{cells[0]:>20}{cells[1]:>20}", flush=True)


def in_a_cell(delays: list[float]) -> str:
    """Median, and in brackets the 10 % and 90 % quantiles; - for no alarm."""
    found = np.quantile(delays, [0.5, 0.1, 0.9], method="inverted_cdf")
    shown = ["-" if value == np.inf else f"{value:.0f}" for value in found]
    return f"{shown[0]} ({shown[1]}, {shown[2]})"


def one_delay(
    rng: np.random.Generator,
    normal: Floats,
    changed: Floats,
    share: float,
    scene: int,
    before: int,
    asked: argparse.Namespace,
) -> float:
    """Batches until an alarm of a stream in which, after `before` batches, a share of the scenes is `changed`."""
    calibration = np.sort(rng.choice(normal[:, 0], CALIBRATION))
    shape = (before + asked.within, asked.images)
    rows = normal[rng.integers(len(normal), size=shape)]
    new = rng.uniform(size=shape) < share
    new[:before] = False
    rows[new] = changed[rng.integers(len(changed), size=int(new.sum()))]
    rows = rows[:, frames(rng, asked.images, scene)]  # frames of one scene are equal
    scores = rows[..., 0]
    p = p_values(calibration, scores.ravel()).reshape(scores.shape)
    numbers = {name: rows[..., 1 + k] for k, name in enumerate(OF_IMAGES)}
    looks = all_looks(scores, p, numbers, calibration, rng.uniform(size=len(scores)))
    return after_the_change(follow(looks, CALIBRATION, 0.01), before)


def after_the_change(found: Finding, before: int) -> float:
    """Batches from the change to the alarm; an alarm before it counts as none."""
    return np.inf if found.alarm is None or found.alarm < before else float(found.alarm - before + 1)


def changes(asked: argparse.Namespace) -> Iterator[tuple[str, Floats, Floats, float]]:
    """Name, rows of normal images, rows of changed images, and the share of scenes that changes."""
    prepared = asked.root / "data" / "prepared"
    images = np.array(open_split(prepared, asked.split).images[:3000])
    loaded = detector.load(asked.root / "models" / "detector")

    def rows(of: Pixels) -> Floats:
        parts = [loaded.score(of[start : start + 250]) for start in range(0, len(of), 250)]
        scores = np.concatenate([part.score for part in parts])
        return with_numbers(scores, np.concatenate([part.bits_per_dim for part in parts]), of)

    normal = rows(images)
    brighter = np.clip(np.rint(images * 1.05), 0, 255).astype(np.uint8)
    yield "brightness +5 %", normal, rows(brighter), 1.0
    blurred = np.rint(ndimage.gaussian_filter(images.astype(float), (0, 0, 0.7, 0.7))).astype(np.uint8)
    yield "blur, sigma 0.7 pixels", normal, rows(blurred), 1.0
    for label in CLASSES:
        yield held_out(label, asked)


def with_numbers(scores: Floats, bits: Floats, images: Pixels) -> Floats:
    """A row for each image: score, bits/dim, brightness, sharpness."""
    brightness = images.reshape(len(images), -1).mean(axis=1) / 255
    return np.stack([scores, bits, brightness, [sharpness(image) for image in images]], axis=1)


def held_out(label: int, asked: argparse.Namespace) -> tuple[str, Floats, Floats, float]:
    """Members fitted without a class; its images come in. The normal ones are calibration images of the others."""
    params, prepared = load_params(asked.root / "params.yaml"), asked.root / "data" / "prepared"
    train, validation, normal = (
        (split := open_split(prepared, name)).images[:][np.flatnonzero(split.labels != label)[:most]]
        for name, most in (("train", 6000), ("validation", 2000), ("calibration", 10_000))
    )
    others = open_split(prepared, "calibration")
    foreign = others.images[:][others.labels == label]
    small = fit_small_density(train, channels=12, dilations=(1, 2), steps=60, mutation=0.0, seed=params.seed)
    models = Models(loaded={"pixelcnn": load_small_density(small)})
    data = FittingData(
        train=FeatureCache(train[:5000], models),
        sample=FeatureCache(train[5000:], models),
        all_train=train,
        validation=FeatureCache(validation, models),
        seed=params.seed,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
    )
    caches = [FeatureCache(images, models) for images in (normal, foreign)]
    found: list[list[Floats]] = [[], []]
    for name in params.detector.members:
        member = find_member(name)
        if member.needs_declared or not set(member.reads) <= set(models):
            continue
        fitted = member.fit(data) if member.fit else {}
        tail = fit_tail(np.asarray(member.score(data.validation, fitted), dtype=np.float64))
        for surprises, cache in zip(found, caches, strict=True):
            surprises.append(tail_surprise(np.asarray(member.score(cache, fitted), dtype=np.float64), tail))
    bits = [
        np.asarray(cache.nll("pixelcnn")) / (np.log(2) * images[0].size)
        for cache, images in zip(caches, (normal, foreign), strict=True)
    ]
    rows = [with_numbers(*three) for three in zip(map(combined, found), bits, (normal, foreign), strict=True)]
    return f"{read_info(prepared).class_names[label]} in 5 %", rows[0], rows[1], 0.05


if __name__ == "__main__":
    main()
