"""How often the gate promotes equal, better and worse candidates, by simulation.

    python benchmarks/registry/gate_rates.py              every measure, 500 candidates a row
    python benchmarks/registry/gate_rates.py --runs 2000  narrower intervals

Candidates are compared by the gate's own rule with the margins of params.yaml. How much worse a candidate is, is known
because its values are drawn. Reads params.yaml and nothing else.

* bits: values of an image (bits/dim) are how hard the image is, which both models share, and noise of their own.
* detector: Gaussian scores of images as they are and of altered ones, correlated between the two detectors. For
  Gaussian scores of variance 1 that lie `shift` apart, AUROC = Phi(shift / sqrt(2)).
* power: the same with five kinds of altered images, the scores of calibration images, and the rule of `inbox`. A worse
  detector scores a share of the altered images like normal ones, so it ranks them worse as well: only what the rule
  finds is compared.
* samples: Gaussian features. Their FID to the real ones is the squared distance of the means.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest, norm

from densitywatch.arrays import Floats
from densitywatch.evaluation.measures.distances import frechet_of_counts
from densitywatch.params import Control, GateParams, Params, load_params
from densitywatch.registry.gate import compare_found, judge, margin_of
from densitywatch.registry.measuring_detectors import STREAMS, missed_by_rule
from densitywatch.registry.resampling import (
    DRAWS,
    Measurement,
    Missed,
    bootstrap_counts,
    mean_figures,
    one_figure,
    wrong_pairs,
)

WORSE = (-1.0, 0.0, 1.0, 2.0)
"""How much worse candidates are, in margins; a negative one is better."""
HARDNESS, NOISE = 0.85, 0.15
"""Standard deviations over images, bits/dim: of what both models share (as in metrics/pixelcnn.json) and of a model."""
AUROC, FID, FEATURES = 0.85, 10.0, 8
"""Of the champions; and numbers in a feature vector."""
CALIBRATION, SHIFTS = 6000, (0.5, 1.5, 2.5, 3.5, 4.5)
"""Calibration images, and by how much the five kinds of altered images score higher than normal ones."""
FOUND = {"batch": 0.42, "stream": 0.37}
"""What the rule finds of these, about."""
CONTROLS: tuple[Control, ...] = ("batch", "stream")
PARAMS = Path(__file__).parents[2] / "params.yaml"

Pair = Callable[[float, int, np.random.Generator, GateParams], tuple[Measurement, Measurement]]


@dataclass(frozen=True)
class Rate:
    """The share of simulated candidates that were promoted, and what the rule says that it is."""

    promoted: int
    runs: int
    expected: float

    @property
    def share(self) -> float:
        return self.promoted / self.runs

    def interval(self, confidence: float) -> tuple[float, float]:
        found = binomtest(self.promoted, self.runs).proportion_ci(confidence)
        return float(found.low), float(found.high)


def bits(worse: float, images: int, rng: np.random.Generator, rules: GateParams) -> tuple[Measurement, Measurement]:
    """Candidate and champion of a density, the candidate `worse` margins worse."""
    shared = HARDNESS * rng.standard_normal(images) + 3.0
    # heavier tails than a Gaussian; variance 5 / 3 before scaling
    own = NOISE / math.sqrt(2 * 5 / 3) * rng.standard_t(5, (2, images))
    lift = worse * rules.margin.bits
    values = shared + own[0] + lift, shared + own[1]
    new, old = (Measurement("bits/dim", float(v.mean()), "bits", mean_figures(v)) for v in values)
    return new, old


def detector(worse: float, images: int, rng: np.random.Generator, rules: GateParams) -> tuple[Measurement, Measurement]:
    """Candidate and champion of a detector, the candidate's AUROC `worse` margins lower."""

    def scored(auroc: float, shared: Floats, noise: Floats) -> Measurement:
        normal, outlying = math.sqrt(0.9) * shared + math.sqrt(0.1) * noise
        figures = wrong_pairs(normal, outlying + math.sqrt(2) * norm.ppf(auroc))
        return Measurement("error", one_figure(figures, images), "detector", figures)

    shared = rng.standard_normal((2, images))
    lower = AUROC - worse * rules.margin.detector
    new, old = (scored(auroc, shared, rng.standard_normal((2, images))) for auroc in (lower, AUROC))
    return new, old


def samples(worse: float, images: int, rng: np.random.Generator, rules: GateParams) -> tuple[Measurement, Measurement]:
    """Candidate and champion of a model that only draws samples, the candidate's FID `worse` margins higher."""
    real = torch.from_numpy(rng.standard_normal((images, FEATURES)))

    def drawn(fid: float) -> Measurement:
        features = rng.standard_normal((images, FEATURES)) + math.sqrt(fid / FEATURES)
        figures = frechet_of_counts(real, torch.from_numpy(features))
        return Measurement("FID", one_figure(figures, images), "samples", figures)

    return drawn(FID * (1 + worse * rules.margin.samples)), drawn(FID)


PAIRS: dict[str, Pair] = {"bits": bits, "detector": detector, "samples": samples}


def promoted(
    kind: str, worse: float, rules: GateParams, *, images: int, runs: int, seed: int = 0, draws: int = DRAWS
) -> Rate:
    """Simulate `runs` gates of one kind.

    `expected` is Phi((margin - difference) / error - z), the power of a one-sided test at `gate.confidence`. The error
    is the standard deviation of what is simulated: difference - margin, for a margin may be a share of the champion's
    figure.
    """
    rng = np.random.default_rng(seed)
    counts = bootstrap_counts(np.arange(images), seed, draws)
    passed, over = 0, []
    unit, share = margin_of(kind, rules)
    for _ in range(runs):
        new, old = PAIRS[kind](worse, images, rng, rules)
        passed += judge(new, old, rules, None, counts, images).passed
        over.append(new.value - old.value - unit - share * old.value)
    room = -np.mean(over) / np.std(over, ddof=1)
    return Rate(passed, runs, float(norm.cdf(room - norm.ppf(rules.confidence))))


def two_detectors(
    worse: float, images: int, rng: np.random.Generator, params: Params, control: Control, streams: int
) -> tuple[Missed, Missed]:
    """Candidate and champion, the candidate finding about `worse` margins less by the rule."""
    rule = params.model_copy(update={"inbox": params.inbox.model_copy(update={"control": control})})
    shared = [rng.standard_normal(count) for count in (CALIBRATION, images, images)]
    lost = worse * params.gate.margin.power / FOUND[control]
    blind = rng.random(images)
    shifts = np.array(SHIFTS)[np.arange(images) % len(SHIFTS)]

    def measured(share: float) -> Missed:
        calibration, normal, altered = (
            math.sqrt(0.9) * part + math.sqrt(0.1) * rng.standard_normal(len(part)) for part in shared
        )
        seen = altered + np.where(blind < share, 0.0, shifts)
        return missed_by_rule(np.sort(calibration), normal, seen, slice(None), rule, streams)

    return measured(max(0.0, lost)), measured(max(0.0, -lost))


def promoted_by_power(
    worse: float,
    params: Params,
    *,
    images: int,
    runs: int,
    control: Control,
    streams: int = STREAMS,
    seed: int = 0,
    draws: int = DRAWS,
) -> Rate:
    """The same as `promoted` for what the rule finds; `expected` follows from the differences that were simulated."""
    rng = np.random.default_rng(seed)
    counts = bootstrap_counts(np.arange(images), seed, draws)
    pairs = [two_detectors(worse, images, rng, params, control, streams) for _ in range(runs)]
    passed = sum(compare_found(new, old, params.gate, counts, images)[0] for new, old in pairs)
    over = [new.value - old.value - params.gate.margin.power for new, old in pairs]
    room = -np.mean(over) / np.std(over, ddof=1)
    return Rate(passed, runs, float(norm.cdf(room - norm.ppf(params.gate.confidence))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--power-runs", type=int, default=100, help="of each row of power, which takes longer")
    asked = parser.parse_args()
    params = load_params(PARAMS)
    print(f"{'measure':14} {'images':>6} {'worse by':>10} {'promoted':>9} {'95 % interval':>15} {'the rule says':>14}")
    for kind in PAIRS:
        for images in asked.images:
            for worse in WORSE:
                seen = images // 2 if kind == "detector" else images  # a detector scores each image twice
                row(kind, seen, worse, promoted(kind, worse, params.gate, images=seen, runs=asked.runs))
    for control in CONTROLS:
        for images in asked.images:
            for worse in WORSE:
                rate = promoted_by_power(worse, params, images=images // 2, runs=asked.power_runs, control=control)
                row(f"power, {control}", images // 2, worse, rate)


def row(measure: str, images: int, worse: float, rate: Rate) -> None:
    low, high = rate.interval(0.95)
    said = f"{worse:+.0f} margin" if worse else "equal"
    interval = f"{low:.3f} to {high:.3f}"
    print(
        f"{measure:14} {images:6} {said:>10} {rate.share:9.3f} {interval:>15} {rate.expected:14.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
