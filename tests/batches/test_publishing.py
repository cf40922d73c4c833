"""New results take the place of old ones as a whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densitywatch.batches import publishing
from densitywatch.batches.results_folder import side_folder
from densitywatch.errors import DataError, DiskFull


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Results with a person's verdicts and notes next to them."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("scores.parquet", "gallery.parquet", "verdicts.json", "notes.txt"):
        (folder / name).write_text(f"old {name}")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_results_replace_the_old_ones_and_a_persons_files_stay(published: Path, tmp_path: Path) -> None:
    with publishing.held(published), publishing.new_results(published, {"source": "batch"}) as new:
        (new.fresh / "scores.parquet").write_text("new")
        assert (published / "scores.parquet").read_text() == "old scores.parquet", "not before the block has ended"
    assert names(published) == ["notes.txt", "scores.parquet", "verdicts.json"]
    assert (published / "scores.parquet").read_text() == "new"
    assert (published / "verdicts.json").read_text() == "old verdicts.json"
    assert names(tmp_path) == [".out.lock", "out"]


def test_results_that_are_not_needed_leave_the_published_ones(published: Path, tmp_path: Path) -> None:
    before = names(published)
    with publishing.held(published), publishing.new_results(published, {"source": "batch"}) as new:
        (new.fresh / "scores.parquet").write_text("new")
        new.needed = False
    assert names(published) == before
    assert (published / "scores.parquet").read_text() == "old scores.parquet"
    assert names(tmp_path) == [".out.lock", "out"]


def test_an_error_leaves_the_published_results_and_the_chunks_for_the_next_job(published: Path) -> None:
    with (  # noqa: PT012 the block is what is tested
        pytest.raises(KeyboardInterrupt),
        publishing.held(published),
        publishing.new_results(published, {"source": "batch"}) as new,
    ):
        (new.work / "00000000.parquet").write_text("a chunk")
        raise KeyboardInterrupt
    assert (published / "scores.parquet").read_text() == "old scores.parquet"
    with publishing.held(published), publishing.new_results(published, {"source": "batch"}) as new:
        assert (new.work / "00000000.parquet").read_text() == "a chunk"
        new.needed = False


def test_chunks_of_another_identity_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for source in ("one", "two"):
        with (  # noqa: PT012 the block is what is tested
            pytest.raises(KeyboardInterrupt),
            publishing.held(folder),
            publishing.new_results(folder, {"source": source}) as new,
        ):
            assert names(new.work) == ["identity.json"]
            (new.work / "00000000.parquet").write_text("a chunk")
            raise KeyboardInterrupt
    assert json.loads((side_folder(folder) / "work" / "identity.json").read_text()) == {"source": "two"}


def test_a_swap_that_was_left_half_done_is_undone(published: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        publishing.held(published),
        publishing.new_results(published, {"source": "batch"}),
    ):
        raise KeyboardInterrupt
    before = names(published)
    published.rename(side_folder(published) / "old")  # as a process leaves it that is killed between two renames
    with publishing.held(published):
        assert names(published) == before


def test_a_full_disk_is_one_sentence_and_a_file_in_the_way_as_well(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="the disk is full"), publishing.held(published):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; choose another --out"), publishing.held(tmp_path / "file"):
        pass
