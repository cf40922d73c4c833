"""`make up` and `make down`: servers of Prefect, with a worker, of MLflow and of the reports, on this machine alone.

service_processes.py starts and ends programs, server.py is Prefect's server behind its checks, deployments.py fills it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from densitywatch import environment
from densitywatch.errors import DensitywatchError
from densitywatch.files import write_whole
from densitywatch.params import Params, load_params
from densitywatch.tracking.store import sqlite_path, tracking_uri
from pipelines import prefect_home, reports, run_lock, server, service_processes, worker
from pipelines.server import HOST

PROFILES = Path("var") / "profiles.toml"


def up(root: Path) -> None:
    """Start what does not run yet, wait until it answers, deploy the flows, and print the addresses.

    Raises ServiceFailed, after stopping what it started, when something does not come up.
    """
    environment.check_folder(root)
    params = load_params(root / "params.yaml")
    if _all_running(root):
        _use(root, str(prefect_home.prefect_address(root)))
        _deploy(root, params)
    else:
        ports = (
            os.environ.get("PREFECT_PORT", prefect_home.PREFECT_PORT),
            os.environ.get("MLFLOW_PORT", prefect_home.MLFLOW_PORT),
            os.environ.get("REPORTS_PORT", prefect_home.REPORTS_PORT),
        )
        down(root)
        service_processes.check_port("Prefect", ports[0], "PREFECT_PORT")
        if sqlite_path(tracking_uri(params, root)) is not None:
            service_processes.check_port("MLflow", ports[1], "MLFLOW_PORT")
        service_processes.check_port("Reports", ports[2], "REPORTS_PORT")
        with run_lock.one_run_at_a_time(root):
            try:
                _start(root, params, *ports)
            except BaseException:
                down(root)
                raise
    print(_addresses(root))


def _start(root: Path, params: Params, prefect_port: str, mlflow_port: str, reports_port: str) -> None:
    address = f"http://{HOST}:{prefect_port}/api"
    _use(root, address)
    write_whole(root / "var" / "prefect.address", address + "\n")
    service_processes.start(root, "prefect", server.command(prefect_port), server.variables(root, prefect_port))
    addresses = {"Prefect": f"http://{HOST}:{prefect_port}"}
    store = tracking_uri(params, root)
    if sqlite_path(store) is not None:
        _prepare_store(params, root)
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        # job execution is not used here, and it starts more processes
        without = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        service_processes.start(root, "mlflow", [*command, "--host", HOST, "--port", mlflow_port], without)
        addresses["MLflow"] = f"http://{HOST}:{mlflow_port}"
    results, training = root / params.inbox.results, root / "reports"
    service_processes.start(root, reports.NAME, reports.command(reports_port, results.resolve(), training.resolve()))
    addresses[reports.NAMED] = f"http://{HOST}:{reports_port}"
    service_processes.wait_until_it_answers(root, "prefect", f"{address}/health", prefect_port)
    _tell_what_became_of_the_runs(root)  # of a worker that was killed
    _deploy(root, params)
    own = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu", "--name", "densitywatch"]
    service_processes.start(root, "worker", own)
    if "MLflow" in addresses:
        service_processes.wait_until_it_answers(root, "mlflow", f"{addresses['MLflow']}/health", mlflow_port)
    service_processes.wait_until_it_answers(root, reports.NAME, f"{addresses[reports.NAMED]}/health", reports_port)
    write_whole(root / "var" / "addresses.json", json.dumps(addresses) + "\n")
    prefect_home.write_private(
        root / PROFILES,
        'active = "densitywatch"\n\n[profiles.densitywatch]\n'
        f'PREFECT_API_URL = "{address}"\nPREFECT_API_AUTH_STRING = "{prefect_home.login(root)}"\n',
    )


def _use(root: Path, address: str) -> None:
    """Let this process and its children talk to the server of this checkout, not to one that the user has set."""
    os.environ["PREFECT_API_URL"] = address
    os.environ["PREFECT_API_AUTH_STRING"] = prefect_home.login(root)
    prefect_home.settle(root)


def down(root: Path) -> list[str]:
    """Stop what `up` has started and nothing else; return the names of what ran."""
    noted = service_processes.noted(root)
    alive = {entry["name"]: process for entry in noted if (process := service_processes.find(entry)) is not None}
    for name in sorted(alive, key=("worker", reports.NAME, "mlflow", "prefect").index):
        if name == "prefect":
            _tell_what_became_of_the_runs(root)
        service_processes.end(alive[name])
    for file in (service_processes.NOTE.name, "prefect.address", "addresses.json", PROFILES.name):
        (root / "var" / file).unlink(missing_ok=True)
    return [entry["name"] for entry in noted] if alive else []


def _tell_what_became_of_the_runs(root: Path) -> None:
    address = prefect_home.prefect_address(root)
    if address is not None and prefect_home.answers(f"{address}/health"):
        _use(root, address)
        from pipelines.deployments import settle_runs

        try:
            settle_runs()
        except Exception as error:  # a server that has lost its database is ended too
            print(f"pipelines: the states of its runs could not be set: {error}", file=sys.stderr)


def _deploy(root: Path, params: Params) -> None:
    from pipelines.deployments import deploy  # imports prefect, which reads its settings now

    deploy(root, params)


def _prepare_store(params: Params, root: Path) -> None:
    from densitywatch.tracking.runs import prepare_store

    prepare_store(params, root)


def _all_running(root: Path) -> bool:
    noted = service_processes.noted(root)
    return bool(noted) and (root / "var" / "addresses.json").is_file() and all(map(service_processes.find, noted))


def _addresses(root: Path) -> str:
    addresses = json.loads((root / "var" / "addresses.json").read_text(encoding="utf-8"))
    login = (
        f"log in with {prefect_home.login(root)}"
        if sys.stdout.isatty()
        else f"log in with the line in {prefect_home.LOGIN}"
    )
    notes = {"Prefect": f"   {login}"}
    return "\n".join(
        [
            *(f"{name:<8}{address}{notes.get(name, '')}" for name, address in addresses.items()),
            "what goes on there: make status",
            "run the pipeline there:",
            f"  PREFECT_PROFILES_PATH={PROFILES} .venv/bin/prefect deployment run retrain/retrain",
            "stop: make down",
        ]
    )


def main(arguments: list[str]) -> int:
    if arguments not in (["up"], ["down"]):
        print("usage: python -m pipelines.services [up | down]", file=sys.stderr)
        return 2
    try:
        if arguments == ["up"]:
            up(Path.cwd())
        else:
            ended = [*worker.end_all(Path.cwd()), *down(Path.cwd())]
            print(f"stopped: {', '.join(ended) or 'nothing was running'}")
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
