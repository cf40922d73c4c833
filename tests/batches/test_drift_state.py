"""The drift test over the inbox's stream: what it remembers, whom it counts, and what ends an alarm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densitywatch.batches import score_batch
from densitywatch.batches.drift_state import alarm_in_words, in_words
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.detector.stream_drift import MEASURES
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, png

KEYS = ("drift_alarm", "drift_evidence", "drift_batches", "drift_alarm_batch", "drift_since", "drift_moved")
MOVED = (80, 100)
"""Mean intensities of a stream that has moved; normal ones, and those of the stand-in's calibration, are 0 to 100."""


def arrive(root: Path, name: str, levels: tuple[int, int] = (5, 95), images: int = 24) -> str:
    """A batch in the inbox whose images have random mean intensities between `levels`; returns its source."""
    folder = root / "data" / "inbox" / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(int.from_bytes(name.encode()))
    for i in range(images):
        (folder / f"{i}.png").write_bytes(png(int(rng.integers(*levels)), seed=int(rng.integers(1 << 30))))
    return f"data/inbox/{name}"


def with_inbox(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"inbox": params.inbox.model_copy(update=changes)})


def keys(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key in KEYS}


def state(root: Path) -> dict[str, Any]:
    (file,) = (root / "data" / "outliers").glob("drift-*.json")
    read: dict[str, Any] = json.loads(file.read_text())
    return read


@pytest.fixture
def alarmed(params: Params, tmp_path: Path) -> dict[str, Any]:
    """The summary of the last batch of a stream that was moved from the start, scored up to its alarm."""
    for day in range(20):
        summary = score_source(arrive(tmp_path, f"day{day}", MOVED), params, tmp_path, None, Brightness())
        if summary["drift_alarm"]:
            return summary
    raise AssertionError("no alarm in 20 moved batches")


def test_a_normal_stream_has_no_alarm_and_its_report_says_so(params: Params, tmp_path: Path) -> None:
    for day in range(8):
        summary = score_source(arrive(tmp_path, f"day{day}"), params, tmp_path, None, Brightness())
    assert keys(summary) == dict.fromkeys(KEYS) | {
        "drift_alarm": False,
        "drift_evidence": summary["drift_evidence"],
        "drift_batches": 8,
    }
    assert 0 < summary["drift_evidence"] < 100
    assert alarm_in_words(summary) is None
    report = (tmp_path / "data/outliers/day7/report.html").read_text()
    assert "No drift alarm</strong> in 8 batches" in report


def test_an_alarm_names_its_batch_says_what_to_do_and_stays_on(
    params: Params, tmp_path: Path, alarmed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    last = f"day{alarmed['drift_batches'] - 1}"
    assert (alarmed["drift_alarm_batch"], alarmed["drift_since"]) == (last, "day0")
    assert alarmed["drift_evidence"] >= 100
    report = (tmp_path / "data/outliers" / last / "report.html").read_text()
    assert f"alarm at batch {last}, most likely since batch day0" in report
    assert "inbox.drift_seen" in report
    later = score_source(arrive(tmp_path, "later"), params, tmp_path, None, Brightness())
    assert keys(later) == keys(alarmed) | {"drift_batches": alarmed["drift_batches"] + 1}
    assert f"drift alarm: the stream has moved: alarm at batch {last}" in capsys.readouterr().err


def test_a_batch_that_is_scored_again_says_the_same_and_counts_once(
    params: Params, tmp_path: Path, alarmed: dict[str, Any]
) -> None:
    before = state(tmp_path)
    first = tmp_path / "data/outliers/day0"
    written = {path.name: path.read_bytes() for path in first.iterdir() if path.name != "run.json"}
    again = score_source("data/inbox/day0", params, tmp_path, None, Brightness())
    assert again["drift_alarm"] is False
    shutil.rmtree(first)
    score_source("data/inbox/day0", params, tmp_path, None, Brightness())
    assert {path.name: path.read_bytes() for path in first.iterdir() if path.name != "run.json"} == written
    assert state(tmp_path) == before


def test_files_that_are_added_to_a_batch_or_sent_under_another_name_do_not_count_again(
    params: Params, tmp_path: Path
) -> None:
    first = score_source(arrive(tmp_path, "a"), params, tmp_path, None, Brightness())
    inbox = tmp_path / "data" / "inbox"
    shutil.copytree(inbox / "a", inbox / "copy")
    assert keys(score_source("data/inbox/copy", params, tmp_path, None, Brightness())) == keys(first)
    (inbox / "a" / "more.png").write_bytes(png(50))
    assert keys(score_source("data/inbox/a", params, tmp_path, None, Brightness())) == keys(first)
    assert [kept["name"] for kept in state(tmp_path)["batches"]] == ["a"]


def test_other_files_under_a_known_name_are_said_to_be_not_looked_at(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "drift_looked" not in score_source(arrive(tmp_path, "today"), params, tmp_path, None, Brightness())
    assert "drift looked" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data/inbox/today")
    shutil.move(tmp_path / arrive(tmp_path, "tomorrow", MOVED), tmp_path / "data/inbox/today")
    again = score_source("data/inbox/today", params, tmp_path, None, Brightness())
    assert (again["drift_looked"], again["drift_batches"]) == (False, 1)
    assert "drift looked at earlier files of this name and not at these" in capsys.readouterr().err
    report = (tmp_path / "data/outliers/today/report.html").read_text()
    assert "Not tested for drift.</strong> Drift looked at earlier files of this name" in report


def test_a_job_that_dies_between_the_state_and_the_results_changes_nothing(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = arrive(tmp_path, "a")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(score_batch, "write_batch_report", die)
        with pytest.raises(KeyboardInterrupt):
            score_source(source, params, tmp_path, None, Brightness())
    before = state(tmp_path)
    assert len(before["batches"]) == 1
    assert score_source(source, params, tmp_path, None, Brightness())["drift_batches"] == 1
    assert state(tmp_path) == before


def test_a_batch_from_elsewhere_a_part_of_one_and_one_without_images_are_in_no_stream(
    params: Params, tmp_path: Path
) -> None:
    source = arrive(tmp_path, "a")
    (tmp_path / "data" / "inbox" / "broken").mkdir()
    (tmp_path / "data" / "inbox" / "broken" / "x.png").write_bytes(b"no image")
    shutil.copytree(tmp_path / source, tmp_path / "elsewhere")
    without = with_inbox(params, drift_alarm=None)
    for summary in (
        score_source("elsewhere", params, tmp_path, None, Brightness()),
        score_source(source, params, tmp_path, None, Brightness(), ScoreOptions(limit=5)),
        score_source(source, without, tmp_path, None, Brightness()),
        score_source("data/inbox/broken", params, tmp_path, None, Brightness()),
    ):
        assert keys(summary) == {}
    assert not list((tmp_path / "data" / "outliers").glob("drift-*.json"))


def test_the_stream_starts_anew_after_the_batch_that_a_person_has_seen(
    params: Params, tmp_path: Path, alarmed: dict[str, Any]
) -> None:
    seen = with_inbox(params, drift_seen=alarmed["drift_alarm_batch"])
    after = score_source(arrive(tmp_path, "after", MOVED), seen, tmp_path, None, Brightness())
    assert (after["drift_alarm"], after["drift_batches"]) == (False, 1)
    old = score_source(f"data/inbox/{alarmed['drift_alarm_batch']}", seen, tmp_path, None, Brightness())
    assert keys(old) == keys(alarmed), "what was said of the alarm stays"
    unknown = with_inbox(params, drift_seen="no such batch")
    assert score_source(arrive(tmp_path, "next", MOVED), unknown, tmp_path, None, Brightness())["drift_alarm"]


def test_another_detector_starts_a_stream_of_its_own(params: Params, tmp_path: Path, alarmed: dict[str, Any]) -> None:
    class Retrained(Brightness):
        digest = "brightness-2"
        calibration = np.sort(np.append(Brightness.calibration, Brightness.calibration.mean()))

    class Labelled(Brightness):
        digest = "brightness and labels"

    labelled = score_source(arrive(tmp_path, "labelled"), params, tmp_path, None, Labelled())
    assert (labelled["drift_alarm"], labelled["drift_batches"]) == (True, 10), "labels do not end an alarm"
    summary = score_source(arrive(tmp_path, "after"), params, tmp_path, None, Retrained())
    assert (summary["drift_alarm"], summary["drift_batches"]) == (False, 1)
    assert score_source(arrive(tmp_path, "back"), params, tmp_path, None, Brightness())["drift_alarm"]


def test_a_state_that_cannot_be_read_now_is_left_alone(params: Params, tmp_path: Path) -> None:
    score_source(arrive(tmp_path, "a"), params, tmp_path, None, Brightness())
    (file,) = (tmp_path / "data" / "outliers").glob("drift-*.json")
    file.unlink()
    file.symlink_to(file.name)  # a link to itself: the system answers with an error, and nothing is damaged
    with pytest.raises(DataError, match="cannot be read"):
        score_source(arrive(tmp_path, "b"), params, tmp_path, None, Brightness())
    assert file.is_symlink()
    assert not list(file.parent.glob("*.damaged"))


@pytest.mark.parametrize("damage", ["[]", "{", '{"format": 1, "detector": "x", "batches": [{"name": "a"}]}', None])
def test_a_damaged_state_is_named_and_put_aside(
    params: Params, tmp_path: Path, damage: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    score_source(arrive(tmp_path, "a"), params, tmp_path, None, Brightness())
    (file,) = (tmp_path / "data" / "outliers").glob("drift-*.json")
    if damage is None:  # an alarm that names a batch that has not come
        damage = file.read_text().replace('"alarm":null', '"alarm":7')
    file.write_text(damage)
    assert score_source(arrive(tmp_path, "b"), params, tmp_path, None, Brightness())["drift_batches"] == 1
    assert file.name in (said := capsys.readouterr().err)
    assert "the drift test starts anew" in said
    assert file.with_suffix(".damaged").read_text() == damage


def test_a_drifted_batch_among_the_past_ones_does_not_make_the_next_normal_one_look_drifted(
    params: Params, tmp_path: Path
) -> None:
    found = {}
    for name, levels in (("a", (5, 95)), ("b", (5, 95)), ("moved", MOVED), ("c", (5, 95))):
        source = arrive(tmp_path, name, levels, images=60)
        found[name] = score_source(source, params, tmp_path, None, Brightness())["drift_from_past_p_value"]
    assert found["a"] is None
    assert found["moved"] < 1e-6
    assert found["c"] > 0.05


def test_batches_under_an_alarm_are_no_past(params: Params, tmp_path: Path, alarmed: dict[str, Any]) -> None:
    summary = score_source(arrive(tmp_path, "later"), params, tmp_path, None, Brightness())
    assert summary["past_batches"] == alarmed["drift_batches"] - 1, "all but the one with the alarm"


def test_every_measure_is_said_in_words() -> None:
    said = {in_words(f"{measure} {way}") for measure in MEASURES for way in ("up", "down")} | {in_words("calibration")}
    assert len(said) == 2 * len(MEASURES) + 1
    assert all(" " in words and "_" not in words for words in said)
