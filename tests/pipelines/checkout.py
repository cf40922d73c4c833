"""A copy of this checkout to run in, away from what the machine and the user have set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(root: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *([] if command[0] == "-c" else ["-m"]), *command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def copy_checkout(source: Path, target: Path) -> None:
    """The files that git tracks or would track, as a repository of its own with one commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "the checkout under test"]):
        subprocess.run(["git", *command], cwd=target, check=True)


def own_environment(root: Path) -> dict[str, str]:
    """The environment of a copy: its own source first, and no server or store that this machine happens to have.

    The programs of this Python come first on the path: stages name `densitywatch`, which nobody need have activated.
    """
    others = ("PREFECT_", "MLFLOW_TRACKING", "DVC_", "DATABASE_URL", "DENSITYWATCH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    reports = str(20_000 + os.getpid() % 10_000)  # two test processes at once each have their own
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "REPORTS_PORT": reports}
