"""A checkout with a champion detector that may be up: its Prefect, its MLflow and its worker, and how to ask them."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from densitywatch.detector.calibrate import calibrate
from densitywatch.params import load_params
from densitywatch.registry import versions as registry
from tests.detector.standin import fill
from tests.pipelines.checkout import copy_checkout, run
from tests.registry.registry_project import write_data, write_model

LONG = 400.0  # a scheduled run comes within a minute; a loaded machine takes its time for the rest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A checkout that is up, and how to ask its Prefect."""

    root: Path
    environment: dict[str, str]
    prefect: int
    mlflow: int
    said: str = ""
    host: str = "127.0.0.1"
    login: str | None = None

    @property
    def server(self) -> str:
        return f"http://{self.host}:{self.prefect}"

    def services(self, verb: str) -> subprocess.CompletedProcess[str]:
        return run(self.root, self.environment, "pipelines.services", verb)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of Prefect's API to who has logged in."""
        known = self.login or (self.root / "var" / "prefect.login").read_text().strip()
        login = base64.b64encode(known.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.server}/api/{path}", data=data, headers=headers, method=method)
        until = time.monotonic() + 60
        while True:
            try:
                with urlopen(request, timeout=60) as got:
                    return json.loads(got.read() or "null")
            except HTTPError as error:  # a busy machine: its database is locked for a moment
                error.close()
                if error.code != 503 or time.monotonic() > until:
                    raise
                time.sleep(1)

    def deployment(self, name: str) -> Any:
        return next(found for found in self.ask("POST", "deployments/filter", {}) if found["name"] == name)

    def runs(self, *states: str) -> list[Any]:
        """The runs of the inbox in one of these types of states."""
        chosen = {"id": {"any_": [self.deployment("inbox")["id"]]}}
        body = {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "deployments": chosen}
        return list(self.ask("POST", "flow_runs/filter", body))

    def state(self, run_id: str) -> str:
        return str(self.ask("GET", f"flow_runs/{run_id}")["state"]["name"])


def until(true: Callable[[], Any], seconds: float = LONG) -> Any:
    """What `true` gives once it is not empty."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.5)
    return found


def an_id(said: str) -> str:
    """The identifier among a program's lines, which may hold warnings of Prefect's."""
    (found,) = re.findall(r"(?m)^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", said)
    return str(found)


def copy_small_project(project_root: Path, root: Path) -> None:
    """A copy of this checkout for images of 8 pixels, whose schedule is every minute, with a champion detector."""
    root.mkdir(parents=True)
    copy_checkout(project_root, root)
    text = (root / "params.yaml").read_text()
    for key, value in {
        "size": "8",
        "cron": '"* * * * *"',
        "members": "[pixelcnn_nll]",
        "images": "128",
    }.items():
        text, found = re.subn(rf"(?m)^(  {key}: )[^#\n]*", rf"\g<1>{value} ", text, count=1)
        assert found == 1, key
    (root / "params.yaml").write_text(text)
    params = load_params(root / "params.yaml")
    write_data(root)
    write_model(root, "pixelcnn", steps=40)
    calibrate(params, root)
    registry.register("detector", params, root)
    assert registry.promote("detector", params, root).passed
    batch = fill(root / "data" / "inbox" / "monday", 12)
    (batch / "_SUCCESS").touch()
