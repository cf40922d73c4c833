"""A disk of a few megabytes, in memory: it fills up, and it can be made read-only under whoever uses it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = ".ballast"


def privileged(*command: str | Path) -> None:
    """Run a command as root."""
    words = [*([] if os.getuid() == 0 else ["sudo", "-n"]), *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(words)}: {done.stderr.strip()}; `make faults` mounts small disks: run it as root")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size on `folder`, which is made."""
    folder.mkdir(parents=True)
    privileged("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", folder)
    try:
        yield folder
    finally:
        privileged("umount", "--lazy", folder)


def leave_free(disk: Path, kilobytes: int) -> None:
    """Fill the disk up to so much space."""
    (disk / BALLAST).unlink(missing_ok=True)
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - kilobytes * 1024
    assert size > 0, "the disk is too small for this test"
    with (disk / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def make_free(disk: Path) -> None:
    (disk / BALLAST).unlink(missing_ok=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Nobody can write to the disk inside the block, root included."""
    privileged("mount", "-o", "remount,ro", disk)
    try:
        yield
    finally:
        privileged("mount", "-o", "remount,rw", disk)
