"""Prefect's worker gives back the memory of its runs (docs/reliability.md, "Two hours of batches")."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STAND_IN = """
import gc
import sys
import time
import weakref


class Connection:
    pass


gc.disable()  # Python's own collector, which comes hours later
one = Connection()
one.itself = one
seen = weakref.ref(one)
del one
until = time.monotonic() + 30
while seen() is not None and time.monotonic() < until:
    time.sleep(0.01)
print(seen() is None, *sys.argv[1:])
"""


def test_garbage_is_collected_while_prefect_runs(tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "__main__.py").write_text(STAND_IN)
    run = subprocess.run(
        [sys.executable, "-c", "from pipelines.prefect_worker import main; main(['--pool', 'gpu'], every=0.1)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(project_root)])},
        capture_output=True,
        text=True,
        check=True,
    )
    collected, *asked = run.stdout.split()
    assert (collected, asked) == ("True", ["worker", "start", "--pool", "gpu"])
