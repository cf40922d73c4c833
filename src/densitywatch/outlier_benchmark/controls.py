"""What the networks are worth: the detector with untrained networks, and without any.

A member that reads a network earns its place only when both are clearly worse (docs/lab/detector.md). The rows are on
equal terms: the same images to fit on, the same rule of combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.calibrate import fit_member
from densitywatch.detector.detector import DECLARED_MEMBER, Detector
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise
from densitywatch.progress import say

UNTRAINED, NO_NETWORK = "detector, networks untrained", "detector, no network"
"""Names of the rows."""
CONTROLS = {UNTRAINED: "untrained", NO_NETWORK: "no_network"}
"""Row -> its name in metrics/outliers.json."""
RESAMPLES = 200
"""Bootstrap resamples for the intervals of paired differences."""


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A network of the same form with the weights that its training would start from."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: nn.Module = type(model)(model.settings, channels=model.channels, size=model.size, classes=model.classes)
    return twin.eval()


def control_rows(
    detector: Detector,
    data: FittingData,
    images: Mapping[str, FeatureCache],
    scores: Mapping[str, Mapping[str, Floats]],
    most: int | None = None,
) -> dict[str, dict[str, Floats]]:
    """Row -> kind of image -> score: UNTRAINED and NO_NETWORK, each where it makes sense.

    `scores` are those of the detector's own members. What reads a network is fitted anew on `data` with an untrained
    one, which then reads the first `most` images of each kind; declared transformations are left out of both rows.
    """
    members = [member for member in detector.members if member.name != DECLARED_MEMBER]
    readers = [member for member in members if member.reads]
    surprises = {
        member.name: {kind: detector.surprise(member.name, scores[member.name][kind]) for kind in images}
        for member in members
    }
    rows: dict[str, dict[str, Floats]] = {}
    if not readers:
        return rows
    rest = [surprises[member.name] for member in members if not member.reads]
    if rest:
        rows[NO_NETWORK] = {kind: combined([found[kind] for found in rest]) for kind in images}
    say("benchmark: the detector with untrained networks")
    names = sorted({name for member in readers for name in member.reads})
    models = Models(loaded={name: untrained(detector.models[name], data.seed) for name in names})
    blind = replace(
        data,
        train=_with(data.train, models),
        sample=_with(data.sample, models),
        validation=_with(data.validation, models),
    )
    seen = {kind: _with(features.first(most or len(features)), models) for kind, features in images.items()}
    rest = [{kind: found[kind][:most] for kind in images} for found in rest]
    for member in readers:
        fitted: Arrays = fit_member(member, blind)
        tail = fit_tail(np.asarray(member.score(blind.validation, fitted), dtype=np.float64))
        rest.append({kind: tail_surprise(member.score(features, fitted), tail) for kind, features in seen.items()})
    rows[UNTRAINED] = {kind: combined([found[kind] for found in rest]) for kind in images}
    return rows


def gains(
    scores: Mapping[str, Mapping[str, Floats]], detector: str, normal: str, *, seed: int
) -> dict[str, list[float]]:
    """Control -> [value, low, high] of mean AUROC over all kinds, the row `detector` minus the control.

    A control that read the first images of a kind is held against the detector's scores of the same ones.
    """
    kinds = [kind for kind in scores[detector] if kind != normal]
    result = {}
    for row in CONTROLS:
        if row in scores:
            same = {kind: values[: len(scores[row][kind])] for kind, values in scores[detector].items()}
            result[row] = paired_gain(same, scores[row], normal, kinds, seed)
    return result


def _with(features: FeatureCache, models: Models) -> FeatureCache:
    """The same images, read by other models."""
    return FeatureCache(features.source, models, features.batch_size, features.size)


def paired_gain(
    better: Mapping[str, Floats], other: Mapping[str, Floats], normal: str, kinds: list[str], seed: int
) -> list[float]:
    """[value, low, high]: mean AUROC of `better` over `kinds`, minus that of `other`, and its interval of 95 %.

    The interval is from resamples of the normal images and of the outliers. Where every image is there in every kind,
    image i is the same photograph in all of them, and a resample draws it in all or in none. A kind with fewer images
    (a defect that does not show is left out) takes the first of the draws.
    """
    n, most = len(better[normal]), max(len(better[kind]) for kind in kinds)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(most, np.full(most, 1 / most), RESAMPLES)
    normals = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    values, resampled = [], np.zeros(RESAMPLES)
    for kind in kinds:
        wins = np.zeros((len(better[kind]), n))  # of outlier i against normal image j: difference of the scores' wins
        for score, sign in ((better, 1.0), (other, -1.0)):
            wins += sign * (np.sign(score[kind][:, None] - score[normal][None]) + 1.0) / 2.0
        outliers = drawn[:, : len(wins)]
        outliers = outliers / np.maximum(outliers.sum(1, keepdims=True), 1)
        values.append(wins.mean())
        resampled += np.sum(outliers @ wins * normals, axis=1) / len(kinds)
    return [float(np.mean(values)), *(float(bound) for bound in np.quantile(resampled, [0.025, 0.975]))]
