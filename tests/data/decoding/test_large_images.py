"""Whatever the size of the images, the whole chain keeps within the memory of a small machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

GIB = 1 << 30
MOST = 8 * GIB


@pytest.mark.timeout(1500)
def test_every_stage_on_colour_images_of_256_pixels_keeps_within_8_gib(project_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.data.decoding.large_images", str(tmp_path)]
    done = subprocess.run(command, cwd=project_root, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    peaks = json.loads((tmp_path / "peaks.json").read_text(encoding="utf-8"))
    assert 0 < peaks["self"] < MOST
    assert peaks["children"] < MOST
    assert peaks["scored"] > 0
    stored = np.load(tmp_path / "data" / "prepared" / "train.npy", mmap_mode="r", allow_pickle=False)
    assert stored.shape[1:] == (3, 256, 256)
    for name in ("vae", "pixelcnn"):
        figures = json.loads((tmp_path / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
        assert figures["size"] == 32
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "32 x 32" in page
    assert len(page) < 20 << 20
