"""Two programs in one checkout at the same time: two runs of `retrain`, and a `dvc repro` that a person types."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import struck, toy
from tests.faults.tally import Tally

pytestmark = [pytest.mark.timeout(1200), pytest.mark.server]


def stages_begun(root: Path) -> Counter[str]:
    return Counter((root / "started.txt").read_text().split())


def test_of_two_runs_at_once_one_goes_on_and_the_other_says_so_in_a_sentence(tmp_path: Path, tally: Tally) -> None:
    reference = toy.make(tmp_path / "reference")
    assert toy.retrain(reference)[0] == 0
    for seconds in (0.0, 3.0):
        with tally.tried("two retrain at once"):
            root = toy.make(tmp_path / f"both{seconds}", pause=2.0)
            environment = struck.of_project(root)
            first = struck.start(toy.RETRAIN, root, environment)
            time.sleep(seconds)
            second = struck.start(toy.RETRAIN, root, environment)
            codes = sorted([first.wait(600), second.wait(600)])
            said = toy.said(root)
            assert codes == [0, 1], said[-4000:]
            assert said.count("is going on in") == 1, said[-4000:]
            assert "Traceback" not in said
            assert stages_begun(root) == {"a": 1, "b": 1, "c": 1}
            assert toy.outputs(root) == toy.outputs(reference)
            assert struck.left_over(root, 10) == []


@pytest.mark.parametrize("first", ["the flow", "dvc repro"])
def test_a_dvc_repro_beside_a_flow_costs_neither_of_them_a_stage(first: str, tmp_path: Path, tally: Tally) -> None:
    reference = toy.make(tmp_path / "reference")
    assert toy.retrain(reference)[0] == 0
    with tally.tried(f"a dvc repro beside a flow, {first} first"):
        root = toy.make(tmp_path / "both", pause=3.0)
        environment = struck.of_project(root)
        programs = {"the flow": toy.RETRAIN, "dvc repro": [sys.executable, "-m", "dvc", "repro"]}
        other = next(name for name in programs if name != first)
        running = struck.start(programs[first], root, environment)
        while not (root / "started.txt").is_file():
            assert running.poll() is None, toy.said(root)
            time.sleep(0.1)
        beside = subprocess.run(
            programs[other], cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        code = running.wait(600)
        flow = code if first == "the flow" else beside.returncode
        assert flow == 0, toy.said(root)[-4000:] + beside.stdout[-3000:] + beside.stderr[-3000:]
        assert toy.outputs(root) == toy.outputs(reference)
        assert toy.dvc(root, "status", "--json").stdout.strip() == "{}"
        assert stages_begun(root) == {"a": 1, "b": 1, "c": 1}
        again = toy.dvc(root, "repro")
        assert again.returncode == 0, again.stdout + again.stderr
        assert stages_begun(root) == {"a": 1, "b": 1, "c": 1}
        assert struck.left_over(root, 10) == []
