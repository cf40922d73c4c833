"""Names and messages from outside reach a terminal or a log as text alone."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch import cli
from densitywatch.batches.score_batch import score_source
from densitywatch.errors import DataError
from densitywatch.params import Params, load_params
from densitywatch.progress import say, tell
from densitywatch.text import visible
from tests.detector.standin import Brightness, fill, png

EVIL = "a\x1b]0;owned\x07\x1b[2Jb\r\x9b31mc\u202ed\x85e"
OBEYED = "\x1b\x07\r\x9b\u202e\x85\u2028\u2066"


def is_plain(text: str) -> bool:
    return not set(OBEYED) & set(text)


def test_what_a_terminal_would_obey_is_shown_by_its_code_and_once() -> None:
    shown = visible(EVIL + "\u2028\u2066\udcff")
    assert shown == "a\\x1b]0;owned\\x07\\x1b[2Jb\\r\\x9b31mc\\u202ed\\x85e\\u2028\\u2066\\udcff"
    assert visible(shown) == shown
    assert visible("a\nb\u200b") == "a\\nb\\u200b"
    assert visible("grün 例 🙂") == "grün 例 🙂"


def test_lines_to_a_person_and_errors_hold_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    tell(EVIL)
    captured = capsys.readouterr()
    assert is_plain(captured.out + captured.err)
    assert (captured.out + captured.err).count("\n") == 2
    assert is_plain(str(DataError(f"{EVIL}: no such folder")))
    assert str(DataError("two\nlines")) == "two lines"


def test_a_batch_whose_names_are_escape_sequences_leaves_none_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params: Params = load_params(Path(__file__).parents[1] / "params.yaml")
    batch = fill(tmp_path / EVIL, 3)
    (batch / EVIL).write_bytes(png()[:60])
    summary = score_source(str(batch), params, tmp_path, tmp_path / f"out {EVIL}", Brightness())
    score_source(str(batch), params, tmp_path, tmp_path / f"out {EVIL}", Brightness())
    cli._show({key: value for key, value in summary.items() if key != "folder"})
    captured = capsys.readouterr()
    assert summary["files"] == 4
    assert is_plain(captured.out + captured.err)
    assert "a\\x1b]0;owned" in captured.out


@pytest.mark.server
def test_a_verb_that_fails_on_such_a_name_says_so_in_one_plain_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((Path(__file__).parents[1] / "params.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "densitywatch", "review", EVIL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert "no results of a batch" in done.stderr
    assert is_plain(done.stdout + done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_name_that_the_terminal_has_no_letters_for_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["densitywatch", "--version"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main()
    tell("grün")
    out.flush()
    assert out.buffer.getvalue().endswith(b"gr\\xfcn\n")  # type: ignore[attr-defined]
