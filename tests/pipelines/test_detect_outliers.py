"""The scheduled job as Prefect runs it, with a stand-in for the detector: what one batch or one kill must not spoil."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from densitywatch.batches.inbox import find_batches
from densitywatch.errors import DataError
from densitywatch.params import load_params
from densitywatch.tracking import runs as tracking
from pipelines import detect_outliers as job
from tests.detector.standin import Brightness, fill

pytestmark = pytest.mark.usefixtures("prefect_server")
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two batches in its inbox."""
    monkeypatch.setattr(job, "CHAMPION", Brightness())
    params = (PROJECT / "params.yaml").read_text()
    one_slot, several = re.subn(r"(?m)^  slots: \d+", "  slots: 1", params)  # as other tests find it on this server
    assert several == 1
    (tmp_path / "params.yaml").write_text(one_slot)
    for name in ("a", "b"):
        fill(tmp_path / "data" / "inbox" / name, 5)
        (tmp_path / "data" / "inbox" / name / "_SUCCESS").touch()
    return tmp_path


def states(root: Path) -> dict[str, str]:
    params = load_params(root / "params.yaml")
    return {batch.name: batch.state for batch in find_batches(params, root, now=time.time())}


def logged(root: Path) -> int:
    params = load_params(root / "params.yaml")
    client = tracking.open_client(tracking.tracking_uri(params, root))
    experiment = client.get_experiment_by_name(params.mlflow.experiment)
    return len(client.search_runs([experiment.experiment_id])) if experiment else 0


def test_an_empty_batch_and_one_of_broken_files_alone_keep_no_other_waiting(root: Path) -> None:
    inbox = root / "data" / "inbox"
    for name, files in (("0_empty", 0), ("1_broken", 4)):
        (inbox / name).mkdir()
        for i in range(files):
            (inbox / name / f"{i}.png").write_bytes(b"no image")
        (inbox / name / "_SUCCESS").touch()
    with pytest.raises(DataError, match="not as expected: 1_broken") as caught:
        job.detect_outliers(root)
    assert "0_empty" not in str(caught.value)
    assert states(root) == dict.fromkeys(["0_empty", "1_broken", "a", "b"], "done")
    assert logged(root) == 4


def test_a_job_killed_after_the_results_stood_is_taken_up_and_mlflow_hears_of_the_batch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "log_batch", kill)
        with pytest.raises(Killed):
            job.detect_outliers(root)
    results = root / "data" / "outliers" / "a"
    before = (results / "scores.parquet").stat().st_mtime_ns
    assert states(root) == {"a": "ready", "b": "ready"}
    assert logged(root) == 0
    assert {summary["batch"] for summary in job.detect_outliers(root)} == {"data/inbox/a", "data/inbox/b"}
    assert states(root) == {"a": "done", "b": "done"}
    assert logged(root) == 2
    assert (results / "scores.parquet").stat().st_mtime_ns == before, "the results stood and were not made again"
    assert job.detect_outliers(root) == []
