"""However a job ends, starting it again ends in the same bytes."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.batches.verdicts import Verdict, write_verdicts
from densitywatch.params import Params
from tests.batches import job
from tests.detector.standin import Brightness, fill, png

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "batch", 20, bright=2)
    (folder / "broken.png").write_bytes(png()[:60])
    return folder


def results(out: Path) -> dict[str, bytes]:
    """All that a job promises to be the same."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "run.json"}


@pytest.fixture
def reference(params: Params, source: Path, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "reference" / "out"
    score_source(str(source), params, tmp_path, out, Brightness())
    return results(out)


def test_killed_at_twenty_random_moments_the_job_gives_one_result(
    params: Params, source: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    pause = 0.05
    job.start(params, source, tmp_path / "warm" / "out", seconds=pause).join()
    started = time.monotonic()
    job.start(params, source, tmp_path / "timed" / "out", seconds=pause).join()
    whole = time.monotonic() - started
    moments = random.Random(5)
    killed = 0
    for i in range(20):
        out = tmp_path / f"kill{i}" / "out"
        process = job.start(params, source, out, seconds=pause)
        time.sleep(moments.uniform(0.1, 1.0) * whole)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        score_source(str(source), params, tmp_path, out, Brightness())
        assert results(out) == reference
        assert [path.name for path in out.parent.iterdir() if path.name != "out"] == [".out.lock"]
    assert killed >= 10


@pytest.mark.parametrize("start", ["nothing", "older results"])
def test_killed_at_any_change_to_the_disk_the_job_gives_one_result(
    params: Params, source: Path, tmp_path: Path, reference: dict[str, bytes], start: str
) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    verdict: dict[tuple[str, str], Verdict] = {("odd_0000.png", "0" * 64): "fine"}
    if start == "older results":
        score_source(str(source), params, tmp_path, prepared / "out", Brightness(), ScoreOptions(limit=12))
        write_verdicts(prepared / "out", verdict)
        reference = {**reference, "verdicts.json": (prepared / "out" / "verdicts.json").read_bytes()}
    ours, theirs = job.context().Pipe()
    shutil.copytree(prepared, tmp_path / "whole")
    job.start(params, source, tmp_path / "whole" / "out", log=theirs).join()
    changes = ours.recv()
    assert changes > 20
    assert results(tmp_path / "whole" / "out") == reference
    for moment in range(1, changes + 1, 3 if start == "older results" else 6):  # a step of 1 passes too
        out = tmp_path / f"change{moment}" / "out"
        shutil.copytree(prepared, out.parent)
        process = job.start(params, source, out, die_at=moment)
        process.join()
        assert process.exitcode == job.KILLED
        score_source(str(source), params, tmp_path, out, Brightness())
        assert results(out) == reference, f"killed at change {moment}"
        shutil.rmtree(out.parent)


def test_two_jobs_at_once_give_one_result(
    params: Params, source: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    out = tmp_path / "both" / "out"
    jobs = [job.start(params, source, out, seconds=0.02) for _ in range(3)]
    for process in jobs:
        process.join()
        assert process.exitcode == 0
    assert results(out) == reference
