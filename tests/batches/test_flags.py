"""Each sentence about the flags is held against the rule that made them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from densitywatch.arrays import Floats
from densitywatch.batches.flags import flag, promise
from densitywatch.batches.streams import Rule
from densitywatch.detector.conformal import benjamini_hochberg, conditional_p_values

CALIBRATION = np.linspace(0.0, 1.0, 5999)


def facts(p: Floats, rule: Rule, results: Path, batch: str = "a") -> tuple[Floats, dict[str, object]]:
    found = flag(p, CALIBRATION, rule, results=results, batch=batch, content="c")
    return found.outlier, found.facts


def lowest(images: int, low: int) -> Floats:
    """p-values of which `low` are the smallest possible and the others 1."""
    p = np.ones(images)
    p[:low] = 1 / 6000
    return p


def test_the_batch_rule_is_benjamini_hochberg_and_leaves_no_stream(tmp_path: Path) -> None:
    p = np.random.default_rng(0).integers(1, 6001, 200) / 6000
    p[:5] = 1 / 6000
    for strict, decisive in ((False, p), (True, conditional_p_values(p, 5999))):
        outlier, said = facts(p, Rule(0.1, strict=strict), tmp_path)
        assert (outlier == benjamini_hochberg(decisive, 0.1)).all()
        assert (said["control"], said["level"]) == ("batch", 0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("control", ["batch", "stream"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("images", [10, 60, 400, 1500])
def test_the_number_that_is_said_to_be_enough_is_and_fewer_are_never_flagged(
    control: str, strict: bool, images: int, tmp_path: Path
) -> None:
    rule = Rule(0.1, control, strict)  # type: ignore[arg-type]
    _, said = facts(np.ones(images), rule, tmp_path / "look")
    text, few = str(said["to_be_flagged"]), said["fewest_to_flag"]
    assert isinstance(few, int)
    numbers = {int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text.split("names")[-1])}
    assert numbers == ({few} if few > 1 else set())
    enough, _ = facts(lowest(images, few), rule, tmp_path / "enough")
    assert enough.sum() == few
    for low in range(few):
        short, _ = facts(lowest(images, low), rule, tmp_path / f"short{low}")
        assert not short.any()


def test_a_batch_in_which_nothing_can_be_flagged_says_so_and_flags_nothing(tmp_path: Path) -> None:
    outlier, said = facts(np.full(5000, 1 / 6000), Rule(0.1, "stream", alike=20), tmp_path)
    assert not outlier.any()
    assert said["fewest_to_flag"] is None
    assert said["takes"] == []
    assert "No image of this batch can be flagged" in str(said["to_be_flagged"])
    assert "With inbox.alike at 20, it takes more than one scene" in str(said["to_be_flagged"])
    few, of_few = facts(np.full(30, 1 / 6000), Rule(0.1, "stream", alike=20), tmp_path, "few")
    assert not few.any()
    assert "With inbox.alike at 20" in str(of_few["to_be_flagged"])
    alone = facts(np.ones(700_000), Rule(0.1, "stream"), tmp_path)[1]["to_be_flagged"]
    assert "No image of this batch can be flagged" in str(alone)
    assert "inbox.alike" not in str(alone)
    assert facts(np.ones(0), Rule(0.1, "stream"), tmp_path)[1]["to_be_flagged"] == "No image was scored."


def test_each_rule_promises_what_it_keeps_and_names_what_that_rests_on() -> None:
    batch, stream = promise(Rule(0.1)), promise(Rule(0.05, "stream"))
    assert "at most 10 in 100 of a batch's flagged images are false alarms (none where none is flagged)" in batch
    assert "the share among all flagged images together is higher" in batch
    assert "Over all batches of this stream together" in stream
    assert "at most 5 in 100 of the expected number of flagged images (a stream without flags counts as one)" in stream
    assert "no two images show the same scene" in stream
    assert "scene" not in batch
    assert "at most 20 images show the same scene, all in one batch" in promise(Rule(0.1, "stream", alike=20))
    for control in ("batch", "stream"):
        assert "90% sure for the calibration images at hand" in promise(Rule(0.1, control, strict=True))  # type: ignore[arg-type]
        assert "an average over calibration sets" in promise(Rule(0.1, control))  # type: ignore[arg-type]


def test_the_level_of_a_batch_of_a_stream_is_what_is_left_of_the_budget(tmp_path: Path) -> None:
    rule = Rule(0.1, "stream")
    assert facts(lowest(60, 5), rule, tmp_path, "first")[1]["level"] == 0.1
    _, said = facts(lowest(60, 0), rule, tmp_path, "second")
    assert (said["stream_batch"], said["stream_flagged_before"]) == (2, 5)
    assert isinstance(said["level"], float)
    assert 0.1 < said["level"] < 0.5
