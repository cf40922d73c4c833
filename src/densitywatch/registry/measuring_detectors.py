"""What the gate measures of a detector: which defects it ranks too low, and which the rule in force does not find.

The defects are those of data/defects.py, put into the gate's own images. One is hard to see, so images get 1, 2, 4, 8
or 16 of them. Whatever the data, some of these are easy and some are hard, and two detectors can be told apart.

Where a judged draw of a moved stream calibrates (data/judged_draw.py), whether p-values hold and what the rule finds
are questions about that stream. They are asked of the draw's part for the gate. Which images rank too low is asked of
the older gate images as ever.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.defects import DEFECTS, spoiled
from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.reading import Images
from densitywatch.detector import conformal, detector
from densitywatch.detector.power import STREAM, power
from densitywatch.errors import DensitywatchError
from densitywatch.params import Params
from densitywatch.registry.floors import mean_image_errors
from densitywatch.registry.measuring import training_images
from densitywatch.registry.resampling import Measurement, Missed, bootstrap_counts, one_figure, wrong_pairs

NAME = "error on defects"
BATCH = 250
CHANCE = 1.63
"""Kolmogorov-Smirnov at 1 %: a well calibrated detector exceeds this in one of a hundred gates."""
STEPS = 5
"""Images have 1, 2, 4, ... defects, up to 2 to the power of STEPS - 1."""
FEWEST = 10
"""Images in which a defect shows, at least."""
SHARE = 0.05
"""Of the images of a batch, those that have defects."""
STREAMS = 20
"""Streams of STREAM batches that are simulated for each detector."""


@dataclass(frozen=True)
class Judged:
    """The judged draw of a stream that has moved: all that is there of the stream as it is now."""

    images: Pixels
    """Its part for the gate, (N, C, H, W)."""
    groups: npt.NDArray[np.int64]
    """(N,) the group of each of these."""
    calibration: Images
    """Its part that calibrates, one of each group."""


def measure_detector(
    folder: Path,
    images: Pixels,
    params: Params,
    root: Path,
    groups: npt.NDArray[np.int64] | None = None,
    judged: Judged | None = None,
    *,
    must_hold: bool = True,
) -> Measurement:
    """The share of pairs that the detector in `folder` puts in the wrong order: 1 - AUROC on images with defects.

    Each image is scored as it is, and with defects drawn with the seed of params. Foreign images are for the benchmark
    alone. `missed` of the measurement is the share of these images that the rule in force does not flag, `kinds` the
    measure on the images whose first defect is of a kind.

    must_hold: raise DensitywatchError when the detector's p-values do not hold on the images as they are, one of each
    group, since those of alike images are alike. Of a champion nobody asks it: one that no longer holds must not bar
    the way to its successor.

    judged: images of the stream as it is now, where a judged draw calibrates. Then p-values must hold on these, and
    `missed` is of these. There a champion that was calibrated on the stream of before would flag nearly all of them. So
    what is compared is what it would find if it were calibrated on the draw as the candidate is.
    """
    loaded = detector.load(folder)
    altered, rows = with_many_defects(images, params.seed)
    if len(rows) < FEWEST:
        raise DensitywatchError(
            f"a defect shows in {len(rows)} of the gate's {len(images)} images, which is too few to measure on"
        )
    normal, outlying = finite_scores(loaded, images), finite_scores(loaded, altered)
    if must_hold and judged is None:
        first = slice(None) if groups is None else one_of_each_group(groups, params.seed)
        _check_p_values(conformal.p_values(loaded.calibration, normal)[first], len(loaded.calibration))

    def of_scores(a: Floats, b: Floats) -> tuple[float, Callable[[Floats], Floats]]:
        figures = wrong_pairs(a, b, rows)
        return one_figure(figures, len(images)), figures

    def floor() -> Measurement:
        train = training_images(root, images.shape[-1])
        near, far = mean_image_errors(train, images), mean_image_errors(train, altered)
        # where altered images are the nearer ones, the trivial score is the distance with its sign turned
        value, figures = min(of_scores(near, far), of_scores(-near, -far), key=lambda found: found[0])
        return Measurement(NAME, value, "detector", figures)

    value, figures = of_scores(normal, outlying)
    if judged is None:
        missed = missed_by_rule(loaded.calibration, normal, outlying, rows, params)
    else:
        missed = _missed_of_judged(loaded, judged, params, must_hold=must_hold)
    return Measurement(NAME, value, "detector", figures, floor, missed, by_kind(normal, outlying, rows, groups))


def _missed_of_judged(loaded: detector.Detector, judged: Judged, params: Params, *, must_hold: bool) -> Missed:
    """What the rule does not find on the stream as it is now. Raises DensitywatchError as measure_detector does."""
    altered, rows = with_many_defects(judged.images, params.seed)
    if len(rows) < FEWEST:
        raise DensitywatchError(
            f"a defect shows in {len(rows)} of the gate's {len(judged.images)} judged images, which is too few to"
            " measure on; judge more images drawn at random"
        )
    normal, outlying = finite_scores(loaded, judged.images), finite_scores(loaded, altered)
    calibration = loaded.calibration
    if must_hold:
        first = one_of_each_group(judged.groups, params.seed)
        _check_p_values(conformal.p_values(calibration, normal)[first], len(calibration), "judged images")
    else:
        calibration = np.sort(finite_scores(loaded, judged.calibration))
    missed = missed_by_rule(calibration, normal, outlying, rows, params)
    counts = bootstrap_counts(judged.groups, params.seed)
    return replace(missed, judged=counts, independent=len(np.unique(judged.groups)))


def by_kind(
    normal: Floats, outlying: Floats, rows: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None = None
) -> dict[str, Measurement]:
    """The measure on the images whose first defect is of a kind, for each kind of which there are FEWEST images.

    normal: (N,) scores of images as they are. outlying: scores of those that `rows` names, with_many_defects. groups:
    (N,) the group of each image; each by itself where there is none.
    """
    found = {}
    groups = np.arange(len(normal)) if groups is None else groups
    for number, kind in enumerate(DEFECTS):
        of_kind = rows % len(DEFECTS) == number
        if of_kind.sum() >= FEWEST:
            figures = wrong_pairs(normal, outlying[of_kind], rows[of_kind])
            value, independent = one_figure(figures, len(normal)), len(np.unique(groups[rows[of_kind]]))
            found[kind] = Measurement(f"{NAME}: {kind}", value, "detector", figures, independent=independent)
    return found


def finite_scores(loaded: detector.Detector, images: Images) -> Floats:
    """Of images (N, C, H, W), (N,). Raises DensitywatchError for one that is not a finite number."""
    parts = [loaded.score(np.array(images[start : start + BATCH])).score for start in range(0, len(images), BATCH)]
    scores = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(scores).all():
        raise DensitywatchError(
            f"{int((~np.isfinite(scores)).sum())} of its {len(scores)} scores are not finite numbers"
        )
    return scores


def _check_p_values(p_values: Floats, calibration: int, which: str = "images") -> None:
    """Raises DensitywatchError when the p-values of normal images stray from uniform further than chance explains."""
    n, p = len(p_values), np.sort(p_values)
    distance = float(np.abs(p - (np.arange(n) + 0.5) / n).max())
    limit = CHANCE * math.sqrt(1 / n + 1 / calibration) + 1 / n + 1 / calibration
    if distance > limit:
        raise DensitywatchError(
            f"its p-values do not hold on the gate's {which} (they stray by {distance:.2f} where chance explains"
            f" {limit:.2f}); calibrate it again"
        )


def with_many_defects(images: Pixels, seed: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Copies of images (N, C, H, W) with 1, 2, 4, 8 or 16 defects each, and the numbers of the images in the set.

    All kinds of defects take turns, over the images and within an image. An image in which none shows is left out.
    """
    kinds, number = list(DEFECTS), np.arange(len(images))
    first, wanted = number % len(kinds), 2 ** (number // len(kinds) % STEPS)
    copies, shows = images.copy(), np.zeros(len(images), bool)
    for step in range(2 ** (STEPS - 1)):
        for turn in range(len(kinds)):
            rows = np.flatnonzero((first == turn) & (wanted > step))
            if len(rows):
                made, kept = spoiled(copies[rows], kinds[(turn + step) % len(kinds)], seed + step)
                copies[rows[kept]] = made
                shows[rows[kept]] = True
    return copies[shows], np.flatnonzero(shows).astype(np.int64)


def missed_by_rule(
    calibration: Floats,
    normal: Floats,
    outlying: Floats,
    rows: npt.NDArray[np.int64] | slice,
    params: Params,
    count: int = STREAMS,
) -> Missed:
    """The share of images with defects that the rule in force does not flag, where they are SHARE of a batch.

    The rule is that of params.inbox at detector.false_discovery_rate, for both detectors. Streams of two detectors that
    scored the same images are made of the same images.

    calibration: scores, sorted. normal: (N,) scores. outlying: scores of those of the same images that `rows` names,
    altered. count: how many streams are simulated.

    The figures of resampled images cost no further simulation. On average the rule flags a certain share of the
    outlying images, so it works like a limit on their scores that as many lie above. What is resampled is the images
    above that limit, and the streams, whose luck differs.
    """
    rule = partial(
        power,
        calibration,
        normal,
        outlying,
        rate=params.detector.false_discovery_rate,
        share=SHARE,
        control=params.inbox.control,
        alike=params.inbox.alike,
        strict=params.inbox.strict,
        batches=STREAM,
    )
    streams = np.array([rule(seed=params.seed + number).found for number in range(count)])
    found = float(streams.mean())
    order = np.argsort(-outlying, kind="stable")
    flagged = np.zeros(len(outlying))
    whole = int(found * len(outlying))
    flagged[order[:whole]] = 1.0
    if whole < len(outlying):
        flagged[order[whole]] = found * len(outlying) - whole

    def figures(counts: Floats) -> Floats:
        # every sample has a luck of its own, and the other detector has the same one in the same sample
        of_counts = zlib.crc32(np.ascontiguousarray(counts).tobytes())
        luck = np.random.default_rng([params.seed, of_counts]).multinomial(
            count, np.full(count, 1 / count), len(counts)
        )
        taken = counts[:, rows]
        of_images = taken @ flagged / np.maximum(taken.sum(1), 1)
        return np.asarray(1.0 - of_images - (luck @ streams / count - found))

    return Missed(1.0 - found, figures, len(calibration))
