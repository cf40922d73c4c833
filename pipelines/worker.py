"""`make worker GPU=0`: a worker of the work pool `training` on this machine, with one GPU and a clone of its own.

The clone is var/workers/gpu0 (var/workers/cpu without a GPU). The worker runs one stage at a time. It ends with
`make down`; when it is killed its run ends too. `python -m pipelines.worker [GPU]` is the command.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from densitywatch import environment
from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.params import load_params
from densitywatch.tracking.store import tracking_uri
from pipelines import commits, dvc_commands, prefect_home, run_processes, service_processes
from pipelines.git_files import git
from pipelines.server import ServiceFailed, last_words

POOL = "training"
WORKERS = Path("var") / "workers"
CLONE = "DENSITYWATCH_CLONE"
NAME = "DENSITYWATCH_WORKER"
START_SECONDS = 120.0


def start(root: Path, gpu: str | None) -> str:
    """Start a worker that outlives this process, wait until the server knows it, and return its name.

    Raises ServiceFailed when there is no server, no pool or no DVC remote, or when the worker ends at once.
    """
    environment.check_folder(root)
    if gpu is not None and not gpu.isdecimal():
        raise ParamsError(f"GPU={gpu}: not the number of a GPU; nvidia-smi lists them")
    own = f"gpu{gpu}" if gpu else "cpu"
    name = f"{socket.gethostname()}-{own}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:6]}"
    address = prefect_home.settle(root)
    if address is None or not prefect_home.answers(f"{address}/health"):
        raise ServiceFailed(
            f"no Prefect server answers{f' at {address}' if address else ''}; start one with `make up`, or name the one"
            " of another machine in PREFECT_API_URL and PREFECT_API_AUTH_STRING"
        )
    clone = root / WORKERS / own
    if any(map(service_processes.find, service_processes.noted(clone))):
        return name
    _check_pool(address)
    make_clone(root, clone)
    variables = {
        CLONE: str(clone.resolve()),
        NAME: name,
        "CUDA_VISIBLE_DEVICES": gpu or "",
        "PYTHONPATH": os.pathsep.join([str(clone.resolve()), str(clone.resolve() / "src")]),
        "MLFLOW_TRACKING_URI": tracking_uri(load_params(root / "params.yaml"), root),
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
    }
    (clone / service_processes.NOTE).unlink(missing_ok=True)
    command = [sys.executable, "-m", "pipelines.worker", "--serve", name]
    began = time.time()
    service_processes.start(clone, "worker", command, variables)
    _wait_until_online(clone, name, began)
    return name


def make_clone(root: Path, clone: Path) -> None:
    """Make the worker's clone of this checkout where there is none, and give it this checkout's DVC remote.

    Raises ServiceFailed when this checkout has no default remote.
    """
    remote = dvc_commands.default_remote(root)
    if remote is None:
        raise ServiceFailed(
            f"{root.resolve()} has no default DVC remote, through which data comes and results go; set the one of the"
            " machine that asks: .venv/bin/dvc remote add --default NAME ADDRESS"
        )
    if not (clone / ".git").exists():
        shutil.rmtree(clone, ignore_errors=True)
        git(root, "clone", "--quiet", str(root.resolve()), str(clone), seconds=None)
        commits.go_to(clone, commits.head(root))
    with suppress(DensitywatchError):  # where this checkout came from may have a commit that it lacks itself
        git(clone, "config", "remote.upstream.url", git(root, "remote", "get-url", "origin").strip())
    own = root / ".dvc" / "config.local"
    if own.is_file():
        shutil.copy(own, clone / ".dvc" / "config.local")  # with its mode: it may hold passwords
    if dvc_commands.default_remote(clone) != remote:  # a path that counts from this checkout, or set here alone
        name = dvc_commands.run_dvc(root, "config", "core.remote").splitlines()[-1]
        # relative, as DVC writes it: its writer may not take letters that a folder's name may have
        address = remote if "://" in remote else os.path.relpath(remote, clone)
        dvc_commands.run_dvc(clone, "remote", "add", "--local", "--force", "--default", name, address)


def end_all(root: Path) -> list[str]:
    """End every worker that `start` started in this checkout; return their names."""
    ended = []
    for clone in sorted((root / WORKERS).glob("*/")):
        for entry in service_processes.noted(clone):
            process = service_processes.find(entry)
            if process is not None:
                service_processes.end(process)
                ended.append(f"worker {clone.name}")
        service_processes.end_left_over(clone)
        (clone / service_processes.NOTE).unlink(missing_ok=True)
    return ended


def enter_clone() -> dict[str, str]:
    """The pull step of the deployment `train-model`: a run works in the clone of the worker that took it."""
    clone = os.environ.get(CLONE)
    if not clone:
        raise ServiceFailed(
            f"this worker has no clone ({CLONE} is not set); start workers of {POOL} with `make worker`"
        )
    return {"directory": clone}


def serve(name: str) -> None:
    """Become Prefect's worker. A watch ends its runs when it is gone, even by a kill."""
    os.environ[run_processes.MARK] = run_processes.new_mark(Path.cwd())
    watch = run_processes.start_watch(os.environ[run_processes.MARK])
    assert watch.stdin is not None
    os.set_inheritable(watch.stdin.fileno(), True)  # the watch waits for its other end to be closed
    worker = ["-m", "pipelines.prefect_worker", "--pool", POOL, "--name", name, "--limit", "1"]
    os.execv(sys.executable, [sys.executable, *worker])  # noqa: S606


def _check_pool(address: str) -> None:
    from prefect.client.orchestration import get_client  # reads its settings now
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(POOL)
    except ObjectNotFound:
        raise ServiceFailed(
            f"the Prefect server at {address} has no work pool {POOL}; `make up` there makes it"
        ) from None


def _wait_until_online(clone: Path, name: str, began: float) -> None:
    from prefect.client.orchestration import get_client

    until = time.monotonic() + START_SECONDS
    with get_client(sync_client=True) as client:
        while not any(
            worker.name == name and worker.last_heartbeat_time and worker.last_heartbeat_time.timestamp() >= began
            for worker in client.read_workers_for_work_pool(POOL)
        ):
            (entry,) = service_processes.noted(clone)
            if service_processes.find(entry) is None or time.monotonic() > until:
                why = last_words(Path(entry["log"]))
                raise ServiceFailed(f"the worker {name} did not start: {why}; see {entry['log']}")
            time.sleep(0.5)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--serve"] and len(arguments) == 2:
        serve(arguments[1])
    if len(arguments) > 1:
        print("usage: python -m pipelines.worker [GPU]", file=sys.stderr)
        return 2
    root = Path.cwd()
    try:
        name = start(root, arguments[0] if arguments else None)
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    log = root / WORKERS / ("gpu" + arguments[0] if arguments else "cpu") / "var" / "log" / "worker.log"
    print(f"worker {name} takes stages of the pool {POOL}; its log: {log}; it ends with: make down")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
