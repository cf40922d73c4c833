from __future__ import annotations

import os
from pathlib import Path

import pytest

from densitywatch import files
from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import batch_folder, give_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params


def test_a_batch_is_found_by_name_or_path_and_an_unknown_one_lists_those_there(
    scored: Path, params: Params, tmp_path: Path
) -> None:
    assert batch_folder("batch", params, tmp_path) == scored
    assert batch_folder(str(scored), params, tmp_path) == scored
    with pytest.raises(DataError, match=r"no results of a batch 'other'.*there is: batch"):
        batch_folder("other", params, tmp_path)
    with pytest.raises(DataError, match="no results of a batch"):
        batch_folder("../..", params, tmp_path)


def test_verdicts_that_cannot_be_read_are_not_overwritten(scored: Path) -> None:
    (scored / "verdicts.json").write_text('{"verdicts": [{"path": "a", "sha')
    with pytest.raises(DataError, match="mend it or move it away"):
        give_verdicts(scored, {("a", "b"): "fine"})
    assert (scored / "verdicts.json").read_text().endswith('"sha')


def test_a_verdict_is_on_the_disk_before_it_is_answered(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".densitywatch")[0])
        real_sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        order.append("renamed")
        return real_replace(path, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    give_verdicts(scored, {next(flagged(scored)): "fine"})
    assert order == [".verdicts.json", "renamed", "batch"]
