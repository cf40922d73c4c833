"""A results folder as people and accidents leave it: links, namesakes, damaged files, things that others put there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.batches.batch_report import write_batch_report
from densitywatch.batches.inbox import find_batches
from densitywatch.batches.results_folder import note_run
from densitywatch.batches.review.judging import batch_folder, give_verdicts
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.batches.verdicts import read_verdicts, write_verdicts
from densitywatch.data.dataset import read_info
from densitywatch.data.raw import open_raw
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill

NOT_SUMMARIES: dict[str, Any] = {
    "a list": [],
    "text": "summary",
    "null": None,
    "identity is a list": {"identity": ["detector"]},
    "identity is text": {"identity": "brightness-1"},
    "identity of another type": {"identity": {"source": 1, "detector": []}},
    "nothing in it": {},
}


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "run.json"}


def results(params: Params, root: Path, name: str = "one") -> Path:
    """The published results of a small batch."""
    fill(root / name, 12, bright=1)
    score_source(name, params, root, None, Brightness())
    return root / "data" / "outliers" / name


@pytest.mark.parametrize("target", ["is there", "is not there yet"])
def test_results_go_where_a_link_leads_and_later_runs_find_them(params: Params, tmp_path: Path, target: str) -> None:
    fill(tmp_path / "batch", 12, bright=1)
    disk, link = tmp_path / "disk" / "results", tmp_path / "out"
    if target == "is there":
        disk.mkdir(parents=True)
    link.symlink_to(disk)
    detector = Brightness()
    for _ in range(2):
        score_source("batch", params, tmp_path, link, detector)
        assert link.is_symlink()
        assert (disk / "scores.parquet").is_file()
        before, detector.seen = bytes_of(disk), 0
    score_source("batch", params, tmp_path, link, detector)
    assert detector.seen == 0, "it found what it had scored"
    assert bytes_of(disk) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch", "disk", "out"]
    assert batch_folder(str(link), params, tmp_path) == disk
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(DataError, match="leads nowhere"):
        score_source("batch", params, tmp_path, link, detector)


@pytest.mark.parametrize("name", [".out.old", ".out.new", ".out.work"])
def test_a_folder_of_the_users_next_to_the_results_is_left_alone(params: Params, tmp_path: Path, name: str) -> None:
    fill(tmp_path / "batch", 12, bright=1)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("do not lose")
    for rate in (0.1, 0.2):
        score_source("batch", params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(false_discovery_rate=rate))
        assert (tmp_path / name / "thesis.txt").read_text() == "do not lose"
    assert (tmp_path / "out" / "scores.parquet").is_file()


def test_a_folder_without_our_mark_is_never_removed_whatever_its_name(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 12)
    theirs = tmp_path / ".out.densitywatch" / "old"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("do not lose")
    with pytest.raises(DataError, match="was not made by densitywatch; move it away"):
        score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    assert (theirs / "thesis.txt").read_text() == "do not lose"
    assert not (tmp_path / "out").exists()


def test_what_a_person_puts_into_a_results_folder_stays_there(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 12, bright=1)
    out = tmp_path / "out"
    score_source("batch", params, tmp_path, out, Brightness())
    (out / "notes.txt").write_text("do not lose")
    (out / ".hidden.partial-1").write_text("nor this")
    score_source("batch", params, tmp_path, out, Brightness(), ScoreOptions(false_discovery_rate=0.2))
    assert (out / "notes.txt").read_text() == "do not lose"
    assert (out / ".hidden.partial-1").read_text() == "nor this"
    assert json.loads((out / "summary.json").read_text())["false_discovery_rate"] == 0.2


def test_a_file_of_the_users_is_not_removed_from_a_folder_that_is_refused(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".draft.partial-7").write_text("do not lose")
    (tmp_path / "mine" / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="holds no results"):
        score_source("batch", params, tmp_path, tmp_path / "mine", Brightness())
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".draft.partial-7", "summary.json"]


@pytest.mark.parametrize("what", [*NOT_SUMMARIES, "NaN", "cut off", "deep", "huge", "a folder", "not UTF-8"])
def test_a_damaged_summary_is_named_once_and_costs_no_other_batch(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    one = results(params, tmp_path)
    before, summary = bytes_of(one), one / "summary.json"
    write_verdicts(one, {("odd_0000.png", "0" * 64): "fine"})
    text = summary.read_text()
    summary.unlink()
    if what == "a folder":
        summary.mkdir()
    elif what == "huge":
        with summary.open("wb") as file:
            file.truncate(1 << 33)
    elif what == "not UTF-8":
        summary.write_bytes(b"\xff\xfe")
    elif what in NOT_SUMMARIES:
        summary.write_text(json.dumps(NOT_SUMMARIES[what]))
    else:
        damaged = {
            "NaN": text.replace('"drift_p_value": ', '"drift_p_value": NaN, "x": '),
            "cut off": text[:100],
            "deep": "[" * 200_000,
        }
        summary.write_text(damaged[what])
    capsys.readouterr()
    fill(tmp_path / "two", 12)
    assert score_source("two", params, tmp_path, None, Brightness())["past_batches"] == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "one/summary.json" in line]
    assert len(named) == 1
    assert named[0].endswith("its results are not used")
    with pytest.raises(DataError, match="damaged; score the batch again"):
        batch_folder("one", params, tmp_path)
    score_source("one", params, tmp_path, None, Brightness())
    after = bytes_of(one)
    assert after.pop("verdicts.json")
    assert after["summary.json"] == before["summary.json"]
    assert read_verdicts(one) == {("odd_0000.png", "0" * 64): "fine"}


def damage(path: Path, what: str) -> None:
    table = pq.read_table(path)
    if what == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "text":
        path.write_text("no table")
    elif what == "other columns":
        pq.write_table(table.drop_columns(["p_value"]), path)
    elif what == "other types":
        at = table.schema.get_field_index("p_value")
        pq.write_table(table.set_column(at, "p_value", table.column("p_value").cast(pa.string())), path)
    elif what == "no p-values":
        at = table.schema.get_field_index("p_value")
        values = pa.array([float("nan"), *[7.0] * (table.num_rows - 1)])
        pq.write_table(table.set_column(at, "p_value", values), path)
    else:
        path.unlink()


@pytest.mark.parametrize("what", ["cut off", "text", "other columns", "other types", "no p-values", "gone"])
def test_damaged_scores_are_made_anew_and_cost_no_other_batch(params: Params, tmp_path: Path, what: str) -> None:
    one = results(params, tmp_path)
    before = bytes_of(one)
    damage(one / "scores.parquet", what)
    fill(tmp_path / "two", 12)
    assert score_source("two", params, tmp_path, None, Brightness())["past_batches"] == 0
    if what in ("cut off", "text", "gone"):
        with pytest.raises(DataError, match="score the batch again"):
            write_batch_report(one)
    score_source("one", params, tmp_path, None, Brightness())
    assert bytes_of(one) == before


@pytest.mark.parametrize("what", ["cut off", "text", "other columns", "gone"])
def test_a_damaged_gallery_is_made_anew(params: Params, tmp_path: Path, what: str) -> None:
    one = results(params, tmp_path)
    before = bytes_of(one)
    damage(one / "gallery.parquet", what)
    score_source("one", params, tmp_path, None, Brightness())
    assert bytes_of(one) == before


@pytest.mark.parametrize(
    "content",
    ['{"verdicts": [{"path": "a", "sha256": "b", "verdict": ["fine"]}]}', "[]", '{"verdicts": 7}', "[" * 200_000,
     '{"verdicts": [{"path": "\\ud800", "sha256": "b", "verdict": "fine"}]}', '{"verdicts": [{"path": 1}]}'],
)  # fmt: skip
def test_verdicts_that_cannot_be_read_stop_a_job_before_it_scores(params: Params, tmp_path: Path, content: str) -> None:
    one = results(params, tmp_path)
    (one / "verdicts.json").write_text(content)
    detector = Brightness()
    detector.digest = "another"
    with pytest.raises(DataError, match="mend it or move it away"):
        score_source("one", params, tmp_path, None, detector)
    assert detector.seen == 0
    with pytest.raises(DataError, match="mend it or move it away"):
        give_verdicts(one, {("a", "b"): "fine"})
    assert (one / "verdicts.json").read_text() == content


@pytest.mark.parametrize("content", ["[1]", "7", "{", '{"listing": ["a"]}', '{"listing": NaN}', "[" * 200_000])
def test_a_damaged_note_of_a_run_makes_its_batch_ready_again(params: Params, tmp_path: Path, content: str) -> None:
    inbox = tmp_path / "data" / "inbox"
    fill(inbox / "day", 3)
    (inbox / "day" / "_SUCCESS").touch()
    (batch,) = find_batches(params, tmp_path, now=0.0)
    folder = Path(score_source(batch.source, params, tmp_path, None, Brightness())["folder"])
    note_run(folder, listing=batch.listing)
    assert [batch.state for batch in find_batches(params, tmp_path, now=0.0)] == ["done"]
    (folder / "run.json").write_text(content)
    assert [batch.state for batch in find_batches(params, tmp_path, now=0.0)] == ["ready"]
    note_run(folder, listing=batch.listing)
    assert [batch.state for batch in find_batches(params, tmp_path, now=0.0)] == ["done"]


def test_chunks_that_were_damaged_while_they_waited_are_scored_again(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 20, bright=1)
    whole = tmp_path / "whole"
    score_source("batch", params, tmp_path, whole, Brightness())

    class Dies(Brightness):
        def score(self, images: Any) -> Any:
            if self.seen >= 16:
                raise KeyboardInterrupt
            return super().score(images)

    with pytest.raises(KeyboardInterrupt):
        score_source("batch", params, tmp_path, tmp_path / "out", Dies())
    first, second = sorted((tmp_path / ".out.densitywatch" / "work").glob("*.parquet"))
    damage(first, "other types")
    damage(second, "no p-values")
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    assert bytes_of(tmp_path / "out") == bytes_of(whole)


def test_an_image_replaced_with_the_same_size_and_time_makes_its_batch_ready(params: Params, tmp_path: Path) -> None:
    inbox = tmp_path / "data" / "inbox"
    fill(inbox / "day", 3)
    (inbox / "day" / "_SUCCESS").touch()

    def state() -> str:
        (batch,) = find_batches(params, tmp_path, now=0.0)
        return batch.state

    def done() -> None:
        (batch,) = find_batches(params, tmp_path, now=0.0)
        summary = score_source(batch.source, params, tmp_path, None, Brightness())
        note_run(Path(summary["folder"]), listing=batch.listing)
        assert state() == "done"

    done()
    image = inbox / "day" / "normal_0000.png"
    for way in ("in place", "another file"):
        times, content = image.stat(), image.read_bytes()
        changed = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
        written = image if way == "in place" else tmp_path / "beside.png"
        written.write_bytes(changed)
        os.utime(written, ns=(times.st_atime_ns, times.st_mtime_ns))
        written.replace(image)
        assert (image.stat().st_size, image.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
        assert state() == "ready", way
        done()


def test_a_batch_that_the_version_before_has_scored_is_not_read_again(params: Params, tmp_path: Path) -> None:
    inbox = tmp_path / "data" / "inbox"
    fill(inbox / "day", 2)
    (inbox / "day" / "_SUCCESS").touch()
    files = sorted(
        f"{path.name!r} {path.lstat().st_size} {path.lstat().st_mtime_ns}" for path in (inbox / "day").iterdir()
    )
    (batch,) = find_batches(params, tmp_path, now=0.0)
    folder = Path(score_source(batch.source, params, tmp_path, None, Brightness())["folder"])
    note_run(folder, listing=hashlib.sha256("\n".join(files).encode()).hexdigest())
    assert [batch.state for batch in find_batches(params, tmp_path, now=0.0)] == ["done"]


@pytest.mark.parametrize("content", ["[]", '{"name": 7}', "{", '{"name": "x", "size": "8"}'])
def test_a_damaged_dataset_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match="not readable; run `dvc repro -f prepare`"):
        read_info(tmp_path)


@pytest.mark.parametrize("content", ['{"path": "a"}', '[{"path": "a", "reason": 1}]', "[7]", "{", "NaN"])
def test_a_damaged_list_of_rejected_files_is_one_sentence(params: Params, tmp_path: Path, content: str) -> None:
    pd.DataFrame({"path": ["a.png"], "bytes": [b"x"]}).to_parquet(tmp_path / "images.parquet")
    (tmp_path / "rejected.json").write_text(content)
    data = params.data.model_copy(update={"source": "folder"})
    with pytest.raises(DataError, match=r"rejected\.json"):
        open_raw(data, tmp_path)
