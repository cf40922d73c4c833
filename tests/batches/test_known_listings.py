"""What the inbox knows of scored batches without opening their files, and when it opens them all the same."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from densitywatch.batches import inbox as inbox_module
from densitywatch.batches.inbox import find_batches
from densitywatch.batches.known_listings import NOTE
from densitywatch.batches.results_folder import RUN, note_run, results_folder
from densitywatch.params import Params
from tests.detector.standin import fill


@pytest.fixture
def root(params: Params, tmp_path: Path) -> Path:
    """A project whose three batches have been scored."""
    for name in ("a", "b", "c"):
        (fill(tmp_path / "data" / "inbox" / name, 2) / "_SUCCESS").touch()
    for batch in find_batches(params, tmp_path, now=time.time()):
        folder = results_folder(batch.source, params, tmp_path)
        folder.mkdir(parents=True)
        note_run(folder, listing=batch.listing)
    assert set(states(params, tmp_path).values()) == {"done"}
    return tmp_path


def states(params: Params, root: Path) -> dict[str, str]:
    return {batch.name: batch.state for batch in find_batches(params, root, now=time.time())}


def opened(params: Params, root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """For how many batches a look at the inbox asks where their results are, and opens what is there."""
    asked: list[str] = []

    def note(source: str, params: Params, root: Path) -> Path:
        asked.append(source)
        return results_folder(source, params, root)

    with monkeypatch.context() as patched:
        patched.setattr(inbox_module, "results_folder", note)
        states(params, root)
    return len(asked)


def test_a_second_look_opens_no_file_of_a_batch_that_was_scored(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(params, root, monkeypatch) == 0
    (fill(root / "data" / "inbox" / "d", 2) / "_SUCCESS").touch()
    assert opened(params, root, monkeypatch) == 1
    (root / "data" / "outliers" / NOTE).unlink()
    assert opened(params, root, monkeypatch) == 4


def test_what_changed_in_the_results_or_in_the_batch_is_seen(params: Params, root: Path) -> None:
    results = root / "data" / "outliers"
    (results / "a" / RUN).unlink()
    note_run(results / "b", listing="of other files")
    (root / "data" / "inbox" / "c" / "normal_0000.png").write_bytes(b"replaced")
    assert states(params, root) == {"a": "ready", "b": "ready", "c": "ready"}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{", "\x00" * 100, '{"x": ["a", "b", 3]}', '{"\\ud800": []}'])
def test_a_damaged_note_is_made_anew(params: Params, root: Path, text: str) -> None:
    note = root / "data" / "outliers" / NOTE
    whole = json.loads(note.read_text())
    note.write_text(text)
    assert set(states(params, root).values()) == {"done"}
    assert json.loads(note.read_text()) == whole


def test_a_batch_that_is_gone_is_forgotten_and_one_of_no_text_as_its_name_is_found_anyway(
    params: Params, root: Path
) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    (fill(root / "data" / "inbox" / name, 2) / "_SUCCESS").touch()
    (batch,) = [one for one in find_batches(params, root, now=time.time()) if one.state == "ready"]
    folder = results_folder(batch.source, params, root)
    folder.mkdir(parents=True)
    note_run(folder, listing=batch.listing)
    assert set(states(params, root).values()) == {"done"}
    (root / "data" / "inbox" / "a").rename(root / "elsewhere")
    assert len(states(params, root)) == 3
    known = json.loads((root / "data" / "outliers" / NOTE).read_text())
    assert sorted(Path(source).name for source in known) == ["b", "c"]


def test_results_that_cannot_be_written_to_are_looked_at_all_the_same(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "data" / "outliers" / NOTE).unlink()
    (root / "data" / "outliers" / NOTE).mkdir()
    assert set(states(params, root).values()) == {"done"}


def test_a_batch_says_when_its_newest_file_was_written(params: Params, tmp_path: Path) -> None:
    folder = fill(tmp_path / "data" / "inbox" / "late", 3)
    (batch,) = find_batches(params, tmp_path, now=time.time())
    assert batch.since == max(path.lstat().st_ctime for path in folder.iterdir())


def test_a_damaged_note_of_batches_of_the_future_is_as_good_as_none(params: Params, tmp_path: Path) -> None:
    (tmp_path / params.inbox.results).mkdir(parents=True)
    fill(tmp_path / "data" / "inbox" / "a", 1)
    file = tmp_path / params.inbox.results / NOTE
    (batch,) = find_batches(params, tmp_path, now=1e9)
    for damaged in ([], {batch.source: 3}, {batch.source: [batch.listing, "0"]}, {batch.source: [batch.listing, 2e9]}):
        file.write_text(json.dumps({"": damaged}))
        (batch,) = find_batches(params, tmp_path, now=1e9)
        assert (batch.state, batch.since) == ("waiting", 1e9)
    (batch,) = find_batches(params, tmp_path, now=1e9 + params.inbox.settle_seconds)
    assert (batch.state, batch.since) == ("ready", 1e9)
