"""A clock that jumps, forward and back, under programs at work: libfaketime gives them the time that a file says.

The wall clock jumps; the monotonic one does not, as when a machine's clock is set.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libfaketime
import pytest

from tests.faults import struck, toy
from tests.faults.tally import Tally
from tests.faults.test_training import TRAIN, outputs, project, runs

pytestmark = [pytest.mark.timeout(1200), pytest.mark.server]

LIBRARY = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
HOUR = 3600
JUMPS = (HOUR, -HOUR, 24 * HOUR, -24 * HOUR, 400 * 24 * HOUR, -30)


def fake_clock(file: Path) -> dict[str, str]:
    """Variables with which a program's clock goes as many seconds wrong as `file` says at the moment."""
    file.write_text("+0")
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
        "NO_FAKE_STAT": "1",
    }


@contextmanager
def jumping(file: Path, every: float) -> Iterator[list[int]]:
    """Let the clock of `file` jump all the time; gives the jumps so far."""
    stop, made, chosen = threading.Event(), list[int](), random.Random(15)

    def jump() -> None:
        while not stop.wait(every):
            made.append(chosen.choice(JUMPS))
            fresh = file.with_suffix(".new")
            fresh.write_text(f"{made[-1]:+d}")
            fresh.replace(file)

    thread = threading.Thread(target=jump, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()


def test_the_clock_of_these_tests_jumps_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    script = (
        "import time; a, b = time.time(), time.monotonic(); time.sleep(3); print(time.time() - a, time.monotonic() - b)"
    )
    clock = tmp_path / "clock"
    environment = struck.of_project(tmp_path) | fake_clock(clock)
    process = struck.start([struck.verb()[0], "-c", script], tmp_path, environment)
    time.sleep(1.5)
    clock.write_text(f"+{24 * HOUR}")
    assert process.wait(60) == 0, (tmp_path / "said.txt").read_text()
    wall, monotonic = map(float, (tmp_path / "said.txt").read_text().split())
    assert wall > 23 * HOUR
    assert monotonic == pytest.approx(3, abs=2)


def test_a_training_under_a_clock_that_jumps_ends_with_the_same_weights_and_curves(
    tmp_path: Path, tally: Tally
) -> None:
    reference = project(tmp_path / "reference")
    struck.finish(TRAIN, reference, struck.of_project(reference))
    root, clock = project(tmp_path / "jumping"), tmp_path / "clock"
    environment = struck.of_project(root) | fake_clock(clock)
    with tally.tried("a clock that jumps: training"), jumping(clock, 0.7) as made:
        struck.finish(TRAIN, root, environment)
        assert len(made) >= 3
        assert outputs(root) == outputs(reference)
        assert runs(root) == runs(reference)


def test_a_flow_under_a_clock_that_jumps_ends_like_another(tmp_path: Path, tally: Tally) -> None:
    reference = toy.make(tmp_path / "reference")
    assert toy.retrain(reference)[0] == 0
    root, clock = toy.make(tmp_path / "jumping", pause=2.0), tmp_path / "clock"
    with tally.tried("a clock that jumps: make run"), jumping(clock, 2.0) as made:
        process = struck.start(toy.RETRAIN, root, struck.of_project(root) | fake_clock(clock))
        assert process.wait(600) == 0, toy.said(root)[-4000:]
        assert len(made) >= 5
        assert toy.outputs(root) == toy.outputs(reference)
        assert toy.dvc(root, "status", "--json").stdout.strip() == "{}"
        assert struck.left_over(root, 10) == []
