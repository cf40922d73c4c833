"""Files of DVC's cache whose bytes have changed: they are never taken for what they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densitywatch.files import file_digest
from tests.faults import struck, toy
from tests.faults.tally import Tally

pytestmark = [pytest.mark.timeout(1200), pytest.mark.server]


def cached(root: Path, name: str) -> Path:
    """The file in DVC's cache that holds an output."""
    digest = file_digest(root / name, "md5")
    return root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    os.chmod(path, 0o644)  # noqa: PTH101 DVC writes its cache for reading alone
    if how == "one bit turned over":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        path.write_bytes(data[: len(data) // 2])
    os.chmod(path, 0o444)  # noqa: PTH101


def test_a_damaged_file_of_the_cache_never_becomes_an_output(tmp_path: Path, tally: Tally) -> None:
    root = toy.make(tmp_path / "project")
    assert toy.retrain(root)[0] == 0
    first = toy.outputs(root)
    for how, present in (("cut off", True), ("one bit turned over", False), ("cut off", False)):
        with tally.tried(f"a corrupted DVC cache file: {how}, its output {'there' if present else 'gone'}"):
            damage(cached(root, "models/b"), how)
            if not present:
                (root / "models" / "b").unlink()
                (root / "report.txt").unlink()
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            assert toy.outputs(root) == first
            assert toy.dvc(root, "status", "--json").stdout.strip() == "{}"
            assert struck.left_over(root, 10) == []
