from __future__ import annotations

import errno
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from densitywatch.errors import DataError
from densitywatch.files import content_digest, file_digest, read_json, whole_file, whole_folder, write_whole


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with whole_folder(target) as folder:
        (folder / "new").write_text("new")
        assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_after_an_error_the_old_folder_stays_and_nothing_is_left_next_to_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError), whole_folder(target) as folder:
        (folder / "new").write_text((folder / "missing").read_text())
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with pytest.raises(DataError, match="out: the disk is full"), whole_folder(tmp_path / "out"):
        raise OSError(number, "no space")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), whole_folder(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")


def test_weights_on_a_full_disk_are_a_sentence(tmp_path: Path) -> None:
    """The error is that of safetensors as a real full disk brings it about: tests/faults/test_disks.py."""
    with pytest.raises(DataError, match="the disk is full"), whole_file(tmp_path / "model.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), whole_file(tmp_path / "model.safetensors"):
        raise SafetensorError("Error while serializing: invalid shape")
    assert not list(tmp_path.iterdir())


def test_a_file_on_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: real(Path("/dev/full"), data))
    with pytest.raises(DataError, match="the disk is full"):
        write_whole(tmp_path / "metrics.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    program = (
        "import pathlib, sys, time\nfrom densitywatch.files import whole_folder\n"
        f"with whole_folder(pathlib.Path({str(target)!r})) as folder:\n"
        "    (folder / 'half').touch(); print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with whole_folder(tmp_path / "out"):
            assert len(list(tmp_path.glob(".out.densitywatch.partial-*"))) == 2, "a folder of a running process stays"
        process.send_signal(signal.SIGKILL)
    assert not (target / "half").exists()
    for _ in range(50):
        if not Path(f"/proc/{process.pid}").exists():
            break
        time.sleep(0.1)
    with whole_folder(target):
        pass
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == []


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep/metrics.json"
    write_whole(path, "{}")
    write_whole(path, b"{1}")
    assert path.read_bytes() == b"{1}"
    assert [item.name for item in path.parent.iterdir()] == ["metrics.json"]
    assert file_digest(path) == hashlib.sha256(b"{1}").hexdigest()


@pytest.mark.parametrize("name", [".out.partial-999999", ".out.densitywatch.partial-999999"])
def test_a_folder_of_the_users_with_such_a_name_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("do not lose")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert (tmp_path / name / "thesis.txt").read_text() == "do not lose"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.parametrize(
    "content",
    [b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a"', b"\xff", b""],
)
def test_what_is_read_back_is_whole_json_or_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not whole JSON"):
        read_json(path)
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": "\U0001f600"}
    with pytest.raises(DataError, match="larger than"):
        read_json(path, most=5)
    with pytest.raises(DataError, match="not a file"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_the_digest_of_a_folder_knows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = content_digest(tmp_path)
    (tmp_path / "a").write_text("2")
    second = content_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, content_digest(tmp_path)}) == 3
