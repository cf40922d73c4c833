from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from densitywatch.batches.inbox import Batch, find_batches, is_remote_batch
from densitywatch.batches.results_folder import note_run
from densitywatch.batches.score_batch import score_source
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png


def found(params: Params, root: Path, later: float = 0.0) -> dict[str, Batch]:
    newest = max((path.lstat().st_ctime for path in root.rglob("*")), default=0.0)
    return {batch.name: batch for batch in find_batches(params, root, now=newest + later)}


def states(params: Params, root: Path, later: float = 0.0) -> dict[str, str]:
    return {name: batch.state for name, batch in found(params, root, later).items()}


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "inbox"
    folder.mkdir(parents=True)
    return folder


def test_a_batch_waits_until_its_marker_is_there_or_its_newest_file_has_settled(
    params: Params, inbox: Path, tmp_path: Path
) -> None:
    fill(inbox / "monday", 2)
    settle = params.inbox.settle_seconds
    assert states(params, tmp_path, later=settle - 1) == {"monday": "waiting"}
    assert states(params, tmp_path, later=settle + 1) == {"monday": "ready"}
    (inbox / "monday" / "_SUCCESS").touch()
    assert states(params, tmp_path) == {"monday": "ready"}
    assert found(params, tmp_path)["monday"].files == 2


def test_files_copied_with_their_old_dates_count_from_when_they_arrived(
    params: Params, inbox: Path, tmp_path: Path
) -> None:
    fill(inbox / "copied", 1)
    os.utime(inbox / "copied" / "normal_0000.png", (0, 0))
    assert states(params, tmp_path, later=1) == {"copied": "waiting"}


def test_files_of_the_future_settle_once_they_have_been_seen_unchanged_for_long_enough(
    params: Params, inbox: Path, tmp_path: Path
) -> None:
    (tmp_path / params.inbox.results).mkdir(parents=True)
    fill(inbox / "monday", 2)
    settle, year = params.inbox.settle_seconds, 365 * 86400.0
    assert states(params, tmp_path, later=-year) == {"monday": "waiting"}
    batch = found(params, tmp_path, later=1 - year)["monday"]
    assert (batch.state, batch.since) == ("waiting", pytest.approx(_newest(inbox) - year, abs=2)), "it grows older"
    fill(inbox / "monday", 3)
    assert states(params, tmp_path, later=settle - year) == {"monday": "waiting"}, "it has changed"
    assert states(params, tmp_path, later=-2 * year) == {"monday": "waiting"}, "the clock was set back"
    assert states(params, tmp_path, later=settle - 1 - 2 * year) == {"monday": "waiting"}
    batch = found(params, tmp_path, later=settle + 1 - 2 * year)["monday"]
    assert batch.state == "ready"
    summary = score_source(batch.source, params, tmp_path, None, Brightness())
    note_run(Path(summary["folder"]), listing=batch.listing)
    assert states(params, tmp_path, later=settle + 2 - 2 * year) == {"monday": "done"}


def _newest(inbox: Path) -> float:
    return max(path.lstat().st_ctime for path in inbox.rglob("*"))


def test_an_empty_folder_waits_for_its_marker(params: Params, inbox: Path, tmp_path: Path) -> None:
    (inbox / "empty").mkdir()
    assert states(params, tmp_path, later=10**6) == {"empty": "waiting"}
    (inbox / "empty" / "_SUCCESS").touch()
    assert states(params, tmp_path) == {"empty": "ready"}


def test_a_scored_batch_is_done_until_its_files_change(params: Params, inbox: Path, tmp_path: Path) -> None:
    fill(inbox / "day", 3)
    (inbox / "day" / "_SUCCESS").touch()
    batch = found(params, tmp_path)["day"]
    summary = score_source(batch.source, params, tmp_path, None, Brightness())
    assert states(params, tmp_path) == {"day": "ready"}, "it is done when MLflow and Prefect know of it, too"
    note_run(Path(summary["folder"]), listing=batch.listing)
    assert states(params, tmp_path) == {"day": "done"}
    (inbox / "day" / "late.png").write_bytes(png(90))
    assert states(params, tmp_path) == {"day": "ready"}
    (inbox / "day" / "late.png").unlink()
    os.utime(inbox / "day" / "normal_0000.png", (1, 1))
    # another date, the same bytes: scoring finds that out and says so to the next look at the inbox
    batch = found(params, tmp_path)["day"]
    assert batch.state == "ready"
    summary = score_source(batch.source, params, tmp_path, None, Brightness())
    assert states(params, tmp_path) == {"day": "ready"}, "it is done when MLflow and Prefect know of it, too"
    note_run(Path(summary["folder"]), listing=batch.listing)
    assert states(params, tmp_path) == {"day": "done"}


def test_an_archive_is_a_batch_and_a_loose_file_is_none(params: Params, inbox: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(inbox / "ship.zip", "w") as archive:
        archive.writestr("a.png", png())
    (inbox / "loose.png").write_bytes(png())
    fill(inbox / ".staging", 2)
    fill(inbox / "_temporary", 2)
    assert states(params, tmp_path, later=10**6) == {"ship.zip": "ready", "loose.png": "stray"}


def test_an_inbox_that_does_not_exist_yet_is_empty(params: Params, tmp_path: Path) -> None:
    assert find_batches(params, tmp_path, now=0.0) == []


def test_an_inbox_may_be_any_address(params: Params, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    fill(tmp_path / "batch", 2)
    (tmp_path / "batch" / "_SUCCESS").touch()
    memory.put(f"{tmp_path}/batch/", "/box/one/", recursive=True)
    memory.pipe("/box/loose.png", b"x")
    there = params.model_copy(update={"inbox": params.inbox.model_copy(update={"address": "memory://box"})})
    try:
        one, *others = sorted(find_batches(there, tmp_path, now=0.0), key=lambda batch: batch.state)
        assert [batch.state for batch in others] == ["stray"]
        assert (one.name, one.state, one.files) == ("one", "ready", 2)
        summary = score_source(one.source, there, tmp_path, None, Brightness())
        note_run(Path(summary["folder"]), listing=one.listing)
        assert summary["files"] == 2
        assert summary["drift_batches"] == 1, "the drift test knows that it comes from the inbox"
        assert {batch.state for batch in find_batches(there, tmp_path, now=0.0)} == {"done", "stray"}
    finally:
        memory.rm("/box", recursive=True)
    with pytest.raises(DataError, match="no such inbox"):
        find_batches(there, tmp_path, now=0.0)


@pytest.mark.parametrize(
    ("source", "inbox", "inside"),
    [
        ("memory:///box/one", "memory://box/", True),
        ("memory:///box/one.zip", "simplecache::memory://box", True),
        ("memory://one", "memory://", True),
        ("s3://bucket/in/one/", "s3a://bucket/in", True),
        ("s3://bucket/in/deep/one", "s3a://bucket/in", False),
        ("memory:///bucket/in/one", "s3://bucket/in", False),
        ("https://host/in/one", "https://host/in/", True),
        ("https://other/in/one", "https://host/in/", False),
        ("ftp://other/in/one", "ftp://host/in", False),
        ("ftp://host/in/one", "ftp://user:word@host/in", True),
        ("nothing-known://in/one", "nothing-known://in/", True),
    ],
)
def test_a_batch_is_known_to_be_in_the_inbox_however_its_address_is_spelled(
    source: str, inbox: str, inside: bool
) -> None:
    assert is_remote_batch(source, inbox) == inside


def test_a_batch_that_goes_away_while_it_is_listed_is_no_trouble(
    params: Params, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(inbox / "gone", 2)
    real = os.scandir

    def vanish(path: str) -> object:
        if path == str(inbox / "gone"):
            shutil.rmtree(path, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert [batch.state for batch in find_batches(params, tmp_path, now=10.0**10)] == ["waiting"]
    assert not (inbox / "gone").exists()
