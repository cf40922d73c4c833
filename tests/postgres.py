"""A real PostgreSQL server for the tests that need one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.marks import marks

PASSWORD = "of-the-test"


def programs() -> Path:
    """The folder of PostgreSQL's programs, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    where = found[-1] if found else shutil.which("initdb")
    if where is None:
        pytest.fail("the tests of PostgreSQL need it: run `sudo apt-get install postgresql`, then `make test` again")
    return Path(where).resolve().parent


def unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
@marks("server")
def database() -> Iterator[str]:
    """The address of a PostgreSQL server of this test's own."""
    bin_, who, port = programs(), unprivileged(), free_port()
    folder = Path(
        tempfile.mkdtemp(prefix="densitywatch-postgres-", dir="/tmp")
    )  # root's own folders are closed to others
    try:
        (folder / "password").write_text(PASSWORD)
        if who:
            shutil.chown(folder / "password", who["user"], who["group"])
            shutil.chown(folder, who["user"], who["group"])
        run = {"check": True, "capture_output": True, "cwd": folder, **who}
        setup = ["-D", "data", "-U", "watch", "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--locale=C"]
        subprocess.run([bin_ / "initdb", *setup], **run)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [bin_ / "pg_ctl", "-D", "data", "-w", "-t", "300"]
        subprocess.run([*control, "-l", "log", "-o", options, "start"], **{**run, "capture_output": False})
        try:
            yield f"postgresql://watch:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder)
