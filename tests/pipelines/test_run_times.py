from __future__ import annotations

import json
from pathlib import Path

from pipelines.run_times import Step, save, table, timed, work_seconds


def test_work_that_ran_side_by_side_counts_once_and_skipped_work_not_at_all() -> None:
    steps = [
        Step("prepare", "ran", 0, 10),
        Step("train@a", "ran", 10, 40),
        Step("evaluate@b", "ran", 30, 50),
        Step("train_classifier", "ran", 60, 65),
        Step("train@c", "skipped", 70, 71),
        Step("calibrate", "ran", 80, 90),
    ]
    assert work_seconds(steps) == 45


def test_the_table_names_every_step_and_the_two_shares_make_the_whole() -> None:
    lines = table([Step("start", "done", 0, 5), Step("train@a", "ran", 5, 80)], 0, 100).splitlines()
    assert lines[0].split() == ["start", "done", "5.0", "s"]
    assert lines[-2].endswith("75.0 s   75.0 %")
    assert lines[-1].endswith("25.0 s   25.0 %")


def test_a_run_is_saved_with_seconds_since_its_start(tmp_path: Path) -> None:
    save([Step("train@a", "ran", 105, 180)], 100, 200, tmp_path / "var" / "run.json")
    run = json.loads((tmp_path / "var" / "run.json").read_text())
    assert (run["wall_seconds"], run["work_seconds"]) == (100, 75)
    assert run["steps"] == [{"name": "train@a", "outcome": "ran", "started": 5, "ended": 80}]


def test_a_timed_block_ends_when_it_ends() -> None:
    with timed("push") as step:
        step.outcome = "nothing"
    assert step.seconds >= 0
    assert step.outcome == "nothing"
