from __future__ import annotations

import pty
import subprocess
import sys

import pytest

from densitywatch import progress


def test_piped_progress_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("counting: 3 done in ")
    assert err.count("\n") == 1
    assert "\r" not in err
    assert "\x1b" not in err


def test_long_piped_work_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    list(progress.track(iter("ab"), "reading", total=2))
    assert capsys.readouterr().err.splitlines()[:2] == ["reading: 1 of 2", "reading: 2 of 2"]


def test_a_terminal_gets_a_bar() -> None:
    program = "from densitywatch.progress import track\nfor _ in track(range(5), 'reading'): pass\n"
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, stdout=theirs) as process:
        process.wait(60)
    import os

    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "reading" in shown
    assert "5/5" in shown
    assert "━" in shown
