from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from densitywatch.batches import publishing
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


def test_a_second_copy_has_no_summary_until_its_files_are_there_and_keeps_no_file_of_the_first(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = fill(tmp_path / "batch", 5), tmp_path / "out"
    store, seen = fsspec.filesystem("memory"), list[bool]()
    store.pipe("/results/tuesday/summary.json", b"of the first copy")
    store.pipe("/results/tuesday/validation.html", b"of the first copy")
    store.pipe("/results/tuesday/notes.txt", b"a person's")
    put = type(store).put_file

    def noted(self: Any, here: str, there: str, **options: Any) -> None:
        seen.append(store.exists("/results/tuesday/summary.json"))
        put(self, here, there, **options)

    monkeypatch.setattr(type(store), "put_file", noted)
    score_source(str(source), params, tmp_path, out, Brightness(), ScoreOptions(copy_to="memory://results/tuesday"))
    assert len(seen) == 5
    assert not any(seen)
    there = {Path(path).name for path in store.ls("/results/tuesday", detail=False)}
    assert there == {path.name for path in out.iterdir()} | {"notes.txt"}


def test_a_copy_waits_for_a_job_that_changes_the_results(params: Params, tmp_path: Path) -> None:
    source, out = fill(tmp_path / "batch", 5), tmp_path / "out"
    score_source(str(source), params, tmp_path, out, Brightness())
    with ThreadPoolExecutor() as pool:
        with publishing.held(out):
            out.rename(tmp_path / "aside")  # as in the middle of a swap
            copied = pool.submit(copy_results, out, "memory://results/wednesday")
            with pytest.raises(TimeoutError):
                copied.result(timeout=0.5)
            (tmp_path / "aside").rename(out)
        assert copied.result() == "memory://results/wednesday"


def test_results_that_are_gone_leave_an_earlier_copy_as_it_is(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/results/thursday/summary.json", b"{}")
    with pytest.raises(DataError, match="not there any more; nothing was copied to memory://results/thursday"):
        copy_results(tmp_path / "out", "memory://results/thursday")
    assert store.exists("/results/thursday/summary.json")


def test_an_address_that_cannot_be_written_is_one_sentence_without_its_password(params: Params, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_source(str(fill(tmp_path / "batch", 5)), params, tmp_path, out, Brightness())
    with pytest.raises(DataError) as caught:
        copy_results(out, "nosuch://user:secret@host/results")
    assert str(caught.value).startswith("nosuch://host/results: cannot be written (")
    assert str(caught.value).endswith(f"; the results are in {out}")
    assert "secret" not in str(caught.value)
