"""Servers for a team: PostgreSQL, one login, another address, backup and restore, and what survives a kill.

One checkout is up for all tests of this file, on a real PostgreSQL and an address that is not 127.0.0.1. The tests are
in the order in which they are to run.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest

from pipelines import prefect_home, service_processes
from tests.detector.standin import fill
from tests.marks import marks
from tests.pipelines.checkout import copy_checkout, own_environment, run
from tests.pipelines.site import Site, copy_small_project, free_port, until

pytestmark = pytest.mark.timeout(900)

HOST = "127.0.0.2"
LOGIN = "team:l0gin of the team"
PASSWORD = "pass/word@of the team"


@pytest.fixture(scope="module")
@marks("server")
def team(database: str, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("team") / "checkout"
    url = in_database(database, "watch")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        ask(database, "CREATE ROLE builder LOGIN CREATEDB PASSWORD %s", PASSWORD)
        patched.setenv("DATABASE_URL", url)
        copy_small_project(project_root, root)
    write_env(root, url)
    remote = root / "var" / "dvc-remote" / "files" / "md5" / "ab"
    remote.mkdir(parents=True)
    (remote / "cdef").write_bytes(b"what DVC pushed")
    prefect, mlflow = free_port(), free_port()
    ports = {"PREFECT_PORT": str(prefect), "MLFLOW_PORT": str(mlflow), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    made = Site(root, own_environment(root) | ports, prefect, mlflow, host=HOST, login=LOGIN)
    try:
        started = made.services("up")
        assert started.returncode == 0, started.stdout
        made.said = started.stdout
        yield made
    finally:
        made.services("down")


def in_database(server: str, name: str) -> str:
    return f"postgresql://builder:{quote(PASSWORD, safe='')}@127.0.0.1:{urlsplit(server).port}/{name}"


def write_env(root: Path, url: str) -> None:
    lines = {"DATABASE_URL": url, "DENSITYWATCH_LOGIN": f"'{LOGIN}'", "DENSITYWATCH_HOST": HOST}
    (root / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))


def ask(url: str, statement: str, *values: Any) -> Any:
    """The one value that a statement gives, if it gives any."""
    import psycopg2

    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchone()[0] if cursor.description else None


def status(address: str, login: str | None, **headers: str) -> int:
    if login is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urlopen(Request(address, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_one_setting_puts_both_servers_on_postgresql(team: Site, database: str) -> None:
    url = in_database(database, "watch")
    assert ask(url, "SELECT count(*) FROM prefect.deployment WHERE name IN ('retrain', 'inbox')") == 2
    assert ask(url, "SELECT count(*) FROM mlflow.model_versions") == 1
    assert ask(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert not (team.root / "mlflow.db").exists()
    assert not list((team.root / "var" / "prefect").glob("*.db"))


def test_both_servers_ask_for_one_login_at_the_address_they_were_given(team: Site) -> None:
    mlflow = f"http://{HOST}:{team.mlflow}"
    assert re.findall(r"(?m)^(\w+) +(\S+)   log in with DENSITYWATCH_LOGIN$", team.said) == [
        ("Prefect", team.server),
        ("MLflow", mlflow),
        ("Reports", f"http://{HOST}:{team.environment['REPORTS_PORT']}"),
    ]
    pages = {f"{team.server}/api/admin/version": 200, f"{mlflow}/": 200, f"{mlflow}/version": 200}
    for page, answer in (pages | {f"http://{HOST}:{team.environment['REPORTS_PORT']}/none.html": 404}).items():
        assert status(page, LOGIN) == answer, page
        assert status(page, None) == 401, page
        assert status(page, f"{LOGIN} ") == 401, page
        assert status(page, LOGIN, Host="evil.example") == 400, page
        assert status(page, LOGIN, Origin="http://evil.example") == 403, page
    experiments = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert (status(experiments, LOGIN), status(experiments, None)) == (200, 401)
    assert status(f"{mlflow}/ajax-api/3.0/jobs/1", None) == 401  # a part that MLflow's own login would have to know
    assert status(f"{mlflow}/health", None) == 200
    for port in (team.prefect, team.mlflow):
        with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
            elsewhere.connect(("127.0.0.1", port))


def test_a_person_gives_the_login_to_mlflows_page_and_sees_the_champion(team: Site, browser: Any) -> None:
    name, _, password = LOGIN.partition(":")
    context = browser.new_context(http_credentials={"username": name, "password": password})
    page = context.new_page()
    page.goto(f"http://{HOST}:{team.mlflow}/#/models")
    page.get_by_text("densitywatch-detector").first.wait_for(timeout=120_000)
    context.close()


def test_the_worker_uses_login_and_database_and_scores_a_batch_by_the_schedule(team: Site, database: str) -> None:
    done = until(lambda: [one for one in team.runs("COMPLETED", "FAILED", "CRASHED") if one["auto_scheduled"]])
    assert {one["state"]["type"] for one in done} == {"COMPLETED"}
    assert json.loads((team.root / "data" / "outliers" / "monday" / "summary.json").read_text())["scored"] == 12
    named = "SELECT count(*) FROM mlflow.runs WHERE name = 'score data/inbox/monday'"
    assert ask(in_database(database, "watch"), named) == 1


def test_a_verb_logs_in_to_mlflows_server_and_a_wrong_login_is_one_sentence(team: Site) -> None:
    through = team.environment | {"MLFLOW_TRACKING_URI": f"http://{HOST}:{team.mlflow}"}
    done = run(team.root, through, "densitywatch", "register", "detector")
    assert done.returncode == 0, done.stdout
    wrong = run(team.root, through | {"DENSITYWATCH_LOGIN": "team:another-one"}, "densitywatch", "register", "detector")
    assert (wrong.returncode, wrong.stdout) == (
        1,
        f"densitywatch: MLflow's store http://{HOST}:{team.mlflow} refuses the login; set DENSITYWATCH_LOGIN="
        "name:password to that of its server, in .env or in the environment\n",
    )


def test_a_flow_from_elsewhere_needs_the_login_and_a_server_that_is_there(team: Site, tmp_path: Path) -> None:
    copy_checkout(Path(__file__).parents[2], tmp_path)
    (fill(tmp_path / "data" / "inbox" / "new", 1) / "_SUCCESS").touch()
    given = own_environment(tmp_path) | {"PREFECT_API_URL": f"{team.server}/api"}

    def said(**variables: str) -> str:
        done = run(tmp_path, given | variables, "pipelines", "detect-outliers")
        assert done.returncode == 1, done.stdout
        return done.stdout

    assert said(DENSITYWATCH_LOGIN="team:another-one") == (
        f"pipelines: Prefect's server {team.server}/api refuses the login; set DENSITYWATCH_LOGIN=name:password, or"
        " PREFECT_API_AUTH_STRING, to that of the server\n"
    )
    assert said(PREFECT_API_URL="http://127.0.0.1:9/api") == (
        "pipelines: Prefect's server http://127.0.0.1:9/api does not answer; run `make up` where it is, or unset"
        " PREFECT_API_URL to run without it\n"
    )
    assert said(PREFECT_API_URL=f"http://{HOST}:{team.mlflow}/api", DENSITYWATCH_LOGIN=LOGIN).startswith(
        f"pipelines: http://{HOST}:{team.mlflow}/api is not a Prefect server's API; correct PREFECT_API_URL"
    )
    assert said(DENSITYWATCH_LOGIN=LOGIN, MLFLOW_TRACKING_URI="http://127.0.0.1:9").startswith(
        "pipelines: MLflow's store http://127.0.0.1:9 cannot be opened (no answer); start it with `make up`"
    )


def test_no_password_is_in_a_log_or_a_command_line(team: Site) -> None:
    secrets = [PASSWORD, quote(PASSWORD, safe=""), PASSWORD.replace(" ", "%20"), LOGIN.partition(":")[2]]
    logs = list((team.root / "var" / "log").iterdir())
    assert {"prefect.log", "mlflow.log", "worker.log"} <= {path.name for path in logs}
    texts = {str(path): path.read_text(errors="replace") for path in logs} | {"what make up said": team.said}
    for process in service_processes.left_over(team.root):
        texts[f"process {process.pid}"] = " ".join(process.cmdline())
    assert len([name for name in texts if name.startswith("process")]) >= 3
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret in text] == []


@pytest.fixture(scope="module")
def saved(team: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that was made while all ran."""
    folder = tmp_path_factory.mktemp("saved") / "backup"
    done = run(team.root, team.environment, "pipelines.backup", "backup", str(folder))
    assert done.returncode == 0, done.stdout
    return folder


CHAMPION = """
import sys
from pathlib import Path
import numpy as np
from densitywatch import environment
environment.read_file(Path())
from densitywatch.detector import detector
from densitywatch.params import load_params
from densitywatch.registry.download import download_model
from densitywatch.tracking.runs import open_client, tracking_uri
root, params = Path(), load_params(Path("params.yaml"))
folder = download_model("models:/densitywatch-detector@champion", params, root, stand_in=False)
assert folder.resolve().is_relative_to(root.resolve()), folder
images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
print(detector.load(folder).score(images).score.tolist())
client = open_client(tracking_uri(params, root))
print([(v.version, v.tags) for v in client.search_model_versions("name = 'densitywatch-detector'")])
print(sorted((r.info.run_name, str(r.data.metrics)) for r in client.search_runs(["1"])))
"""


def test_a_backup_restored_into_a_fresh_clone_has_history_versions_and_a_champion_that_scores_as_before(
    team: Site, saved: Path, database: str, tmp_path: Path
) -> None:
    assert saved.stat().st_mode & 0o777 == 0o700
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    copy_checkout(team.root, fresh)
    other = in_database(database, "restored")
    write_env(fresh, other)
    done = run(fresh, own_environment(fresh), "pipelines.backup", "restore", str(saved))
    assert done.returncode == 0, done.stdout
    before, after = run(team.root, team.environment, "-c", CHAMPION), run(fresh, own_environment(fresh), "-c", CHAMPION)
    assert (before.returncode, after.returncode) == (0, 0), before.stdout + after.stdout
    assert before.stdout.splitlines()[-3:] == after.stdout.splitlines()[-3:]
    count = "SELECT count(*) FROM prefect.flow_run WHERE state_type = 'COMPLETED'"
    assert 1 <= ask(other, count) <= ask(in_database(database, "watch"), count)
    scores = Path("data") / "outliers" / "monday" / "scores.parquet"
    assert (fresh / scores).read_bytes() == (team.root / scores).read_bytes()
    assert (fresh / "var" / "dvc-remote" / "files" / "md5" / "ab" / "cdef").read_bytes() == b"what DVC pushed"
    again = run(fresh, own_environment(fresh), "pipelines.backup", "restore", str(saved))
    assert again.returncode == 1
    assert re.fullmatch(r"pipelines: .*: there is something already; .*\n|pipelines: .* tables in .*\n", again.stdout)


def test_a_second_checkout_is_kept_off_the_database_and_off_the_ports(team: Site, tmp_path: Path) -> None:
    copy_checkout(team.root, tmp_path)
    (tmp_path / ".env").write_bytes((team.root / ".env").read_bytes())
    taken = run(tmp_path, team.environment, "pipelines.services", "up")
    assert taken.returncode == 1
    assert f"port {team.prefect}, for Prefect, is taken by another program" in taken.stdout
    free = {name: str(free_port()) for name in ("PREFECT_PORT", "MLFLOW_PORT", "REPORTS_PORT")}
    refused = run(tmp_path, team.environment | free, "pipelines.services", "up")
    assert refused.returncode == 1
    assert f"belongs to the checkout {team.root}" in refused.stdout.splitlines()[-1]
    assert service_processes.left_over(tmp_path) == []


def test_servers_and_worker_killed_with_a_run_under_way_come_back_and_go_without_a_trace(
    team: Site, database: str
) -> None:
    url = in_database(database, "watch")
    runs = ask(url, "SELECT count(*) FROM mlflow.runs")
    known = {one["id"] for one in team.runs("COMPLETED")}
    deployment = team.deployment("inbox")["id"]
    asked = team.ask("POST", f"deployments/{deployment}/create_flow_run", {})["id"]
    until(lambda: team.state(asked) in ("Running", "Completed"))
    for entry in service_processes.noted(team.root):
        os.kill(entry["pid"], signal.SIGKILL)
    assert team.services("up").returncode == 0
    assert known <= {one["id"] for one in team.runs("COMPLETED")}
    assert ask(url, "SELECT count(*) FROM mlflow.runs") >= runs
    (fill(team.root / "data" / "inbox" / "tuesday", 3) / "_SUCCESS").touch()
    until(lambda: (team.root / "data" / "outliers" / "tuesday" / "summary.json").is_file())
    assert team.services("up").returncode == 0
    worker = next(entry["pid"] for entry in service_processes.noted(team.root) if entry["name"] == "worker")
    team.ask("POST", f"deployments/{deployment}/create_flow_run", {})
    child = until(lambda: psutil.Process(worker).children(recursive=True), 120)[0]
    os.kill(worker, signal.SIGKILL)  # what it had started is nobody's child now
    assert child.is_running()
    team.services("down")
    assert team.services("down").stdout == "stopped: nothing was running\n"
    assert service_processes.left_over(team.root) == []
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(team.root)]
    for port in (team.prefect, team.mlflow):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    assert ask(url, "SELECT count(*) FROM prefect.flow_run WHERE state_type IN ('RUNNING', 'PENDING')") == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"DENSITYWATCH_HOST": "0.0.0.0"},
            "DENSITYWATCH_HOST=0.0.0.0: others could reach the servers without a login; set"
            " DENSITYWATCH_LOGIN=name:password in .env as well, or leave DENSITYWATCH_HOST at 127.0.0.1",
        ),
        (
            {"DENSITYWATCH_HOST": "203.0.113.7", "DENSITYWATCH_LOGIN": LOGIN},
            "DENSITYWATCH_HOST=203.0.113.7: not an IPv4 address of this machine; give one, or 0.0.0.0 for all",
        ),
        (
            {"DENSITYWATCH_LOGIN": "short:word"},
            "DENSITYWATCH_LOGIN: not a login; give name:password in plain ASCII letters, digits and signs, the password"
            " of 8 characters or more",
        ),
    ],
)
@pytest.mark.server
def test_an_address_without_a_login_and_a_login_that_is_none_are_refused_in_one_sentence(
    variables: dict[str, str], said: str, project_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (tmp_path / "pipelines").symlink_to(project_root / "pipelines")
    done = run(tmp_path, own_environment(project_root) | variables, "pipelines.services", "up")
    assert (done.returncode, done.stdout) == (2, f"pipelines: {said}\n")
    assert not (tmp_path / "var").exists()


@pytest.mark.server
def test_a_server_of_another_project_on_the_noted_port_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "health").write_text("true")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "prefect.address").write_text(f"http://127.0.0.1:{port}/api\n")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    other = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(other, cwd=tmp_path, stderr=subprocess.DEVNULL) as program:
        try:
            until(lambda: prefect_home.answers(f"http://127.0.0.1:{port}/api/health"), 60)
            assert prefect_home.settle(tmp_path) is None
        finally:
            program.kill()
