"""Device slots while Prefect's server is killed and started again: the living keep theirs, the dead lose them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import prefect_home, server
from tests.pipelines.checkout import own_environment

PROJECT = Path(__file__).parents[2]
LONG = 300.0  # on a loaded machine
pytestmark = pytest.mark.server

HOLDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from pipelines import prefect_home
prefect_home.settle(Path())
from pipelines import device_slots
device_slots.RENEWED_EVERY = 0.5
if sys.argv[2:]:
    device_slots.ensure_device_limit(int(sys.argv[2]))
with ExitStack() as slots:
    for number in range(int(sys.argv[1])):
        slots.enter_context(device_slots.device_slot())
        print("held", number + 1, flush=True)
    sys.stdin.read()
"""


class Site:
    """A project folder with a Prefect server of its own on a fixed port."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/api"
        paths = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
        self.environment = own_environment(PROJECT) | {"PYTHONPATH": paths, "PREFECT_API_URL": self.address}
        (root / "var").mkdir()
        (root / "var" / "prefect.address").write_text(self.address)

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """A server as `make up` starts it, killed at the end."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "environ", dict(self.environment))
            prefect_home.settle(self.root)
            # looks for leases that have run out every second, where it takes 15 by default
            variables = {"PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1", "PREFECT_UI_ENABLED": "false"}
            environment = os.environ | server.variables(self.root, self.port) | variables
        with subprocess.Popen(
            server.command(self.port), cwd=self.root, env=environment, stderr=subprocess.DEVNULL
        ) as process:
            try:
                until(lambda: process.poll() is not None or prefect_home.answers(f"{self.address}/health"))
                assert process.poll() is None
                yield process
            finally:
                process.kill()

    @contextmanager
    def holder(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A process that takes so many slots, one after the other, and keeps them until its input ends."""
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def leases(self) -> dict[str, datetime]:
        """When each lease that is held runs out."""
        found = {}
        for file in (self.root / "var" / "prefect" / "concurrency_leases").glob("*-*.json"):
            found[file.stem] = datetime.fromisoformat(json.loads(file.read_text())["expiration"])
        return found

    def let_run_out(self, lease: str) -> None:
        """The server finds that a minute and a half have gone by for this lease; call it while there is none."""
        folder = self.root / "var" / "prefect" / "concurrency_leases"
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        for file, key in ((folder / f"{lease}.json", "expiration"), (folder / "expirations.json", lease)):
            file.write_text(json.dumps(json.loads(file.read_text()) | {key: past}))


def until(true: Callable[[], bool], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.timeout(1800)
def test_after_a_restart_of_the_server_a_living_holder_has_its_slot_and_a_killed_ones_is_free(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with ExitStack() as stack:
        with site.started():
            living = stack.enter_context(site.holder("1", "2"))
            assert said(living) == "held 1"
            (kept,) = site.leases()
            killed = stack.enter_context(site.holder("1"))
            assert said(killed) == "held 1"
            (lost,) = site.leases().keys() - {kept}
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        site.let_run_out(lost)
        waiting = stack.enter_context(site.holder("2"))  # there is no server to ask: it asks again
        time.sleep(3)  # some renewals find none either
        before = site.leases()[kept]
        with site.started():
            assert said(waiting) == "held 1"
            until(lambda: site.leases()[kept] > before)
            assert len(site.leases()) == 2, "no third one while the two slots are taken"
            assert living.stdin is not None
            living.stdin.close()
            assert said(waiting) == "held 2"
            assert living.wait() == 0
            assert waiting.stdin is not None
            waiting.stdin.close()
            assert waiting.wait() == 0
            assert site.leases() == {}
