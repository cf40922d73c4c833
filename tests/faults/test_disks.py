"""Disks that are full, and a cache that cannot be written: one sentence, and nothing lost once there is room again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch.batches.score_batch import score_source
from densitywatch.params import load_params
from tests.batches import job
from tests.batches.test_kill import results
from tests.detector.standin import Brightness, fill
from tests.faults import struck, toy
from tests.faults.small_disk import leave_free, make_free, read_only, small_disk
from tests.faults.tally import Tally
from tests.faults.test_training import TRAIN, outputs, project

pytestmark = [pytest.mark.timeout(1800), pytest.mark.server]

FULL = re.compile(r"No space left on device|disk is full|disk I/O error|free some space")


def sentence(said: str) -> str:
    """The last line of a program that failed; there is no traceback above it."""
    assert "Traceback (most recent call last)" not in said, said[-4000:]
    return said.strip().splitlines()[-1]


def test_a_run_on_a_disk_that_fills_up_ends_in_a_sentence_and_goes_on_where_there_is_room(
    tmp_path: Path, tally: Tally
) -> None:
    reference = toy.make(tmp_path / "reference", size=1_500_000)
    assert toy.retrain(reference)[0] == 0
    for free in (400, 7_000, 11_000):
        with small_disk(tmp_path / f"disk{free}", 40) as disk, tally.tried("a full disk: make run"):
            root = toy.make(disk / "project", size=1_500_000)
            (root / "var").mkdir()
            # what the run says goes elsewhere: on the full disk its last line would be lost
            (root / "said.txt").symlink_to(tmp_path / f"said{free}.txt")
            leave_free(disk, free)
            code, said = toy.retrain(root)
            assert code == 1, said
            assert FULL.search(sentence(said)), said[-3000:]
            make_free(disk)
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            assert toy.outputs(root) == toy.outputs(reference)
            assert toy.dvc(root, "status", "--json").stdout.strip() == "{}"


def test_a_training_on_a_disk_that_fills_up_ends_in_a_sentence_and_goes_on_where_there_is_room(
    tmp_path: Path, tally: Tally
) -> None:
    reference = project(tmp_path / "reference")
    struck.finish(TRAIN, reference, struck.of_project(reference))
    for free in (0, 100, 1000, 1200):
        with small_disk(tmp_path / f"disk{free}", 16) as disk, tally.tried("a full disk: training"):
            root = project(disk / "project")
            environment = struck.of_project(root)
            leave_free(disk, free)
            done = subprocess.run(TRAIN, cwd=root, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                assert FULL.search(sentence(done.stderr)), done.stderr[-3000:]
            make_free(disk)
            struck.finish(TRAIN, root, environment)
            assert outputs(root) == outputs(reference)


def test_a_batch_scored_on_a_disk_that_fills_up_keeps_its_old_results_and_gets_its_new_ones_later(
    project_root: Path, tmp_path: Path, tally: Tally
) -> None:
    params = load_params(project_root / "params.yaml")
    source = fill(tmp_path / "batch", 60, bright=6)
    score_source(str(source), params, tmp_path, tmp_path / "reference" / "out", Brightness())
    failed = 0
    for free in (0, 8, 16, 32, 64, 128, 256):
        with small_disk(tmp_path / f"disk{free}", 4) as disk, tally.tried("a full disk: scoring a batch"):
            out = disk / "results" / "out"
            process = job.start(params, fill(tmp_path / "old", 10), out)
            process.join()
            before = results(out)
            leave_free(disk, free)
            process = job.start(params, source, out)
            process.join()
            if process.exitcode != 0:
                failed += 1
                assert results(out) == before
            make_free(disk)
            score_source(str(source), params, tmp_path, out, Brightness())
            assert results(out) == results(tmp_path / "reference" / "out")
    assert failed >= 3


def test_a_cache_that_cannot_be_written_is_a_sentence_where_something_is_to_be_written_and_else_no_matter(
    tmp_path: Path, tally: Tally
) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        root = toy.make(tmp_path / "project")
        assert toy.dvc(root, "cache", "dir", str(disk / "cache")).returncode == 0
        assert toy.retrain(root)[0] == 0
        first = toy.outputs(root)
        with tally.tried("a read-only cache, nothing to do"), read_only(disk):
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            assert toy.outputs(root) == first
        with tally.tried("a read-only cache, something to do"):
            graph = (root / "dvc.yaml").read_text()
            (root / "dvc.yaml").write_text(graph.replace("c: 3", "c: 4"))
            with read_only(disk):
                code, said = toy.retrain(root)
                assert code == 1, said
                assert "Read-only file system" in sentence(said), said[-3000:]
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            assert {name for name, digest in toy.outputs(root).items() if digest != first[name]} == {
                "models/c",
                "report.txt",
            }


def test_python_runs_these_tests_on_a_real_small_disk(tmp_path: Path) -> None:
    """Without this the tests above could pass on a disk that is not full."""
    with small_disk(tmp_path / "disk", 4) as disk:
        leave_free(disk, 0)
        write = f"open({str(disk / 'file')!r}, 'wb').write(bytes(9000))"
        done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True, check=False)
        assert "No space left on device" in done.stderr
        with read_only(disk):
            done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True, check=False)
            assert "Read-only file system" in done.stderr
