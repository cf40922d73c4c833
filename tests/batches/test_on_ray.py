"""Chunks that travel to other machines and back give the rows of one process. The cluster itself: test_ray_cluster."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from densitywatch.batches import far_files, on_ray
from densitywatch.batches.chunks import score_in_chunks
from densitywatch.batches.on_ray import Batch, ChunkScorer
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.data.inputs.entries import Entry
from densitywatch.data.inputs.source import entries
from densitywatch.errors import DataError, ParamsError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png


def nothing(number: int) -> None:
    return None


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """A folder with images, an archive, a broken file, a name that is no UTF-8 and a link that leads out."""
    source, work = fill(tmp_path / "batch", 12, bright=1), tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(source / "more.zip", "w") as archive:
        archive.writestr("inner.png", png(60))
        archive.writestr("broken.png", png()[:60])
    (source / "broken.png").write_bytes(png()[:60])
    (Path(str(source)) / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(png(40))
    (tmp_path / "secret.png").write_bytes(png(90))
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    (source / "Thumbs.db").touch()
    return Batch(str(source), False, None, 4, work, nothing)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ChunkScorer:
    monkeypatch.setattr(ray, "get", lambda value: value)
    return ChunkScorer(Brightness(), 0.1, on_ray.versions())


def travelled(batch: Batch, worker: ChunkScorer, skipped: Counter[str] | None = None) -> list[tuple[int, int]]:
    """What score_on_ray does, in this process: rows to a worker, the worker's rows to the disk."""
    found = Counter[str]() if skipped is None else skipped
    rows = [row for task in on_ray.tasks(batch, pa.table({})) for row in worker(task).to_pylist()]
    return [counts for row in rows for counts in on_ray.take(row, batch.work, found)]


def test_chunks_that_travelled_are_those_of_one_process(batch: Batch, worker: ChunkScorer, tmp_path: Path) -> None:
    here, skipped, left_out = tmp_path / "here", Counter[str](), Counter[str]()
    here.mkdir()
    found = entries(batch.source, skipped=skipped)
    counts = list(score_in_chunks(found, Brightness(), here, size=4, threshold=0.1, published=nothing))
    assert travelled(batch, worker, left_out) == counts
    assert sum(files for files, _ in counts) == 18
    names = sorted(path.name for path in here.iterdir())
    assert sorted(path.name for path in batch.work.iterdir()) == names
    for name in names:
        assert pa.parquet.read_table(here / name).equals(pa.parquet.read_table(batch.work / name)), name
    assert left_out == skipped == Counter({"Thumbs.db": 1})


def test_only_chunks_whose_files_changed_are_scored_again(batch: Batch, worker: ChunkScorer) -> None:
    assert sum(scored for _, scored in travelled(batch, worker)) == 18
    assert sum(scored for _, scored in travelled(batch, worker)) == 0
    (Path(batch.source) / "normal_0000.png").write_bytes(png(33))
    assert sum(scored for _, scored in travelled(batch, worker)) == 4


def test_chunks_that_were_published_are_not_scored_again(batch: Batch, worker: ChunkScorer, tmp_path: Path) -> None:
    travelled(batch, worker)
    tables = {int(path.stem): pa.parquet.read_table(path) for path in batch.work.iterdir()}
    again = replace(batch, work=tmp_path / "again", published=tables.get)
    again.work.mkdir()
    assert sum(scored for _, scored in travelled(again, worker)) == 0
    assert {int(path.stem): pa.parquet.read_table(path) for path in again.work.iterdir()} == tables


def test_the_first_files_alone_are_looked_at_where_a_limit_asks_for_it(batch: Batch, worker: ChunkScorer) -> None:
    assert travelled(replace(batch, limit=6), worker) == [(4, 4), (2, 2)]


def test_files_are_read_where_they_are_scored_and_members_of_archives_where_the_source_is_read(batch: Batch) -> None:
    packed = [far_files.pack(entry, batch.source, follow_links=False) for entry in entries(batch.source)]
    assert {row["path"] for row in packed if "name" not in row} == {"more.zip/inner.png", "more.zip/broken.png"}
    assert not any("data" in row for row in packed if "name" in row)


@pytest.mark.parametrize("source", ["normal_0003.png", "normal_*.png", "more.zip"])
def test_a_file_a_glob_and_an_archive_can_be_sources(batch: Batch, worker: ChunkScorer, source: str) -> None:
    some = replace(batch, source=f"{batch.source}/{source}")
    files = sum(files for files, _ in travelled(some, worker))
    assert files == len(list(entries(some.source)))


def test_a_store_is_read_by_name_with_the_reasons_of_one_process(worker: ChunkScorer, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a", "b", "gone"):
        store.pipe(f"/ray-names/{name}.png", png(20))
    found = list(entries("memory://ray-names"))
    packed = [far_files.pack(entry, "memory://ray-names", follow_links=False) for entry in found]
    assert all("name" in row for row in packed)
    store.rm("/ray-names", recursive=True)
    store.pipe("/ray-names/a.png", png(20))
    there = [far_files.unpack({"data": None, "reason": None, **row}) for row in packed]
    assert [told(entry) for entry in there] == [told(entry) for entry in found]
    assert told(there[0]) == png(20)


def told(entry: Entry) -> bytes | str:
    """An entry's bytes, or the reason why there are none."""
    try:
        return entry.read()
    except DataError as error:
        return str(error)


def test_a_store_that_stops_answering_stops_the_job_with_one_sentence(
    worker: ChunkScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/ray-away/a.png", png(20))
    batch = Batch("memory://ray-away", False, None, 4, tmp_path, nothing)
    tasks = list(on_ray.tasks(batch, pa.table({})))

    def away(*_: Any, **__: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(store), "open", away)
    rows = [row for task in tasks for row in worker(task).to_pylist()]
    with pytest.raises(DataError, match=r"a\.png: cannot be read any more \(no answer\); run it again to go on"):
        list(on_ray.take(rows[0], tmp_path, Counter()))


def test_a_source_that_is_gone_when_it_is_read_is_one_sentence(worker: ChunkScorer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder or file"):
        travelled(Batch(str(tmp_path / "nowhere"), False, None, 4, tmp_path, nothing), worker)


def test_members_that_are_too_large_to_travel_together_are_refused(
    batch: Batch, worker: ChunkScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"unpack the archives or set detector\.batch_size lower"):
        travelled(batch, worker)


def test_a_worker_with_other_packages_is_named_and_scores_nothing(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get", lambda value: value)
    other = ChunkScorer(Brightness(), 0.1, on_ray.versions() | {"torch": "1.0"})
    with pytest.raises(DataError, match=r"a worker has torch \S+ in place of 1\.0; install the same requirements"):
        travelled(batch, other)
    assert list(batch.work.iterdir()) == []


def test_without_the_extra_one_sentence_says_what_to_install(
    params: Params, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)
    with pytest.raises(ParamsError) as caught:
        score_source(batch.source, params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(engine="ray"))
    assert str(caught.value) == (
        "--engine ray needs the package ray; install it: .venv/bin/python -m pip install -e '.[ray]'"
    )
    assert not (tmp_path / "out").exists()
