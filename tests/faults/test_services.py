"""Worker, Prefect's server, MLflow's server and PostgreSQL, each struck by each signal while batches come in.

One checkout is up for all tests of this file. After each blow `make up` is typed again, as the how-to for a team says;
each batch that came in is then scored once, and every run and version is still known.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from pipelines import service_processes
from tests.detector.standin import fill
from tests.faults import struck
from tests.faults.tally import Tally
from tests.marks import marks
from tests.pipelines.checkout import own_environment
from tests.pipelines.site import Site, copy_small_project, free_port, until
from tests.postgres import PASSWORD, Server

pytestmark = pytest.mark.timeout(1200)

SERVICES = {"worker": "the worker", "prefect": "Prefect's server", "mlflow": "MLflow's server"}
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
"""The types of states of a run that has ended."""
STILL = 120.0
"""Seconds in which a struck service is gone; Prefect's worker ends its runs first."""


def ask(url: str, statement: str) -> Any:
    """The one value that a statement gives, if it gives any."""
    import psycopg2

    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture(scope="module")
@marks("server")
def site(database_server: Server, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("struck") / "checkout"
    url = f"postgresql://watch:{PASSWORD}@127.0.0.1:{urlsplit(database_server.url).port}/watch"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        patched.setenv("DATABASE_URL", url)
        copy_small_project(project_root, root)
    (root / ".env").write_text(f"DATABASE_URL={url}\n")
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        params.replace('"* * * * *"', '"0 3 1 1 *"')
    )  # runs come when a test asks for one
    prefect, mlflow = free_port(), free_port()
    ports = {"PREFECT_PORT": str(prefect), "MLFLOW_PORT": str(mlflow), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    made = Site(root, own_environment(root) | ports | {struck.TOKEN: str(root)}, prefect, mlflow)
    try:
        up(made)
        ask_for_a_run(made)
        until(lambda: is_scored(made, "monday"))
        yield made
    finally:
        made.services("down")
        assert struck.left_over(root, 20) == []


def up(site: Site) -> None:
    done = site.services("up")
    assert done.returncode == 0, done.stdout


def mlflow_counts(database_server: Server) -> dict[str, int]:
    """Runs and versions in MLflow's tables."""
    url = database_server.url.rpartition("/")[0] + "/watch"
    return {table: ask(url, f"SELECT count(*) FROM mlflow.{table}") for table in ("runs", "model_versions")}


def batch_runs(database_server: Server, batch: str) -> list[str]:
    """The states of the runs that MLflow has of a batch."""
    url = database_server.url.rpartition("/")[0] + "/watch"
    found = ask(
        url, f"SELECT coalesce(json_agg(status), '[]') FROM mlflow.runs WHERE name = 'score data/inbox/{batch}'"
    )
    return sorted(found if isinstance(found, list) else json.loads(found))


def ask_for_a_run(site: Site) -> str:
    deployment = site.deployment("inbox")["id"]
    return str(site.ask("POST", f"deployments/{deployment}/create_flow_run", {})["id"])


def a_batch_is_being_scored(site: Site, name: str) -> str:
    """Put a batch into the inbox, ask for a run, and wait until a process works on it."""
    (fill(site.root / "data" / "inbox" / name, 40) / "_SUCCESS").touch()
    asked = ask_for_a_run(site)
    until(lambda: site.state(asked) in ("Running", "Completed"), 200)
    return asked


def is_scored(site: Site, name: str) -> bool:
    folder = site.root / "data" / "outliers" / name
    with suppress(OSError, ValueError):
        return bool(json.loads((folder / "run.json").read_text()).get("listing"))
    return False


def check(site: Site, database_server: Server, name: str, asked: str, known: set[str], before: dict[str, int]) -> None:
    """After a blow and `make up`, another run: the batch is scored once, both runs end, and all is still known."""
    again = ask_for_a_run(site)
    until(lambda: is_scored(site, name), 300)
    for run in (asked, again):
        until(lambda run=run: site.ask("GET", f"flow_runs/{run}")["state"]["type"] in FINAL, 400)  # type: ignore[misc]
    assert known <= {one["id"] for one in site.runs("COMPLETED")}
    assert mlflow_counts(database_server)["model_versions"] == before["model_versions"]
    assert mlflow_counts(database_server)["runs"] == before["runs"] + 1
    assert batch_runs(database_server, name) == ["FINISHED"]


@pytest.mark.parametrize("number", struck.SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_struck_while_a_batch_is_scored_comes_back_and_loses_nothing(
    service: str, number: signal.Signals, site: Site, database_server: Server, tally: Tally
) -> None:
    up(site)
    known, before = {one["id"] for one in site.runs("COMPLETED")}, mlflow_counts(database_server)
    name = f"{service}-{number.name}"
    with tally.tried(f"{number.name} of {SERVICES[service]}"):
        asked = a_batch_is_being_scored(site, name)
        (entry,) = (one for one in service_processes.noted(site.root) if one["name"] == service)
        os.kill(entry["pid"], number)
        gone = until(lambda: service_processes.find(entry) is None, STILL)
        assert gone
        up(site)
        check(site, database_server, name, asked, known, before)


@pytest.mark.parametrize("number", struck.SIGNALS, ids=lambda number: number.name)
def test_postgresql_that_is_struck_while_a_batch_is_scored_comes_back_and_loses_nothing(
    number: signal.Signals, site: Site, database_server: Server, tally: Tally
) -> None:
    up(site)
    known, before = {one["id"] for one in site.runs("COMPLETED")}, mlflow_counts(database_server)
    name = f"postgresql-{number.name}"
    with tally.tried(f"{number.name} of PostgreSQL"):
        asked = a_batch_is_being_scored(site, name)
        postgres = psutil.Process(database_server.process)
        family = [postgres, *postgres.children(recursive=True)]
        os.kill(postgres.pid, number)
        if number == signal.SIGTERM:  # it then waits until the last of its clients has gone: they are the servers here
            time.sleep(5)
            os.kill(postgres.pid, signal.SIGINT)
        psutil.wait_procs(family, timeout=60)
        assert not postgres.is_running()
        time.sleep(3)  # what works goes on without a database
        database_server.start()
        up(site)
        check(site, database_server, name, asked, known, before)


@pytest.mark.parametrize("number", struck.SIGNALS, ids=lambda number: number.name)
def test_a_scheduled_flow_that_is_struck_while_it_scores_a_batch_is_made_up_for_by_the_next_one(
    number: signal.Signals, site: Site, database_server: Server, tally: Tally
) -> None:
    up(site)
    known, before = {one["id"] for one in site.runs("COMPLETED")}, mlflow_counts(database_server)
    name = f"flow-{number.name}"
    with tally.tried(f"{number.name} of a flow"):
        asked = a_batch_is_being_scored(site, name)
        (entry,) = (one for one in service_processes.noted(site.root) if one["name"] == "worker")
        flows = until(lambda: psutil.Process(entry["pid"]).children(), 60)
        for flow in flows:
            with suppress(psutil.NoSuchProcess):
                flow.send_signal(number)
        psutil.wait_procs(flows, timeout=60)
        assert not any(flow.is_running() and flow.status() != psutil.STATUS_ZOMBIE for flow in flows)
        check(site, database_server, name, asked, known, before)
