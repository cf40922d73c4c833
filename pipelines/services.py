"""`make up` and `make down`: servers of Prefect, with a worker, of MLflow and of the reports, on this machine alone.

service_processes.py starts and ends programs, server.py is Prefect's server behind its checks, deployments.py fills it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import psutil

from densitywatch import environment
from densitywatch.errors import DensitywatchError
from densitywatch.files import write_whole
from densitywatch.params import Params, load_params
from densitywatch.tracking import database, schemas
from densitywatch.tracking.store import is_own, tracking_uri
from pipelines import listening, mlflow_server, prefect_home, reports, run_lock, server, service_processes, worker

PROFILES = Path("var") / "profiles.toml"
SETTINGS = Path("var") / "services.settings"
"""A digest of what the servers that run were started with."""


def up(root: Path) -> None:
    """Start what does not run yet, wait until it answers, deploy the flows, and print the addresses.

    Raises ServiceFailed, after stopping what it started, when something does not come up. Where that is known before,
    nothing is stopped: DensitywatchError while a run goes on that no service has started, ServiceFailed or ParamsError
    for a port that cannot be had.
    """
    environment.check_folder(root)
    environment.read_file(root)
    params = load_params(root / "params.yaml")
    listening.host()
    if _all_running(root):
        _use(root, str(prefect_home.prefect_address(root)))
        _deploy(root, params)
        _tell_of_vanished_runs(root)
    else:
        ports = (
            os.environ.get("PREFECT_PORT", prefect_home.PREFECT_PORT),
            os.environ.get("MLFLOW_PORT", prefect_home.MLFLOW_PORT),
            os.environ.get("REPORTS_PORT", prefect_home.REPORTS_PORT),
        )
        own_store = is_own(tracking_uri(params, root))
        ours = service_processes.ours(root)
        if (run := run_lock.holder(root)) is not None and run not in [process.pid for process in ours]:
            raise DensitywatchError(run_lock.going_on(run, root))
        _check_ports(ports, own_store, ours)
        down(root)
        _check_ports(ports, own_store, [])
        with run_lock.one_run_at_a_time(root):
            try:
                _start(root, params, *ports)
            except BaseException:
                down(root)
                raise
    print(_addresses(root))


def _check_ports(ports: tuple[str, str, str], own_store: bool, ours: list[psutil.Process]) -> None:
    service_processes.check_port("Prefect", ports[0], "PREFECT_PORT", ours)
    if own_store:
        service_processes.check_port("MLflow", ports[1], "MLFLOW_PORT", ours)
    service_processes.check_port("Reports", ports[2], "REPORTS_PORT", ours)


def _start(root: Path, params: Params, prefect_port: str, mlflow_port: str, reports_port: str) -> None:
    address = f"http://{listening.reached()}:{prefect_port}/api"
    _use(root, address)
    schemas.prepare(root)
    write_whole(root / "var" / "prefect.address", address + "\n")
    service_processes.start(root, "prefect", server.command(prefect_port), server.variables(root, prefect_port))
    addresses = {"Prefect": f"http://{listening.shown()}:{prefect_port}"}
    store = tracking_uri(params, root)
    if is_own(store):
        _prepare_store(params, root)
        service_processes.start(root, "mlflow", mlflow_server.command(mlflow_port), mlflow_server.variables(store))
        addresses["MLflow"] = f"http://{listening.shown()}:{mlflow_port}"
    results, training = root / params.inbox.results, root / "reports"
    service_processes.start(root, reports.NAME, reports.command(reports_port, results.resolve(), training.resolve()))
    addresses[reports.NAMED] = f"http://{listening.shown()}:{reports_port}"
    service_processes.wait_until_it_answers(root, "prefect", f"{address}/health", prefect_port)
    _tell_what_became_of_the_runs(root)  # of a worker that was killed
    _deploy(root, params)
    own = [sys.executable, "-m", "pipelines.prefect_worker", "--pool", "gpu", "--name", "densitywatch"]
    service_processes.start(root, "worker", own)
    if "MLflow" in addresses:
        service_processes.wait_until_it_answers(
            root, "mlflow", f"http://{listening.reached()}:{mlflow_port}/health", mlflow_port
        )
    service_processes.wait_until_it_answers(
        root, reports.NAME, f"http://{listening.reached()}:{reports_port}/health", reports_port
    )
    prefect_home.write_private(root / SETTINGS, _settings())
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
    service_processes.end_left_over(root)
    for file in (service_processes.NOTE.name, "prefect.address", "addresses.json", PROFILES.name, SETTINGS.name):
        (root / "var" / file).unlink(missing_ok=True)
    return [entry["name"] for entry in noted] if alive else []


def _tell_what_became_of_the_runs(root: Path) -> None:
    address = prefect_home.prefect_address(root)
    if address is not None and prefect_home.is_own(address, root):
        _use(root, address)
        from pipelines.deployments import settle_runs

        try:
            settle_runs()
        except Exception as error:  # a server that has lost its database is ended too
            print(f"pipelines: the states of its runs could not be set: {error}", file=sys.stderr)


def _tell_of_vanished_runs(root: Path) -> None:
    from pipelines.vanished_runs import crash_vanished  # imports prefect, as in _deploy

    for name in crash_vanished(root):
        print(f"run {name} has crashed: its process is gone, and told nothing of its end")


def _deploy(root: Path, params: Params) -> None:
    from pipelines.deployments import deploy  # imports prefect, which reads its settings now

    deploy(root, params)


def _prepare_store(params: Params, root: Path) -> None:
    from densitywatch.tracking.runs import prepare_store

    prepare_store(params, root)


def _all_running(root: Path) -> bool:
    noted = service_processes.noted(root)
    known = root / SETTINGS
    return (
        bool(noted)
        and (root / "var" / "addresses.json").is_file()
        and known.is_file()
        and known.read_text(encoding="utf-8") == _settings()
        and all(map(service_processes.find, noted))
    )


def _settings() -> str:
    """A digest of the variables that a server reads when it starts: another value takes effect at the next `up`.

    Not of this machine's addresses, which come and go with every network: no server is started anew for them.
    """
    url = database.address()
    given = [
        *listening.chosen(),
        environment.login() or "",
        url.render_as_string(False) if url else "",
    ]
    return hashlib.sha256("\n".join(given).encode()).hexdigest()


def _addresses(root: Path) -> str:
    addresses = json.loads((root / "var" / "addresses.json").read_text(encoding="utf-8"))
    if environment.login() is not None:
        notes = dict.fromkeys(addresses, f"   log in with {environment.LOGIN}")
    elif sys.stdout.isatty():
        notes = {"Prefect": f"   log in with {prefect_home.login(root)}"}
    else:
        notes = {"Prefect": f"   log in with the line in {prefect_home.LOGIN}"}
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
