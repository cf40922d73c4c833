from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.review.originals import collect
from densitywatch.errors import DataError


def test_reviewed_originals_are_collected_by_verdict_and_once(scored: Path, tmp_path: Path) -> None:
    keys = list(flagged(scored))
    give_verdicts(scored, {keys[0]: "outlier", keys[1]: "fine", keys[2]: "fine"})
    target = tmp_path / "kept"
    for _ in range(2):
        assert collect(scored, target, tmp_path) == {"outlier": 1, "fine": 2}
    names = sorted(path.name for path in target.glob("*/*"))
    only = "training-only-"  # flagged images are no fair sample
    assert names == sorted([f"{keys[0][1]}.png", *(f"{only}{digest}.png" for _, digest in keys[1:3])])
    original = (tmp_path / "batch" / keys[1][0]).read_bytes()
    assert (target / "fine" / f"{only}{keys[1][1]}.png").read_bytes() == original
    give_verdicts(scored, {keys[0]: None, keys[1]: "outlier"})
    assert collect(scored, target, tmp_path) == {"outlier": 1, "fine": 1}
    assert {path.relative_to(target).as_posix() for path in target.glob("*/*")} == {
        f"outlier/{keys[1][1]}.png", f"fine/{only}{keys[2][1]}.png"
    }  # fmt: skip
    give_verdicts(scored, {keys[0]: "fine"})
    (tmp_path / "batch" / keys[1][0]).unlink()
    give_verdicts(scored, {keys[1]: "fine"})
    with pytest.raises(DataError, match="1 of 3 reviewed images are not there any more"):
        collect(scored, target, tmp_path)
    assert (target / "outlier" / f"{keys[1][1]}.png").read_bytes() == original, "the only copy left stays"
