"""Before a retraining trains, the images of the alarm's batches become a version of DVC's, and its page says so."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch.batches.accepting import accept
from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.score_batch import score_source
from densitywatch.data.look import ACCEPTED
from densitywatch.params import Params, load_params
from pipelines import drift_retraining, dvc_commands, git_files
from pipelines.drift_retraining import accept_images, refresh_images, refreshed
from tests.detector.standin import Brightness, fill

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the task says, which runs without a server here."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(drift_retraining, "get_run_logger", lambda: logging.getLogger("retrain"))
    monkeypatch.setattr(drift_retraining, "leave_artifact", lambda make: None)
    return caplog


def test_accepted_images_are_a_version_of_dvcs_that_counts_as_a_result_and_nothing_accepted_is_none(
    toy: Path, said: pytest.LogCaptureFixture
) -> None:
    params: Params = load_params(PROJECT / "params.yaml")
    (toy / ".gitignore").write_text((PROJECT / ".gitignore").read_text())
    fill(toy / "data/inbox/monday", 36, bright=4)
    score_source("data/inbox/monday", params, toy, None, Brightness())
    folder = toy / "data/outliers/monday"
    kept = f"{ACCEPTED}.dvc"

    nothing = accept_images.fn(["monday"], "monday", params, toy, "")
    assert nothing.outcome == "0 images"
    assert not (toy / kept).exists()
    assert "Nothing is learnt until somebody looks: densitywatch review monday --at-random 200" in said.text

    give_verdicts(folder, dict.fromkeys(list(flagged(folder))[:2], "fine"))
    done = accept_images.fn(["monday"], "monday", params, toy, "")
    assert done.outcome == "2 images"
    assert "2 images of 1 batch accepted into the dataset" in said.text
    first = (toy / kept).read_text()
    assert git_files.unkept_results(toy) == [kept]
    assert not {kept, f"{ACCEPTED}/monday.parquet"} & set(git_files.uncommitted(toy))

    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    accept_images.fn(["monday"], "monday", params, toy, "")
    second = (toy / kept).read_text()
    assert second != first
    (toy / kept).write_text(first)
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q", kept], cwd=toy, check=True)
    (toy / kept).write_text(second)
    assert (
        "data/accepted"
        in subprocess.run(
            [sys.executable, "-m", "dvc", "status", kept], cwd=toy, check=True, capture_output=True, text=True
        ).stdout
    ), "the first version came back"
    accept_images.fn(["monday"], "monday", params, toy, "")
    assert (toy / kept).read_text() == second

    # the alarm is over, and one of the verdicts is taken back
    give_verdicts(folder, {next(iter(flagged(folder))): "outlier"})
    assert refresh_images.fn(params, toy).outcome == "changed"
    assert (toy / kept).read_text() != second
    assert refresh_images.fn(params, toy).outcome == "no change"

    give_verdicts(folder, dict.fromkeys(flagged(folder), "outlier"))
    assert accept_images.fn(["monday"], "monday", params, toy, "").outcome == "0 images"
    assert not (toy / kept).exists()


def test_a_stop_between_accepting_and_dvc_is_made_up_for_by_the_next_run_and_a_pulled_version_is_left(
    toy: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_retraining, "refresh_images", refresh_images.fn)
    params: Params = load_params(PROJECT / "params.yaml")
    fill(toy / "data/inbox/monday", 36, bright=4)
    score_source("data/inbox/monday", params, toy, None, Brightness())
    folder = toy / "data/outliers/monday"
    kept = toy / f"{ACCEPTED}.dvc"

    give_verdicts(folder, dict.fromkeys(list(flagged(folder))[:2], "fine"))
    assert accept(["monday"], params, toy).changed  # and there the run is stopped
    assert [step.outcome for step in refreshed(params, toy)] == ["no change"]
    first = kept.read_text()

    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    assert accept([], params, toy).changed
    refreshed(params, toy)
    second = kept.read_text()
    assert second != first
    assert kept.relative_to(toy).as_posix() not in dvc_commands.status(toy)

    # git brought another version: the run pulls its files, and what lies here does not take its place
    kept.write_text(first)
    refreshed(params, toy)
    assert kept.read_text() == first
    kept.write_text(second)

    give_verdicts(folder, dict.fromkeys(flagged(folder), "outlier"))
    assert accept([], params, toy).changed
    refreshed(params, toy)
    assert not kept.exists()
    assert refreshed(params, toy) == []
