"""When a drift alarm asks for a retraining: once for each alarm, and again when people have given more to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.score_batch import score_source
from densitywatch.params import Params, load_params
from pipelines import drift_loop
from pipelines.drift_loop import HOUR, event_of, follow_alarm
from pipelines.drift_note import FILE, Alarm, end_alarm, standing_alarm
from pipelines.up_to_date import standing_alarm as asked_by_up_to_date
from tests.batches.test_drift_state import MOVED, arrive
from tests.detector.standin import Brightness

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


def changed(params: Params, block: str, **values: Any) -> Params:
    return params.model_copy(update={block: getattr(params, block).model_copy(update=values)})


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The batches whose alarm asked for a retraining; the server takes every event."""
    asked: list[str] = []

    def ask(alarm: Alarm, params: Params) -> bool:
        asked.append(alarm.batch)
        return True

    monkeypatch.setattr(drift_loop, "_ask", ask)
    return asked


@pytest.fixture
def moved(params: Params, tmp_path: Path) -> list[dict[str, Any]]:
    """Summaries of a moved stream up to one batch after its alarm."""
    summaries: list[dict[str, Any]] = []
    for day in range(20):
        source = arrive(tmp_path, f"day{day}", MOVED)
        alarmed = bool(summaries) and summaries[-1]["drift_alarm"]
        summaries.append(score_source(source, params, tmp_path, None, Brightness()))
        if alarmed:
            return summaries
    raise AssertionError("no alarm in 20 moved batches")


def test_an_alarm_asks_once_however_many_batches_and_runs_follow(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    for number, summary in enumerate(moved):
        follow_alarm([summary], params, tmp_path, now=number * HOUR)
    assert asks == [moved[-1]["drift_alarm_batch"]]
    for hour in range(100, 400, 10):
        assert not follow_alarm([], params, tmp_path, now=hour * HOUR)
    alarm = standing_alarm(params, tmp_path)
    assert alarm is not None
    names = [Path(summary["folder"]).name for summary in moved]
    assert alarm.batches == names[names.index(moved[-1]["drift_since"]) :], "from the change on, the last one as well"


def test_without_an_alarm_nothing_is_asked_and_nothing_written(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    normal = [summary for summary in moved if not summary["drift_alarm"]]
    assert normal
    assert not follow_alarm(normal, params, tmp_path, now=0)
    assert not follow_alarm([], params, tmp_path, now=0)
    assert asks == []
    assert not (tmp_path / params.inbox.results / FILE).exists()


def test_a_server_that_does_not_take_the_event_is_asked_again_at_the_next_run(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(drift_loop, "_ask", lambda alarm, params: answers.pop(0))
    assert not follow_alarm(moved, params, tmp_path, now=0)
    assert not follow_alarm([], params, tmp_path, now=1)
    assert follow_alarm([], params, tmp_path, now=2)
    assert not follow_alarm([], params, tmp_path, now=3)
    assert answers == []


def test_more_fine_verdicts_ask_again_after_the_cool_down_and_none_is_lost_in_it(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    params = changed(params, "retrain", cool_down=24)
    follow_alarm(moved, params, tmp_path, now=0)
    assert len(asks) == 1
    alarm = standing_alarm(params, tmp_path)
    assert alarm is not None
    folder = tmp_path / params.inbox.results / alarm.batches[-1]
    keys = [(row["path"], row["sha256"]) for row in _scores(folder)]
    give_verdicts(folder, {keys[0]: "outlier"})
    assert not follow_alarm([], params, tmp_path, now=1 * HOUR), "an outlier is nothing to learn from"
    give_verdicts(folder, {keys[1]: "fine"})
    assert follow_alarm([], params, tmp_path, now=2 * HOUR), "the first ask had nothing to learn from: no cool-down"
    give_verdicts(folder, {keys[2]: "fine"})
    assert not follow_alarm([], params, tmp_path, now=25 * HOUR)
    assert follow_alarm([], params, tmp_path, now=26.1 * HOUR)
    assert len(asks) == 3


def _scores(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "scores.parquet").to_pylist()
    return rows


def test_a_second_alarm_within_the_cool_down_waits_and_then_asks(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    params = changed(changed(params, "data", accept="all"), "retrain", cool_down=24)
    follow_alarm(moved, params, tmp_path, now=0)
    other = [{**summary, "drift_stream": "another detector", "drift_alarm_batch": "friday"} for summary in moved]
    assert not follow_alarm(other, params, tmp_path, now=1 * HOUR)
    assert not follow_alarm([], params, tmp_path, now=23.9 * HOUR)
    assert follow_alarm([], params, tmp_path, now=24.1 * HOUR)
    assert asks == [moved[-1]["drift_alarm_batch"], "friday"]


def test_an_alarm_ends_when_a_person_has_seen_it_or_another_detector_is_on_watch(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    follow_alarm(moved, params, tmp_path, now=0)
    assert asked_by_up_to_date(params, tmp_path) is not None
    seen = changed(params, "inbox", drift_seen=Path(moved[-1]["folder"]).name)
    assert standing_alarm(seen, tmp_path) is None
    assert not follow_alarm([], seen, tmp_path, now=1000 * HOUR)
    follow_alarm(moved, params, tmp_path, now=2000 * HOUR)
    assert standing_alarm(changed(params, "inbox", drift_alarm=None), tmp_path) is None
    end_alarm(params, tmp_path)
    assert standing_alarm(params, tmp_path) is None
    follow_alarm(moved, params, tmp_path, now=3000 * HOUR)
    normal = {**moved[-1], "drift_alarm": False, "drift_stream": "of another detector"}
    follow_alarm([normal], params, tmp_path, now=3001 * HOUR)
    assert standing_alarm(params, tmp_path) is None


def test_batches_that_are_scored_again_neither_end_an_alarm_nor_raise_one_that_was_seen(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    follow_alarm(moved, params, tmp_path, now=0)
    before = [summary for summary in moved if not summary["drift_alarm"]]
    assert before
    follow_alarm(before, params, tmp_path, now=1)
    assert standing_alarm(params, tmp_path) is not None
    seen = changed(params, "inbox", drift_seen=Path(moved[-1]["folder"]).name)
    follow_alarm(moved, seen, tmp_path, now=1000 * HOUR)
    assert standing_alarm(seen, tmp_path) is None
    assert len(asks) == 1


def test_never_asks_once_and_no_verdict_asks_again(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    params = changed(params, "data", accept="never")
    follow_alarm(moved, params, tmp_path, now=0)
    folder = Path(moved[-1]["folder"])
    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    assert not follow_alarm([], params, tmp_path, now=1000 * HOUR)
    assert len(asks) == 1


def test_a_damaged_file_is_put_aside_and_starts_no_storm(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], asks: list[str]
) -> None:
    file = tmp_path / params.inbox.results / FILE
    follow_alarm(moved, params, tmp_path, now=0)
    file.write_text("{")
    for _ in range(3):
        follow_alarm(moved, params, tmp_path, now=0)
    assert len(asks) == 1
    assert file.with_suffix(".damaged").read_text() == "{"


def test_the_event_says_which_batches_and_why_in_words_without_markup(params: Params) -> None:
    evil = "<img src=x> {{ 7 * 7 }} [a](b) `x`"
    alarm = Alarm(
        stream="abc", batch=evil, since=evil, moved="brightness up", evidence=123.4, batches=["a", evil], seen=None
    )
    event = event_of(alarm, params)
    assert event["event"] == "densitywatch.drift"
    assert event["resource"]["prefect.resource.id"] == "densitywatch.stream.abc"
    said = event["payload"]
    assert said["moved"] == "images are brighter"
    assert said["evidence"] == "a normal stream shows this much at most once in 123"
    for text in map(str, said.values()):
        assert not set("<>{}[]`*") & set(text), text
