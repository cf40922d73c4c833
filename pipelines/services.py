"""`make up` and `make down`: Prefect's server with a worker, and MLflow's server, on this machine alone.

What was started stands in var/services.json with process ids and start times, so that `down` ends those processes and
no others. Logs are in var/log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from densitywatch.errors import DensitywatchError
from densitywatch.files import write_whole
from densitywatch.params import Params, load_params
from densitywatch.store import sqlite_path, tracking_uri
from pipelines import home

HOST = "127.0.0.1"
POOL = "gpu"
START_SECONDS = 180.0  # a first start on a busy machine makes a database before it answers
STOP_SECONDS = 15.0
SILENT_AFTER = timedelta(seconds=150)  # five heartbeats


class ServiceFailed(DensitywatchError):
    """A server did not start or does not answer."""


def up(root: Path) -> None:
    """Start what is not running yet, wait until it answers, deploy the flows, and print the addresses.

    Raises ServiceFailed, after stopping what it started, when something does not come up.
    """
    prefect_port = os.environ.get("PREFECT_PORT", home.PREFECT_PORT)
    mlflow_port = os.environ.get("MLFLOW_PORT", home.MLFLOW_PORT)
    params = load_params(root / "params.yaml", check_models=False)
    if _all_running(root):
        print(_addresses(root))
        return
    down(root)
    with home.one_run_at_a_time(root):
        address = f"http://{HOST}:{prefect_port}/api"
        os.environ["PREFECT_API_URL"] = address
        home.settle(root)
        try:
            _start(root, "prefect", ["prefect", "server", "start", "--host", HOST, "--port", prefect_port])
            addresses = {"Prefect": f"http://{HOST}:{prefect_port}"}
            store = tracking_uri(params, root)
            if sqlite_path(store) is not None:
                _prepare_store(params, root)
                command = ["mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", mlflow_port]
                _start(root, "mlflow", [*command, "--workers", "1"])
                addresses["MLflow"] = f"http://{HOST}:{mlflow_port}"
            _wait(root, "prefect", f"{address}/health")
            _deploy(root, params)
            _start(root, "worker", ["prefect", "worker", "start", "--pool", POOL, "--name", "densitywatch"])
            if "MLflow" in addresses:
                _wait(root, "mlflow", f"{addresses['MLflow']}/health")
        except BaseException:
            down(root)
            raise
        write_whole(root / "var" / "prefect.address", address + "\n")
        write_whole(root / "var" / "addresses.json", json.dumps(addresses) + "\n")
    print(_addresses(root))


def down(root: Path) -> list[str]:
    """Stop what `up` has started, and nothing else; returns the names of what was running."""
    noted = _noted(root)
    alive = [process for entry in reversed(noted) if (process := _process(entry)) is not None]
    family = [child for process in alive for child in process.children(recursive=True)]
    for process in alive:  # the worker first: it tells the server about the runs that end with it
        _end(process)
    for left in family:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    for file in ("services.json", "prefect.address", "addresses.json"):
        (root / "var" / file).unlink(missing_ok=True)
    return [entry["name"] for entry in noted] if alive else []


def _end(process: psutil.Process) -> None:
    """Each service leads a session of its own: its children get the signal too."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(psutil.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
        os.killpg(process.pid, signal.SIGKILL)


def _start(root: Path, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    log = root / "var" / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # nothing here uses it, and it starts more processes
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603
            [str(program), *command[1:]],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    entry = {"name": name, "pid": process.pid, "created": psutil.Process(process.pid).create_time(), "log": str(log)}
    write_whole(root / "var" / "services.json", json.dumps([*_noted(root), entry], indent=1) + "\n")
    return process


def _wait(root: Path, name: str, address: str) -> None:
    entry = next(entry for entry in _noted(root) if entry["name"] == name)
    until = time.monotonic() + START_SECONDS
    while not home.answers(address):
        if _process(entry) is None:
            said = Path(entry["log"]).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ServiceFailed(
                f"{name} ended as it started: {said[-1] if said else 'no word said'}; see {entry['log']}"
            )
        if time.monotonic() > until:
            raise ServiceFailed(f"{name} does not answer at {address} after {START_SECONDS:.0f} s; see {entry['log']}")
        time.sleep(0.5)


def _deploy(root: Path, params: Params) -> None:
    """The work pool, the device limit, the watch over silent runs, and the flows of prefect.yaml; twice is once."""
    _prefect(root, params, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    from pipelines.stages import ensure_device_limit

    ensure_device_limit(params.device.slots)
    _watch_silent_runs()
    _prefect(root, params, "deploy", "--all", "--prefect-file", "pipelines/prefect.yaml")


def _prefect(root: Path, params: Params, *arguments: str) -> None:
    done = subprocess.run(  # noqa: S603
        [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments],
        cwd=root,
        env={**os.environ, "DENSITYWATCH_ROOT": str(root.resolve()), "DENSITYWATCH_CRON": params.inbox.cron},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceFailed(f"prefect {' '.join(arguments[:2])}: {' '.join(done.stdout.split())[-300:]}")


def _watch_silent_runs() -> None:
    """Runs that stop giving signs of life are crashed, or a killed worker's slots would stay taken (Prefect's docs)."""
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    name = "Crash runs that went silent"
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(name):
            return
    ends = {f"prefect.flow-run.{state}" for state in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")}
    Automation(
        name=name,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect=ends,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT_AFTER,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name=None, message="No sign of life; its process is gone.", force=False
            )
        ],
    ).create()


def _prepare_store(params: Params, root: Path) -> None:
    from densitywatch.tracking import prepare_store

    prepare_store(params, root)


def _all_running(root: Path) -> bool:
    noted = _noted(root)
    return bool(noted) and (root / "var" / "addresses.json").is_file() and all(map(_process, noted))


def _addresses(root: Path) -> str:
    addresses = json.loads((root / "var" / "addresses.json").read_text(encoding="utf-8"))
    lines = [f"{name:<8}{address}" for name, address in addresses.items()]
    return "\n".join([*lines, "run the pipeline there: prefect deployment run retrain/retrain", "stop: make down"])


def _noted(root: Path) -> list[dict[str, Any]]:
    try:
        noted = json.loads((root / "var" / "services.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return noted if isinstance(noted, list) else []


def _process(entry: dict[str, Any]) -> psutil.Process | None:
    """The process that was noted, unless it is gone or its number has gone to another since."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(entry["pid"])
        if process.create_time() == entry["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def main(arguments: list[str]) -> int:
    if arguments not in (["up"], ["down"]):
        print("usage: python -m pipelines.services [up | down]", file=sys.stderr)
        return 2
    try:
        if arguments == ["up"]:
            up(Path.cwd())
        else:
            print(f"stopped: {', '.join(down(Path.cwd())) or 'nothing was running'}")
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
