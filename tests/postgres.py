"""A real PostgreSQL server for the tests that need one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that a test may end and start again."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://watch:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def process(self) -> int:
        """The number of its first process, whose children serve the connections."""
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def control(self, *command: str) -> None:
        tool = [str(programs() / "pg_ctl"), "-D", "data", "-w", "-t", "300"]
        subprocess.run([*tool, *command], check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **unprivileged())

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.control("-l", "log", "-o", options, "start")


@pytest.fixture(scope="module")
@marks("server")
def database_server() -> Iterator[Server]:
    """A PostgreSQL server of this test's own."""
    who = unprivileged()
    folder = Path(
        tempfile.mkdtemp(prefix="densitywatch-postgres-", dir="/tmp")
    )  # root's own folders are closed to others
    server = Server(folder, free_port())
    try:
        (folder / "password").write_text(PASSWORD)
        if who:
            shutil.chown(folder / "password", who["user"], who["group"])
            shutil.chown(folder, who["user"], who["group"])
        setup = ["-D", "data", "-U", "watch", "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--locale=C"]
        subprocess.run([programs() / "initdb", *setup], check=True, capture_output=True, cwd=folder, **who)
        server.start()
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def database(database_server: Server) -> str:
    """The address of a PostgreSQL server of this test's own."""
    return database_server.url
