"""What is realised in a stream of batches, by simulation: the share of false alarms by each rule, and what is found.

    PYTHONPATH=src:. python benchmarks/detector/stream_of_batches.py --out streams.md
    PYTHONPATH=src:. python benchmarks/detector/stream_of_batches.py --year --streams 5

A stream has 1,000 batches. 98 of 100 hold normal images alone, the others have 1 to 5 outliers. Each stream has a
calibration set of its own with 6,000 images. Normal scores are standard normal; images of one scene share their score.
Perfect outliers score above everything, realistic ones are normal with a mean of 3.5. The intervals are of the mean
over streams, at 95 % (1.96 standard errors).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densitywatch.detector.conformal import benjamini_hochberg, conditional_p_values, p_values
from densitywatch.detector.stream import Past, after, decide

RATE, CALIBRATION, CLEAN = 0.1, 6000, 0.98
Flagger = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Cell:
    """One kind of stream."""

    images: int
    alike: int = 1
    shift: float = 100.0
    batches: int = 1000
    clean: float = CLEAN
    most: int = 5
    """Outliers in a batch that has any: 1 to this many."""


def batch_rule(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    return benjamini_hochberg(p, RATE)


def strict_rule(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    return benjamini_hochberg(conditional_p_values(p, CALIBRATION), RATE)


def stream_rule(*, alike: int = 1, strict: bool = False) -> Flagger:
    past = Past()

    def flag(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        nonlocal past
        found = decide(p, CALIBRATION, RATE, past, alike=alike, strict=strict)
        past = after(past, int(found.flags.sum()), found.charged)
        return found.flags

    return flag


def batch_bh() -> Flagger:
    """BatchBH (Zrnic et al. 2020, algorithm 1), its weights proportional to t^-1.6 as in the R package onlineFDR."""
    weights = 1.0 / np.arange(1, 200_001) ** 1.6
    weights /= weights.sum()
    levels, larger, found, used = [], [], [], 0.0

    def flag(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        nonlocal used
        used += RATE * weights[len(found)]
        n, counts, whole = len(p), np.array(found), sum(found)
        spent = sum(np.array(levels) * np.array(larger) / (np.array(larger) + whole - counts)) if found else 0.0
        level = float(np.clip((used - spent) * (n + whole) / n, 0.0, 1.0))
        flags = benjamini_hochberg(p, level) if 0 < level < 1 else np.zeros(n, dtype=bool)
        with_zero = p.copy()
        with_zero[p.argmax()] = 0.0  # the most that one p-value of 0 would have flagged
        levels.append(level)
        larger.append(int(benjamini_hochberg(with_zero, level).sum()) if 0 < level < 1 else 1)
        found.append(int(flags.sum()))
        return flags

    return flag


def rules(cell: Cell, *, all_rules: bool = True) -> dict[str, Callable[[], Flagger]]:
    """The rules to compare in this cell; each stream starts its own."""
    made: dict[str, Callable[[], Flagger]] = {"batch": lambda: batch_rule}
    if all_rules:
        made |= {"batch, strict": lambda: strict_rule, "BatchBH": batch_bh}
    made["stream"] = lambda: stream_rule(alike=cell.alike)
    made["stream, strict"] = lambda: stream_rule(alike=cell.alike, strict=True)
    if cell.alike > 1:
        made["stream, scenes not declared"] = stream_rule
    return made


def simulate(cell: Cell, streams: int, seed: int, *, all_rules: bool = True) -> dict[str, NDArray[np.float64]]:
    """Rule -> (streams, 3): pooled share of false flags, mean of the batches' shares, share of outliers found."""
    made = rules(cell, all_rules=all_rules)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in made}
    for stream in range(streams):
        rng = np.random.default_rng([seed, stream])
        calibration = np.sort(rng.normal(size=CALIBRATION))
        flaggers = {name: make() for name, make in made.items()}
        counts = {name: np.zeros((cell.batches, 2)) for name in made}
        outliers = 0
        for batch in range(cell.batches):
            scores = np.repeat(rng.normal(size=-(-cell.images // cell.alike)), cell.alike)[: cell.images]
            known = min(cell.images, int(rng.integers(1, cell.most + 1))) if rng.uniform() >= cell.clean else 0
            outlier = np.zeros(cell.images, dtype=bool)
            outlier[rng.choice(cell.images, known, replace=False)] = True
            scores[outlier] = rng.normal(size=known) + cell.shift
            p = p_values(calibration, scores)
            for name, flagger in flaggers.items():
                flags = flagger(p)
                counts[name][batch] = (flags & ~outlier).sum(), (flags & outlier).sum()
            outliers += known
        for name, count in counts.items():
            wrong, right = count.sum(axis=0)
            share = count[:, 0] / np.maximum(1, count.sum(axis=1))
            results[name].append((wrong / max(1, wrong + right), share.mean(), right / max(1, outliers)))
    return {name: np.array(rows) for name, rows in results.items()}


def row(cell: Cell, name: str, values: NDArray[np.float64]) -> str:
    means, errors = values.mean(axis=0), 1.96 * values.std(axis=0) / np.sqrt(len(values))
    figures = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(means, errors, strict=True)]
    outliers = "perfect" if cell.shift > 10 else "realistic"
    return f"| {cell.images:,} | {cell.alike} | {outliers} | {name} | {' | '.join(figures)} |"


HEAD = (
    "| images a batch | alike | outliers | rule | pooled share of false flags | mean of the batches' shares | found |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--images", type=int, nargs="*", default=[30, 60, 400, 5000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--year", action="store_true", help="A year of batches of 60, one each 15 minutes.")
    parser.add_argument(
        "--few", action="store_true", help="Leave out the strict batch rule and BatchBH, which is slow."
    )
    parser.add_argument("--common", action="store_true", help="Every batch has outliers: 1 to 10 in 100 of its images.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.year:
        cells = [Cell(60, batches=35_040), Cell(60, batches=35_040, clean=1.0)]
    elif given.common:
        cells = [Cell(n, shift=s, batches=100, clean=0.0, most=n // 10) for n in given.images for s in (100.0, 3.5)]
    else:
        cells = [Cell(n, alike, shift) for n in given.images for alike in (1, 5, 20) for shift in (100.0, 3.5)]
    lines = [HEAD]
    for cell in cells:
        streams = max(10, given.streams // 4) if cell.images > 1000 and not given.year else given.streams
        for name, values in simulate(cell, streams, given.seed, all_rules=not (given.few or given.year)).items():
            lines.append(row(cell, name, values))
            print(lines[-1], flush=True)
        if given.out:
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    p = np.random.default_rng(0).integers(1, CALIBRATION + 2, 100_000) / (CALIBRATION + 1)
    started = time.perf_counter()
    decide(p, CALIBRATION, RATE, Past())
    print(f"a batch of 100,000 is decided in {time.perf_counter() - started:.3f} s")


if __name__ == "__main__":
    main()
