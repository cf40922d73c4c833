"""The last line of a run that met an error which nobody foresaw."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from pipelines import __main__ as program

Usage = namedtuple("Usage", "total used free")


def test_the_traceback_is_in_a_file_and_the_line_says_where(tmp_path: Path) -> None:
    said = program._unforeseen(RuntimeError("boom\nand more"), tmp_path)
    file = tmp_path / "var" / "log" / "traceback.txt"
    assert said == f"RuntimeError: boom; the traceback is in {file}"
    assert "boom\nand more" in file.read_text()


def test_a_full_disk_is_the_reason_that_is_given_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 1 << 30, 0))
    said = program._unforeseen(RuntimeError("500 Internal Server Error"), tmp_path)
    assert said == "the disk is full; free some space and run it again (RuntimeError: 500 Internal Server Error)"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_traceback_alone(tmp_path: Path) -> None:
    (tmp_path / "var").touch()
    said = program._unforeseen(RuntimeError("boom"), tmp_path)
    assert said.startswith(f"RuntimeError: boom; {tmp_path}/var/log/traceback.txt cannot be written: ")
