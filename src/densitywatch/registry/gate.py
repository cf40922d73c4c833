"""May this model reach users? The gate measures candidate and champion now, on the same images, and fails closed.

The rule is that of a non-inferiority test. A candidate passes when it beats the trivial model of its kind and one is
`gate.confidence` sure that it is worse than the champion by no more than `gate.margin`. A detector must pass it twice:
for how it ranks images with defects, and for the share of them that the rule in force finds. And it must not have gone
worse on a kind of defect, whatever it gained on the others; nor on a kind that a person has sorted, where
`gate.known_defects` names them.

The images are the split `gate`, which fits and chooses nothing. Where a judged draw of a moved stream calibrates
(data/judged_draw.py), the draw's part of that split answers what is asked of that stream: whether p-values hold, and
what the rule finds. Stored figures are never compared: a champion's old figure was taken on other images or by other
code, or is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.dataset import open_split, read_facts
from densitywatch.data.reading import images_within
from densitywatch.errors import DensitywatchError
from densitywatch.params import GateParams, Params
from densitywatch.registry.known_defects import measure_known_defects
from densitywatch.registry.measuring import measure_model
from densitywatch.registry.measuring_detectors import SHARE, Judged, measure_detector
from densitywatch.registry.resampling import Difference, Measurement, Missed, bootstrap_counts, difference

AFRESH = "to start afresh, `densitywatch promote --afresh` compares with nothing"


@dataclass(frozen=True)
class Decision:
    """What the gate says, in one sentence, and the measurements behind it."""

    passed: bool
    reason: str
    candidate: Measurement | None = None
    champion: Measurement | None = None
    figures: dict[str, float | str] = field(default_factory=dict)
    """What the sentence is about, for programs: measure, figures, interval, margin, floor."""

    def __str__(self) -> str:
        return self.reason


def gate(name: str, candidate: Path, champion: Path | None, params: Params, root: Path) -> Decision:
    """Measure the models (or detectors) in both folders on the first params.gate.images gate images and compare.

    What cannot be measured does not pass. A bad candidate raises nothing. Raises DataError when there are no gate
    images.
    """
    images, groups = gate_images(params, root, scored_twice=name == "detector")
    independent = len(np.unique(groups))
    if independent < params.gate.least_images:
        return Decision(
            False,
            f"rejected: there are {independent} images to compare on, each group counted once, and gate.least_images"
            f" asks for {params.gate.least_images}; {more_images(len(images), params, name)}",
        )
    measure: Callable[..., Measurement] = measure_model
    measure_champion = measure
    if name == "detector":
        measure = partial(measure_detector, groups=groups, judged=judged_images(params, root))
        measure_champion = partial(measure, must_hold=False)
    try:
        new = measure(candidate, images, params, root)
    except DensitywatchError as error:
        return Decision(False, f"rejected: the candidate cannot be measured: {error}")
    old = None
    if champion is not None:
        try:
            old = measure_champion(champion, images, params, root)
        except DensitywatchError as error:
            return Decision(
                False, f"rejected: the champion cannot be measured to compare with ({error}); {AFRESH}", new
            )
        if name == "detector" and params.gate.known_defects is not None:
            try:
                new = replace(new, known=measure_known_defects(candidate, params, root))
                old = replace(old, known=measure_known_defects(champion, params, root))
            except DensitywatchError as error:
                return Decision(False, f"rejected: gate.known_defects: {error}", new, old)
    floor = new.trivial() if params.gate.floor and new.trivial is not None and math.isfinite(new.value) else None
    return judge(new, old, params.gate, floor, bootstrap_counts(groups, params.seed), independent)


def more_images(images: int, params: Params, name: str) -> str:
    """What to do where there are too few images to compare on."""
    if 2 * images + 1 >= params.gate.images and name == "detector":
        return "raise gate.images, of which a detector sees half"
    if images >= params.gate.images:
        return "raise gate.images"
    return "raise data.gate and run `dvc repro prepare`"


def gate_images(params: Params, root: Path, *, scored_twice: bool = False) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """The first gate.images images of the split `gate`, (N, C, H, W), or as many as fit into memory; their groups (N,).

    scored_twice: half as many, for a detector, which sees each image as it is and altered.
    """
    prepared = root / "data" / "prepared"
    split = open_split(prepared, "gate")
    most = max(1, params.gate.images // 2) if scored_twice else params.gate.images
    before = len(split) - _judged_count(prepared)
    images = np.array(split.images[: min(before, images_within(most, math.prod(split.images.shape[1:])))])
    return images, np.arange(len(images)) if split.groups is None else split.groups[: len(images)]


def judged_images(params: Params, root: Path) -> Judged | None:
    """The judged draw of the stream as it is now, as many for the gate as gate_images takes; None where none
    calibrates.
    """
    prepared = root / "data" / "prepared"
    if not (count := _judged_count(prepared)):
        return None
    split = open_split(prepared, "gate")
    most = images_within(max(1, params.gate.images // 2), math.prod(split.images.shape[1:]))
    rows = slice(len(split) - count, len(split) - count + most)
    images = np.array(split.images[rows])
    groups = np.arange(len(images)) if split.groups is None else split.groups[rows]
    return Judged(images, groups, open_split(prepared, "calibration").one_of_each_group(params.seed).images)


def _judged_count(prepared: Path) -> int:
    """Number of images of a judged draw, the last ones of the split `gate`."""
    return read_facts(prepared).judged.get("gate", 0)


def judge(
    candidate: Measurement,
    champion: Measurement | None,
    rules: GateParams,
    floor: Measurement | None,
    counts: Floats,
    independent: int,
) -> Decision:
    """Compare measurements of the same images by the rules.

    counts: the bootstrap samples, (draws, N). independent: how many groups of images there are.
    """
    name, value = candidate.measure, candidate.value
    if not math.isfinite(value):
        return Decision(False, f"rejected: its {name} is {value}, no finite number", candidate)
    told: dict[str, float | str] = {"measure": name, "candidate": value, "confidence": rules.confidence}
    told["images"] = counts.shape[1]
    below = ""
    if candidate.missed is not None:
        if not math.isfinite(candidate.missed.value):
            return Decision(False, f"rejected: the share that it misses is {candidate.missed.value}", candidate)
        told |= {"found": 1 - candidate.missed.value, "outliers": SHARE}
    if floor is not None:
        told["floor"] = floor.value
        gap = difference(candidate, floor, counts, rules.confidence, independent)
        if not gap.high < 0:
            reason = (
                f"rejected: its {name} of {value:.4f} does not beat the floor, {floor.value:.4f} of a trivial model"
                f" ({sure(rules, gap)})"
            )
            return Decision(False, reason, candidate, champion, told)
        below = f"; a trivial model has {floor.value:.4f}"
    if champion is None:
        alone = "" if candidate.missed is None else f"; {found_alone(candidate.missed)}"
        reason = f"passed: {name} {value:.4f}, and there is no champion to compare it with{alone}{below}"
        return Decision(True, reason, candidate, None, told)
    if champion.measure != name:
        reason = f"rejected: it is measured by {name} and the champion by {champion.measure}; {AFRESH}"
        return Decision(False, reason, candidate, champion)
    if not math.isfinite(champion.value):
        reason = f"rejected: the champion's {name} is {champion.value}, so nothing can be compared; {AFRESH}"
        return Decision(False, reason, candidate, champion)
    unit, share = margin_of(champion.kind, rules)
    margin = unit + share * abs(champion.value)
    gap = difference(candidate, champion, counts, rules.confidence, independent, share)
    told |= {"champion": champion.value, "difference": gap.value, "at_least": gap.low, "at_most": gap.high}
    told["margin"] = margin
    passed = gap.high <= margin
    compared = (
        f"{name} {value:.4f}, {in_words(gap, passed)} {champion.value:.4f}"
        f" ({sure(rules, gap)}; the margin is {margin:.4f}){below}"
    )
    if candidate.missed is None and champion.missed is None:
        return Decision(passed, f"{'passed' if passed else 'rejected'}: {compared}", candidate, champion, told)
    if candidate.missed is None or champion.missed is None or candidate.kinds.keys() != champion.kinds.keys():
        reason = (
            f"rejected: a figure of the candidate or of the champion is missing, so they are not compared; {AFRESH}"
        )
        return Decision(False, reason, candidate, champion, told)
    enough, found, figures = compare_found(candidate.missed, champion.missed, rules, counts, independent)
    # a kind has fewer images than there are; with few of them, chance reaches further
    of_each = {kind: one.independent or independent for kind, one in candidate.kinds.items()}
    whole, worse, of_kinds = compare_kinds(candidate.kinds, champion.kinds, rules, counts, of_each)
    kept, lost, of_known = compare_known(candidate, champion, rules)
    parts = [(passed, compared), (enough, found), (whole, worse), (kept, lost)]
    # what it is rejected for comes first
    texts = [text for ok, text in parts if not ok] + [text for ok, text in parts if ok and text]
    passed = all(ok for ok, _ in parts)
    reason = f"{'passed' if passed else 'rejected'}: {'; '.join(texts)}"
    return Decision(passed, reason, candidate, champion, told | figures | of_kinds | of_known)


def compare_kinds(
    candidate: dict[str, Measurement],
    champion: dict[str, Measurement],
    rules: GateParams,
    counts: Floats,
    independent: Mapping[str, int],
    *,
    defects: str = "defects",
    before: str = "",
) -> tuple[bool, str, dict[str, float | str]]:
    """Whether no kind of defect has gone worse; the kinds that have, in words; and the figures of each kind.

    `independent`: of each kind, how many groups of images show it. `defects`: what the words call them. `before`: what
    the names of the figures begin with. One is `confidence` sure that a kind named here is worse by more than the
    margin, and so of all kinds together: each gets its share of what is left (Bonferroni). A kind of which the images
    show too little does not count against it.
    """
    confidence = 1 - (1 - rules.confidence) / max(1, len(candidate))
    worse: list[str] = []
    figures: dict[str, float | str] = {}
    for kind, new in candidate.items():
        old = champion[kind]
        margin = rules.margin.detector + rules.tolerance * abs(old.value)
        gap = difference(new, old, counts, confidence, independent[kind], rules.tolerance)
        figures |= {f"{before}error.{kind}": new.value, f"{before}champion_error.{kind}": old.value}
        if not gap.low <= margin:  # NaN too
            worse.append(
                f"on {defects} of the kind {kind} its error is {new.value:.4f}, worse than the champion's"
                f" {old.value:.4f} ({rules.confidence:.0%} sure for all kinds that it is worse by {gap.low:.4f}; the"
                f" margin is {margin:.4f})"
            )
    return not worse, "; ".join(worse), figures


def compare_known(
    candidate: Measurement, champion: Measurement, rules: GateParams
) -> tuple[bool, str, dict[str, float | str]]:
    """`compare_kinds` of the defects that a person has sorted; nothing to say where there are none."""
    new, old = candidate.known, champion.known
    if new is None and old is None:
        return True, "", {}
    if new is None or old is None or new.names != old.names:
        return False, f"gate.known_defects: candidate and champion could not read the same images; {AFRESH}", {}
    kept, lost, figures = compare_kinds(
        new.kinds, old.kinds, rules, new.counts, new.independent, defects="known defects", before="known_"
    )
    images = f"no kind of the {len(new.names):,} sorted images in gate.known_defects has surely gone worse"
    return kept, images if kept else lost, figures


def compare_found(
    candidate: Missed, champion: Missed, rules: GateParams, counts: Floats, independent: int
) -> tuple[bool, str, dict[str, float | str]]:
    """Whether the candidate finds no less than the champion by more than the margin; that in words, and as figures.

    Where neither finds anything, that is said and nothing is held against the candidate. Where both were measured on a
    judged draw, chance is that of its images.
    """
    of_draw = ""
    if candidate.judged is not None:
        counts, independent = candidate.judged, candidate.independent
        of_draw = f", on {counts.shape[1]} judged images and both calibrated on the draw,"
    margin = rules.margin.power + rules.tolerance * champion.value
    gap = difference(candidate, champion, counts, rules.confidence, independent, rules.tolerance)
    found, before, least = 1 - candidate.value, 1 - champion.value, 0.0 - gap.high
    figures: dict[str, float | str] = {"champion_found": before, "found_difference": -gap.value}
    figures |= {"found_at_least": least, "found_at_most": -gap.low, "found_margin": margin}
    if round(found, 3) == round(before, 3) == 0:
        return True, nothing("neither detector finds any", candidate), figures
    passed = gap.high <= margin
    words = in_words(gap, passed, better="more", worse="less")
    told = (
        f"where {SHARE:.0%} of a batch have defects{of_draw} the rule finds {found:.3f} of them, {words} {before:.3f}"
        f" (difference {0.0 - gap.value:+.3f}, {rules.confidence:.0%} sure that it is above {least:+.3f}; the margin is"
        f" {margin:.3f})"
    )
    return passed, told, figures


def margin_of(kind: str, rules: GateParams) -> tuple[float, float]:
    """How much larger than the champion's figure the candidate's may be: in the measure's unit, and as a share of it.

    Bits/dim and the detector's error have a margin in their unit, reconstruction errors and FID one that is a share.
    `tolerance` is a share that is added for every measure.
    """
    unit = {"bits": rules.margin.bits, "detector": rules.margin.detector}.get(kind, 0.0)
    share = {"error": rules.margin.error, "samples": rules.margin.samples}.get(kind, 0.0)
    return unit, share + rules.tolerance


def in_words(gap: Difference, passed: bool, better: str = "better", worse: str = "worse") -> str:
    """What the interval of a difference says, up to the champion's figure."""
    if gap.high < 0:
        return f"{better} than the champion's"
    if gap.low > 0:
        return f"{worse} than the champion's" + (", within the margin:" if passed else "")
    if passed:
        return "no evidence of a difference from the champion's"
    return "too uncertain to say that it is within the margin of the champion's"


def sure(rules: GateParams, gap: Difference) -> str:
    return f"difference {gap.value:+.4f}, {rules.confidence:.0%} sure that it is below {gap.high:+.4f}"


def found_alone(missed: Missed) -> str:
    """The share that the rule finds, in words."""
    if round(1 - missed.value, 3) == 0:
        return nothing("it finds none", missed)
    return f"where {SHARE:.0%} of a batch have defects the rule finds {1 - missed.value:.3f} of them"


def nothing(who: str, missed: Missed) -> str:
    """That nothing is found, and what is the likely reason."""
    return (
        f"{who} of the defects by the rule, where {SHARE:.0%} of a batch have them: there are {missed.calibration:,}"
        " calibration images, and with few of them no p-value is small enough"
    )
