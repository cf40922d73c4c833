"""When a drift alarm asks for a retraining: once for each alarm, and again when people have given more to learn."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.drift_state import batches_since
from densitywatch.batches.results_folder import read_summary
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.score_batch import score_source
from densitywatch.errors import DataError
from densitywatch.params import Params, load_params
from pipelines import drift_loop, run_lock
from pipelines.drift_loop import ALARM, EVENT, HOUR, event_of
from pipelines.drift_note import FILE, Alarm, Asked, end_alarm, note_learnt, standing_alarm
from pipelines.up_to_date import standing_alarm as asked_by_up_to_date
from tests.batches.test_drift_state import MOVED, arrive
from tests.detector.standin import Brightness

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


def changed(params: Params, block: str, **values: Any) -> Params:
    return params.model_copy(update={block: getattr(params, block).model_copy(update=values)})


def follow_alarm(
    summaries: Sequence[dict[str, Any]], params: Params, root: Path, *, now: float, began: float = math.inf
) -> bool:
    return drift_loop.follow_alarm(summaries, params, root, began=began, now=now)


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The events and their batches; the server takes every one."""
    taken: list[tuple[str, str]] = []

    def emit(events: Sequence[str], alarm: Alarm, params: Params) -> bool:
        taken.extend((event, alarm.batch) for event in events)
        return True

    monkeypatch.setattr(drift_loop, "_emit", emit)
    return taken


def asks_of(emitted: list[tuple[str, str]]) -> list[str]:
    """The batches whose alarm asked for a retraining."""
    return [batch for event, batch in emitted if event == EVENT]


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
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    for number, summary in enumerate(moved):
        follow_alarm([summary], params, tmp_path, now=number * HOUR)
    assert asks_of(emitted) == [moved[-1]["drift_alarm_batch"]]
    note_learnt(standing_alarm(params, tmp_path), params, tmp_path)
    for hour in range(100, 400, 10):
        assert not follow_alarm([], params, tmp_path, now=hour * HOUR)
    alarm = standing_alarm(params, tmp_path)
    assert alarm is not None
    names = [Path(summary["folder"]).name for summary in moved]
    assert alarm.batches == names[names.index(moved[-1]["drift_since"]) :], "from the change on, the last one as well"


def test_without_an_alarm_nothing_is_asked_and_nothing_written(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    normal = [summary for summary in moved if not summary["drift_alarm"]]
    assert normal
    assert not follow_alarm(normal, params, tmp_path, now=0)
    assert not follow_alarm([], params, tmp_path, now=0)
    assert asks_of(emitted) == []
    assert not (tmp_path / params.inbox.results / FILE).exists()


def test_a_server_that_does_not_take_the_event_is_asked_again_at_the_next_run(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(drift_loop, "_emit", lambda events, alarm, params: answers.pop(0))
    assert not follow_alarm(moved, params, tmp_path, now=0)
    assert not follow_alarm([], params, tmp_path, now=1)
    assert follow_alarm([], params, tmp_path, now=2)
    assert not follow_alarm([], params, tmp_path, now=3)
    assert answers == []


def test_more_fine_verdicts_ask_again_after_the_cool_down_and_none_is_lost_in_it(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(params, "retrain", cool_down=24)
    follow_alarm(moved, params, tmp_path, now=0)
    assert len(asks_of(emitted)) == 1
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
    assert len(asks_of(emitted)) == 3


def _scores(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "scores.parquet").to_pylist()
    return rows


def test_a_second_alarm_within_the_cool_down_waits_and_then_asks(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(changed(params, "data", accept="all"), "retrain", cool_down=24)
    follow_alarm(moved, params, tmp_path, now=0)
    other = [{**summary, "drift_stream": "another detector", "drift_alarm_batch": "friday"} for summary in moved]
    assert not follow_alarm(other, params, tmp_path, now=1 * HOUR)
    assert not follow_alarm([], params, tmp_path, now=23.9 * HOUR)
    assert follow_alarm([], params, tmp_path, now=24.1 * HOUR)
    assert asks_of(emitted) == [moved[-1]["drift_alarm_batch"], "friday"]


def test_each_alarm_is_told_once_at_once_even_within_the_cool_down(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(changed(params, "data", accept="all"), "retrain", cool_down=24)
    first = moved[-1]["drift_alarm_batch"]
    follow_alarm(moved, params, tmp_path, now=0)
    assert emitted == [(ALARM, first), (EVENT, first)]
    other = [{**summary, "drift_stream": "another detector", "drift_alarm_batch": "friday"} for summary in moved]
    assert not follow_alarm(other, params, tmp_path, now=1 * HOUR)
    assert emitted[2:] == [(ALARM, "friday")]
    for hour in (2, 3, 25):
        follow_alarm(other, params, tmp_path, now=hour * HOUR)
    assert emitted[2:] == [(ALARM, "friday"), (EVENT, "friday")]


def test_a_retraining_that_did_not_end_well_is_asked_for_again_after_the_cool_down(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    for accept, cool_down in (("all", 24.0), ("reviewed", 24.0), ("never", 24.0), ("all", 0.0)):
        given = changed(changed(params, "data", accept=accept), "retrain", cool_down=cool_down)
        root, after = tmp_path / f"{accept}-{cool_down}", max(cool_down, 1.0)
        (root / "data").mkdir(parents=True)
        (root / "data" / "outliers").symlink_to(tmp_path / "data" / "outliers")
        (root / "data" / "outliers" / FILE).unlink(missing_ok=True)
        emitted.clear()
        assert follow_alarm(moved, given, root, now=0)
        assert not follow_alarm([], given, root, now=(after - 0.1) * HOUR), "it may still go on"
        with run_lock.one_run_at_a_time(root):
            assert not follow_alarm([], given, root, now=(after + 0.1) * HOUR), "it still goes on"
        assert follow_alarm([], given, root, now=(after + 0.2) * HOUR)
        assert not follow_alarm([], given, root, now=(after + 0.3) * HOUR)
        note_learnt(standing_alarm(given, root), given, root)
        assert not follow_alarm([], given, root, now=1000 * HOUR), "the gate refused what it learnt"
        assert len(asks_of(emitted)) == 2


def test_a_retraining_answers_only_what_it_was_asked_for(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(params, "data", accept="all")
    follow_alarm(moved, params, tmp_path, now=0)
    began = standing_alarm(params, tmp_path)
    other = [{**summary, "drift_stream": "another detector", "drift_alarm_batch": "friday"} for summary in moved]
    assert follow_alarm(other, params, tmp_path, now=30 * HOUR)
    note_learnt(began, params, tmp_path)
    assert follow_alarm([], params, tmp_path, now=60 * HOUR)
    note_learnt(None, params, tmp_path)
    assert follow_alarm([], params, tmp_path, now=90 * HOUR)


def test_where_all_is_accepted_later_batches_ask_again_and_a_refusal_by_the_gate_ends_nothing(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(params, "data", accept="all")
    follow_alarm(moved, params, tmp_path, now=0)
    note_learnt(standing_alarm(params, tmp_path), params, tmp_path)
    later = score_source(arrive(tmp_path, "later", MOVED), params, tmp_path, None, Brightness())
    assert not follow_alarm([later], params, tmp_path, now=1 * HOUR)
    assert follow_alarm([], params, tmp_path, now=25 * HOUR)


def test_what_a_run_says_that_began_before_the_new_detector_brings_no_alarm_back_but_a_rollback_may(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    began = time.time()
    follow_alarm(moved, params, tmp_path, now=0, began=began)
    end_alarm(params, tmp_path)
    assert not follow_alarm(moved, params, tmp_path, now=began + 100 * HOUR, began=began)
    assert standing_alarm(params, tmp_path) is None
    assert follow_alarm(moved, params, tmp_path, now=began + 200 * HOUR, began=time.time())
    assert standing_alarm(params, tmp_path) is not None


def test_an_end_noted_while_the_clock_was_ahead_silences_no_alarm(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    results = tmp_path / params.inbox.results
    now = time.time()
    (results / FILE).write_text(Asked(ended=now + 1000 * HOUR).model_dump_json())
    assert follow_alarm(moved, params, tmp_path, now=now, began=now)
    assert {event for event, _ in emitted} == {ALARM, EVENT}
    assert standing_alarm(params, tmp_path) is not None


def test_an_ask_noted_while_the_clock_was_ahead_keeps_no_cool_down(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(changed(params, "data", accept="all"), "retrain", cool_down=24)
    follow_alarm(moved, params, tmp_path, now=1000 * HOUR)
    assert not follow_alarm([], params, tmp_path, now=1000 * HOUR - 60), "a little ahead is another process's now"
    assert follow_alarm([], params, tmp_path, now=HOUR * 100), "the last ask and its retraining count no more"
    assert not follow_alarm([], params, tmp_path, now=HOUR * 101)
    assert follow_alarm([], params, tmp_path, now=HOUR * 125)


def test_an_alarm_ends_when_a_person_has_seen_it_or_another_detector_is_on_watch(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
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
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    follow_alarm(moved, params, tmp_path, now=0)
    before = [summary for summary in moved if not summary["drift_alarm"]]
    assert before
    follow_alarm(before, params, tmp_path, now=1)
    assert standing_alarm(params, tmp_path) is not None
    seen = changed(params, "inbox", drift_seen=Path(moved[-1]["folder"]).name)
    follow_alarm(moved, seen, tmp_path, now=1000 * HOUR)
    assert standing_alarm(seen, tmp_path) is None
    assert len(asks_of(emitted)) == 1


def test_never_asks_once_and_no_verdict_asks_again(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    params = changed(params, "data", accept="never")
    follow_alarm(moved, params, tmp_path, now=0)
    note_learnt(standing_alarm(params, tmp_path), params, tmp_path)
    folder = Path(moved[-1]["folder"])
    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    assert not follow_alarm([], params, tmp_path, now=1000 * HOUR)
    assert len(asks_of(emitted)) == 1


def test_a_damaged_file_is_put_aside_and_starts_no_storm(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    file = tmp_path / params.inbox.results / FILE
    follow_alarm(moved, params, tmp_path, now=time.time())
    file.write_text("{")
    for _ in range(3):
        follow_alarm(moved, params, tmp_path, now=time.time())
    assert len(asks_of(emitted)) == 1
    assert file.with_suffix(".damaged").read_text() == "{"


def test_a_name_that_leads_to_another_folder_is_damage_in_every_file_that_names_batches(
    params: Params, tmp_path: Path, moved: list[dict[str, Any]], emitted: list[tuple[str, str]]
) -> None:
    follow_alarm(moved, params, tmp_path, now=0)
    results, folder = tmp_path / params.inbox.results, Path(moved[-1]["folder"])
    (state,) = results.glob("drift-*.json")
    for file in (results / FILE, state, folder / "summary.json"):
        assert '"day0"' in file.read_text()
        file.write_text(file.read_text().replace('"day0"', '"../prepared/manifest"'))
    assert standing_alarm(params, tmp_path) is None
    assert (results / FILE).with_suffix(".damaged").is_file()
    assert read_summary(folder) is None
    with pytest.raises(DataError, match="damaged, or not written by densitywatch"):
        batches_since(results, moved[-1]["drift_stream"], "day1")


def test_the_event_says_which_batches_and_why_in_words_without_markup(params: Params) -> None:
    evil = "<img src=x> {{ 7 * 7 }} [a](b) `x`"
    alarm = Alarm(
        stream="abc", batch=evil, since=evil, moved="brightness up", evidence=123.4, batches=["a", "b"], seen=None
    )
    event = event_of(EVENT, alarm, params)
    assert event["event"] == "densitywatch.drift"
    assert event["resource"]["prefect.resource.id"] == "densitywatch.stream.abc"
    said = event["payload"]
    assert said["moved"] == "images are brighter"
    assert said["evidence"] == "a normal stream shows this much at most once in 123"
    for text in map(str, said.values()):
        assert not set("<>{}[]`*") & set(text), text
