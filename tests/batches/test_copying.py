from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from densitywatch.batches.copying import copy_results
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


def test_results_are_copied_with_the_summary_last(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "batch", 5)
    store, names = fsspec.filesystem("memory"), list[str]()
    put = type(store).put_file

    def noted(self: Any, here: str, there: str, **options: Any) -> None:
        names.append(there.rpartition("/")[2])
        put(self, here, there, **options)

    monkeypatch.setattr(type(store), "put_file", noted)
    options = ScoreOptions(copy_to="memory://results/monday/")
    summary = score_source(str(source), params, tmp_path, tmp_path / "out", Brightness(), options)
    assert summary["copy"] == "memory://results/monday"
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[-1] == "summary.json"
    assert store.cat("/results/monday/summary.json") == (tmp_path / "out" / "summary.json").read_bytes()


def test_an_address_that_cannot_be_written_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        copy_results(tmp_path, "nosuch://user:secret@host/results")
    assert str(caught.value).startswith("nosuch://host/results: cannot be written (")
    assert str(caught.value).endswith(f"; the results are in {tmp_path}")
    assert "secret" not in str(caught.value)
