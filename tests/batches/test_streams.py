"""A batch has one place in its stream: whoever scores it again, when, and however a job ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from densitywatch.arrays import Floats
from densitywatch.batches import streams
from densitywatch.batches.flags import flag
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.batches.streams import Rule
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.batches import job
from tests.detector.standin import Brightness, fill

CALIBRATION = np.linspace(0.0, 1.0, 5999)
RULE = Rule(0.1, "stream")


def judged(
    results: Path, batch: str, low: int, *, content: str = "c", images: int = 60
) -> tuple[int, dict[str, object]]:
    p = np.ones(images)
    p[:low] = 1 / 6000
    found = flag(p, CALIBRATION, RULE, results=results, batch=batch, content=content)
    return int(found.outlier.sum()), found.facts


def file_of(results: Path) -> Path:
    (file,) = results.glob("stream-*.json")
    return file


def places(results: Path) -> list[dict[str, object]]:
    return list(json.loads(file_of(results).read_text())["batches"])


def test_a_batch_scored_again_has_the_level_it_had_and_changes_nothing(tmp_path: Path) -> None:
    first = judged(tmp_path, "a", 2)
    judged(tmp_path, "b", 5)
    later = judged(tmp_path, "c", 0)
    before = file_of(tmp_path).read_bytes()
    assert judged(tmp_path, "a", 2) == first
    assert judged(tmp_path, "c", 0) == later
    assert file_of(tmp_path).read_bytes() == before
    assert [place["batch"] for place in places(tmp_path)] == ["a", "b", "c"]


def standing(results: Path) -> list[tuple[object, object, object]]:
    return [(place["content"], place["flagged"], place["stands"]) for place in places(results)]


def test_files_that_changed_under_a_name_are_a_later_batch_and_count_once(tmp_path: Path) -> None:
    assert judged(tmp_path, "today", 5, content="monday")[0] == 5
    again, said = judged(tmp_path, "today", 5, content="tuesday")
    assert (again, said["stream_batch"], said["stream_flagged_before"]) == (5, 2, 0)
    assert standing(tmp_path) == [("monday", 5, False), ("tuesday", 5, True)]
    assert judged(tmp_path, "tomorrow", 0)[1]["stream_flagged_before"] == 5


def test_withdrawn_flags_pay_for_nothing_in_the_batch_that_replaces_them(tmp_path: Path) -> None:
    assert judged(tmp_path, "today", 60, content="monday")[0] == 60
    assert judged(tmp_path, "today", 5, content="tuesday")[1]["level"] == RULE.rate
    charged = float(str(places(tmp_path)[1]["charged"]))
    assert judged(tmp_path, "tomorrow", 0)[1]["level"] == pytest.approx(RULE.rate * 5 - charged)


def test_files_that_come_back_are_judged_as_before_and_count_alone(tmp_path: Path) -> None:
    first = judged(tmp_path, "today", 5, content="monday")
    judged(tmp_path, "today", 7, content="tuesday")
    assert judged(tmp_path, "today", 5, content="monday") == first
    assert standing(tmp_path) == [("monday", 5, True), ("tuesday", 7, False)]
    assert judged(tmp_path, "tomorrow", 0)[1]["stream_flagged_before"] == 5


@pytest.mark.parametrize(("first", "then"), [((0, 40), (60, 100)), ((60, 100), (0, 40)), ((5, 60), (6, 60))])
def test_the_same_files_with_other_p_values_are_charged_for_the_flags_they_have_now(
    tmp_path: Path, first: tuple[int, int], then: tuple[int, int]
) -> None:
    # an image that could not be decoded at first, or scores that were rounded in another way
    before = judged(tmp_path, "today", first[0], images=first[1])
    now, said = judged(tmp_path, "today", then[0], images=then[1])
    old, new = places(tmp_path)
    assert (now, said["stream_batch"], said["level"]) == (then[0], 2, RULE.rate)
    assert (old["stands"], new["stands"], new["images"], new["flagged"]) == (False, True, then[1], now)
    later = judged(tmp_path, "tomorrow", 0)[1]
    assert later["level"] == max(0.0, RULE.rate * max(1, now) - float(str(new["charged"])))
    assert judged(tmp_path, "today", then[0], images=then[1]) == (now, said)
    assert judged(tmp_path, "today", first[0], images=first[1]) == before, "the place of these p-values stands again"
    assert [place["stands"] for place in places(tmp_path)] == [True, False, True]


def test_a_place_without_a_digest_is_known_by_the_flags_and_the_charge_that_it_has(tmp_path: Path) -> None:
    first = judged(tmp_path, "today", 5)
    file = file_of(tmp_path)
    written = json.loads(file.read_text())
    del written["batches"][0]["p_values"]  # as it was written before
    file.write_text(json.dumps(written))
    assert judged(tmp_path, "today", 5) == first
    assert len(places(tmp_path)) == 1
    assert judged(tmp_path, "today", 6)[0] == 6
    assert standing(tmp_path) == [("c", 5, False), ("c", 6, True)]


def test_a_folder_that_grows_while_it_is_scored_keeps_its_flags(tmp_path: Path) -> None:
    for outliers in range(6):
        found, _ = judged(tmp_path, "today", outliers, content=str(outliers), images=10 + 10 * outliers)
    assert found == 5


def test_another_detector_rate_or_number_of_alike_images_is_another_stream(tmp_path: Path) -> None:
    judged(tmp_path, "a", 5)
    others = [Rule(0.2, "stream"), Rule(0.1, "stream", strict=True), Rule(0.1, "stream", alike=2)]
    for number, rule in enumerate(others, start=2):
        said = flag(np.ones(60), CALIBRATION, rule, results=tmp_path, batch="b", content="c").facts
        assert (said["stream_batch"], said["stream_flagged_before"]) == (1, 0)
        assert len(list(tmp_path.glob("stream-*.json"))) == number
    moved: Floats = CALIBRATION + 1
    assert flag(np.ones(60), moved, RULE, results=tmp_path, batch="b", content="c").facts["stream_batch"] == 1


def test_a_damaged_stream_stops_the_job_before_it_scores_and_is_left_as_it_is(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 10)
    options = ScoreOptions(control="stream")
    score_source("batch", params, tmp_path, None, Brightness(), options)
    file = file_of(tmp_path / "data/outliers")
    file.write_text(file.read_text()[:-20])
    damaged, detector = file.read_bytes(), Brightness()
    fill(tmp_path / "next", 10)
    with pytest.raises(DataError, match=r"stream-.*move it away to start a new stream"):
        score_source("next", params, tmp_path, None, detector, options)
    assert detector.seen == 0
    assert file.read_bytes() == damaged
    file.unlink()
    assert score_source("next", params, tmp_path, None, detector, options)["stream_batch"] == 1


@pytest.mark.parametrize("placed", [True, False])
def test_a_job_that_ends_between_the_place_and_the_results_is_judged_as_before(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: bool
) -> None:
    fill(tmp_path / "a", 40, bright=4)
    fill(tmp_path / "b", 40, bright=2)
    options = ScoreOptions(control="stream")

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        step = "score_batch.write_gallery" if placed else "streams.write_whole"
        patched.setattr(f"densitywatch.batches.{step}", end)
        with pytest.raises(KeyboardInterrupt):
            score_source("a", params, tmp_path, None, Brightness(), options)
    score_source("b", params, tmp_path, None, Brightness(), options)
    summary = score_source("a", params, tmp_path, None, Brightness(), options)
    assert summary["stream_batch"] == (1 if placed else 2)
    assert [place["batch"] for place in places(tmp_path / "data/outliers")] == (["a", "b"] if placed else ["b", "a"])
    page = (Path(summary["folder"]) / "report.html").read_text()
    assert f"Batch {summary['stream_batch']} of its stream" in page
    written = {path.name: path.read_bytes() for path in Path(summary["folder"]).iterdir() if path.name != "run.json"}
    again = score_source("a", params, tmp_path, None, Brightness(), options)
    assert again["stream_batch"] == summary["stream_batch"]
    assert written == {
        path.name: path.read_bytes() for path in Path(summary["folder"]).iterdir() if path.name != "run.json"
    }


def test_the_batch_rule_and_the_stream_may_take_turns_on_a_batch(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 40, bright=1)
    plain = score_source("batch", params, tmp_path, None, Brightness())
    stream = score_source("batch", params, tmp_path, None, Brightness(), ScoreOptions(control="stream"))
    assert (plain["control"], plain["outliers"]) == ("batch", 1)
    assert (stream["control"], stream["outliers"]) == ("stream", 0)
    assert score_source("batch", params, tmp_path, None, Brightness())["outliers"] == 1


def add(results: Path, start: int) -> None:
    for number in range(start, start + 10):
        judged(results, f"batch{number}", number % 7)


def test_jobs_at_once_take_turns_and_lose_no_batch(tmp_path: Path) -> None:
    jobs = [job.context().Process(target=add, args=(tmp_path, start)) for start in (0, 10, 20, 10)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()
        assert process.exitcode == 0
    found = places(tmp_path)
    assert sorted(str(place["batch"]) for place in found) == sorted(f"batch{number}" for number in range(30))
    flagged, charged = 0, 0.0
    for place in found:  # each was judged with all before it known
        assert place["flagged_before"] == flagged
        assert place["charged_before"] == pytest.approx(charged)
        flagged, charged = flagged + int(str(place["flagged"])), charged + float(str(place["charged"]))


def test_the_place_is_on_the_disk_before_the_flags_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decision, past, number = streams.judge(tmp_path, np.ones(60), CALIBRATION, RULE, batch="a", content="c")
    assert (number, past.flagged, decision.charged) == (1, 0, places(tmp_path)[0]["charged"])

    def full(*_: object, **__: object) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr(streams, "write_whole", full)
    with pytest.raises(DataError, match="full"):
        judged(tmp_path, "b", 5)
    assert len(places(tmp_path)) == 1
