"""`make up` and `make down`, with real servers on free ports: what a person does with them, and what comes of it.

One checkout is up for all tests of this file, in a folder with blanks, quotes and umlauts in its name and with a proxy
set that leads nowhere. They stand in the order in which they are to run.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from densitywatch import environment
from densitywatch.batches.gallery import GALLERY, picture
from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.params import load_params
from densitywatch.tracking.runs import batches_experiment, open_client
from densitywatch.tracking.store import FLOW_RUN, REPORT, tracking_uri
from pipelines import listening, prefect_home, service_processes, services
from pipelines.server import ServiceFailed
from tests.detector.standin import fill
from tests.marks import marks
from tests.pipelines.checkout import own_environment, run
from tests.pipelines.site import Site, an_id, copy_small_project, free_port, until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
@marks("server")
def site(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("up") / "Ärger & 'Blanks' im (Büro) $HOME"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        copy_small_project(project_root, root)
    prefect, mlflow = free_port(), free_port()
    nowhere = f"http://127.0.0.1:{free_port()}"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), nowhere)
    kept = {name: value for name, value in own_environment(root).items() if name.lower() != "no_proxy"}
    ports = {"PREFECT_PORT": str(prefect), "MLFLOW_PORT": str(mlflow), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    kept["PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS"] = "5"
    made = Site(root, kept | proxies | ports, prefect, mlflow)
    try:
        started = made.services("up")
        assert started.returncode == 0, started.stdout
        made.said = started.stdout
        yield made
    finally:
        made.services("down")


def test_up_starts_servers_deploys_and_says_where_and_how_to_log_in(site: Site) -> None:
    assert f"Prefect {site.server}   log in with the line in var/prefect.login" in site.said
    assert (site.root / "var" / "prefect.login").stat().st_mode & 0o777 == 0o600
    assert (site.root / "var" / "profiles.toml").stat().st_mode & 0o777 == 0o600
    with urlopen(f"http://127.0.0.1:{site.mlflow}/health", timeout=30) as response:
        assert response.status == 200
    assert {found["name"] for found in site.ask("POST", "deployments/filter", {})} == {
        "retrain",
        "train-model",
        "inbox",
        "promote",
        "rollback",
    }
    limits = site.ask("POST", "v2/concurrency_limits/filter", {})
    assert [limit["limit"] for limit in limits if limit["name"] == "gpu"] == [2]


def refused(server: str, headers: dict[str, str], path: str = "/api/deployments/filter") -> int:
    """The status of a request with these headers, of which one would deploy what it likes."""
    request = Request(server + path, data=b"{}", headers={"Content-Type": "application/json", **headers}, method="POST")
    try:
        with urlopen(request, timeout=60) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code


def test_without_the_login_or_from_another_sites_page_nothing_is_answered(site: Site) -> None:
    known = (site.root / "var" / "prefect.login").read_text().strip()
    login = {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"}
    wrong = {"Authorization": f"Basic {base64.b64encode(b'densitywatch:guess').decode()}"}
    assert refused(site.server, login) == 200
    assert refused(site.server, login | {"Origin": site.server}) == 200
    assert refused(site.server, {}) == 401
    assert refused(site.server, wrong) == 401
    assert refused(site.server, login | {"Origin": "http://evil.example"}) == 403
    assert refused(site.server, login | {"Origin": "null"}) == 403
    assert refused(site.server, login | {"Host": "evil.example"}) == 400
    assert refused(site.server, login | {"Host": "evil.example"}, "/api/health") == 400


PUBLISH = """
import os, sys
from pathlib import Path
from densitywatch import environment
environment.settle(os.environ)
from prefect.artifacts import create_markdown_artifact
from pipelines.detect_outliers import gallery_text
print(create_markdown_artifact(gallery_text(Path(sys.argv[1])), key="outlier-batch"))
"""


def with_profile(site: Site) -> dict[str, str]:
    return site.environment | {"PREFECT_PROFILES_PATH": "var/profiles.toml"}


def test_a_person_logs_in_to_prefects_page_and_sees_the_images_of_a_batch(site: Site, browser: Any) -> None:
    folder = site.root / "batch"
    folder.mkdir()
    square = picture(np.full((1, 28, 28), 90, dtype=np.uint8))
    rows = [{"picture": square, "outlier": i < 2} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), folder / GALLERY)
    published = run(site.root, with_profile(site), "-c", PUBLISH, str(folder))
    assert published.returncode == 0, published.stdout
    page, address = browser.new_page(), f"{site.server}/artifacts/artifact/{an_id(published.stdout)}"
    page.goto(address)
    password = page.locator('input[type="password"]')
    password.wait_for(timeout=120_000)
    password.fill((site.root / "var" / "prefect.login").read_text().strip())
    password.press("Enter")
    password.wait_for(state="hidden", timeout=120_000)
    page.goto(address)
    shown = page.locator('img[src^="data:image/png"]')
    shown.wait_for(timeout=120_000)
    assert shown.evaluate("image => image.naturalWidth") == 6 * 96


def test_the_schedule_fires_and_a_batch_is_scored_without_a_hand(site: Site) -> None:
    done = until(lambda: [one for one in site.runs("COMPLETED", "FAILED", "CRASHED") if one["auto_scheduled"]])
    assert {one["state"]["type"] for one in done} == {"COMPLETED"}
    summary = json.loads((site.root / "data" / "outliers" / "monday" / "summary.json").read_text())
    assert (summary["files"], summary["scored"]) == (12, 12)
    # no more of them: each takes the only place of the deployment, and the tests that follow ask for their own runs
    inbox = site.deployment("inbox")
    site.ask("PATCH", f"deployments/{inbox['id']}/schedules/{inbox['schedules'][0]['id']}", {"active": False})


SETTLE = """
import os
from densitywatch import environment
environment.settle(os.environ)
from pipelines.deployments import settle_runs
settle_runs()
"""


def test_of_many_looks_that_wait_one_is_left(site: Site) -> None:
    inbox = site.deployment("inbox")
    schedule = f"deployments/{inbox['id']}/schedules/{inbox['schedules'][0]['id']}"
    site.ask("PATCH", "work_pools/gpu", {"is_paused": True})
    site.ask("PATCH", schedule, {"active": True})
    end = datetime.now(UTC) - timedelta(days=1)  # the machine was off for twenty looks
    window = {"start_time": (end - timedelta(minutes=20)).isoformat(), "end_time": end.isoformat()}
    site.ask("POST", f"deployments/{inbox['id']}/schedule", window | {"min_runs": 20, "max_runs": 20})

    def waiting() -> list[datetime]:
        runs = [run for run in site.runs("SCHEDULED") if run["auto_scheduled"]]
        times = sorted(datetime.fromisoformat(run["expected_start_time"]) for run in runs)
        return [moment for moment in times if moment < datetime.now(UTC)]

    before = waiting()
    assert len(before) >= 18
    by_hand = site.ask("POST", f"deployments/{inbox['id']}/create_flow_run", {})["id"]
    profile = site.environment | {"PREFECT_PROFILES_PATH": "var/profiles.toml"}
    done = run(site.root, profile, "-c", SETTLE)
    assert done.returncode == 0, done.stdout
    left = waiting()
    assert left[0] >= max(before)
    assert len(left) <= 2, "one, and one whose time has come since"
    assert site.state(by_hand) in ("Scheduled", "Late"), "what a person asked for stays"
    site.ask("PATCH", schedule, {"active": False})
    site.ask("PATCH", "work_pools/gpu", {"is_paused": False})
    until(lambda: site.state(by_hand) == "Completed")


def test_a_run_whose_process_is_gone_is_told_as_crashed_by_make_up_and_by_the_next_look(site: Site) -> None:
    def gone() -> str:
        """A run that says that it goes on, and that no process works on."""
        asked = site.ask("POST", f"deployments/{site.deployment('inbox')['id']}/create_flow_run", {})["id"]
        site.ask("POST", f"flow_runs/{asked}/set_state", {"state": {"type": "RUNNING"}, "force": True})
        return str(asked)

    site.ask("PATCH", "work_pools/gpu", {"is_paused": True})
    first, second = gone(), ""
    try:
        done = site.services("up")
        assert done.returncode == 0, done.stdout
        assert site.state(first) == "Crashed"
        assert done.stdout.count("has crashed: its process is gone") == 1
        second = gone()
    finally:
        site.ask("PATCH", "work_pools/gpu", {"is_paused": False})
    look = site.ask("POST", f"deployments/{site.deployment('inbox')['id']}/create_flow_run", {})["id"]
    until(lambda: site.state(look) == "Completed")
    assert site.state(second) == "Crashed"


def test_runs_that_ended_90_days_ago_are_forgotten(site: Site) -> None:
    def ended(days: int) -> str:
        run = site.ask("POST", f"deployments/{site.deployment('inbox')['id']}/create_flow_run", {})["id"]
        site.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "COMPLETED"}, "force": True})
        then = datetime.now(UTC) - timedelta(days=days)
        with closing(sqlite3.connect(site.root / "var" / "prefect" / "prefect.db", timeout=60)) as database, database:
            row = (then.strftime("%Y-%m-%d %H:%M:%S.%f"), run.replace("-", ""))
            changed = database.execute("UPDATE flow_run SET end_time = ? WHERE replace(id, '-', '') = ?", row)
            assert changed.rowcount == 1
        return str(run)

    site.ask("PATCH", "work_pools/gpu", {"is_paused": True})
    young, old = ended(89), ended(91)
    site.ask("PATCH", "work_pools/gpu", {"is_paused": False})

    def kept() -> set[str]:
        found = site.ask("POST", "flow_runs/filter", {"flow_runs": {"id": {"any_": [young, old]}}})
        return {one["id"] for one in found}

    until(lambda: kept() == {young})


def test_the_results_are_served_and_every_page_leads_to_them(site: Site, browser: Any) -> None:
    at = f"http://127.0.0.1:{site.environment['REPORTS_PORT']}"
    assert f"Reports {at}" in site.said
    page = browser.new_page()
    page.goto(f"{at}/")
    page.get_by_role("link", name="monday").click()
    page.wait_for_url(f"{at}/monday/report.html")
    assert page.title().endswith("densitywatch")
    page.close()
    batches = [one for one in site.ask("POST", "artifacts/filter", {}) if one["key"] == "outlier-batch"]
    (artifact,) = [one for one in batches if one["flow_run_id"] is not None]  # the test above left one without a run
    assert f"({at}/monday/report.html)" in artifact["data"]
    params = load_params(site.root / "params.yaml")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = open_client(tracking_uri(params, site.root))
    (experiment,) = client.search_experiments(filter_string=f"name = '{batches_experiment(params)}'")
    (logged,) = client.search_runs([experiment.experiment_id], f"tags.{REPORT} LIKE '%/monday/%'")
    assert logged.data.tags[REPORT] == f"{at}/monday/report.html"
    assert logged.data.tags[FLOW_RUN].startswith(f"{site.server}/runs/flow-run/")


def test_status_says_what_runs_with_addresses_and_what_was_scored(site: Site) -> None:
    said = run(site.root, site.environment, "pipelines", "status")
    assert said.returncode == 0, said.stdout
    pids = {entry["name"]: entry["pid"] for entry in service_processes.noted(site.root)}
    for name, address in (
        ("prefect", site.server),
        ("mlflow", f"http://127.0.0.1:{site.mlflow}"),
        ("reports", f"http://127.0.0.1:{site.environment['REPORTS_PORT']}"),
        ("worker", "runs"),
    ):
        assert re.search(rf"(?mi)^  {name} +{re.escape(address)} +process {pids[name]}$", said.stdout), said.stdout
    assert "nothing waits" in said.stdout
    assert re.search(r"monday: 12 files, \d+ flagged", said.stdout)
    assert re.search(r"detector \(champion 1\): promoted, version 1 passed", said.stdout)
    assert "not known" not in said.stdout


def test_two_requests_of_one_flow_run_one_after_the_other(site: Site) -> None:
    deployment = site.deployment("inbox")["id"]
    asked = [site.ask("POST", f"deployments/{deployment}/create_flow_run", {})["id"] for _ in range(3)]
    until(lambda: {site.state(one) for one in asked} == {"Completed"})
    times = sorted(
        (datetime.fromisoformat(one["start_time"]), datetime.fromisoformat(one["end_time"]))
        for one in site.runs("COMPLETED")
    )
    assert len(times) >= 3
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_a_person_fills_in_a_form_to_promote_and_sees_the_history(site: Site) -> None:
    promote = site.deployment("promote")
    assert promote["parameter_openapi_schema"]["properties"]["model"]["enum"][-1] == "detector"
    path = f"deployments/{promote['id']}/create_flow_run"
    with pytest.raises(HTTPError) as refused:
        site.ask("POST", path, {"parameters": {"model": "nobody"}})
    assert 400 <= refused.value.code < 500
    given = {"model": "detector", "reason": "to be sure", "asked_by": "anna"}
    asked = site.ask("POST", path, {"parameters": given})["id"]
    back = site.ask("POST", path.replace(promote["id"], site.deployment("rollback")["id"]), {"parameters": given})["id"]
    until(lambda: site.state(asked) == "Completed")
    until(lambda: site.state(back) == "Failed")  # the first champion has none before it
    assert "has no champion before it" in site.ask("GET", f"flow_runs/{back}")["state"]["message"]
    chosen = {"artifacts": {"key": {"any_": ["history-detector"]}, "flow_run_id": {"any_": [asked]}}}
    (table,) = site.ask("POST", "artifacts/filter", chosen)
    assert "Champion: version 1" in table["description"]
    assert [row["outcome"] for row in json.loads(table["data"])] == ["promoted"]


STAGES = """
stages:
  prepare:
    cmd: mkdir -p data && cp -r '{of}/data/prepared' data/prepared
    outs: [data/prepared]
  train:
    cmd: mkdir -p models && cp -r '{of}/models/pixelcnn' '{of}/models/detector' models
    params: [seed]
    outs: [models/pixelcnn, models/detector]
  evaluate:
    foreach: [pixelcnn]
    do:
      cmd: echo '{{"bits_per_dim":1.5}}' > metrics/pixelcnn.json
      deps: [models/pixelcnn]
      metrics: [{{metrics/pixelcnn.json: {{cache: false}}}}]
"""


def workflow_step(name: str, job: str) -> Any:
    """The step of retrain.yml that runs a command."""
    workflow = yaml.safe_load((Path(__file__).parents[2] / ".github" / "workflows" / name).read_text())
    (step,) = [step for step in workflow["jobs"][job]["steps"] if "run" in step]
    return step


def test_the_workflow_of_ci_asks_for_a_run_of_its_commit_and_proposes_what_it_changed(
    site: Site, tmp_path: Path
) -> None:
    """What GitHub's runner does, by the lines of the workflow: here in a clone, with a bare repository for GitHub's."""
    ci, files, github = tmp_path / "ci", tmp_path / "files", tmp_path / "github.git"
    (files / "models").mkdir(parents=True)
    shutil.copytree(site.root / "data" / "prepared", files / "data" / "prepared")
    for name in ("pixelcnn", "detector"):
        shutil.copytree(site.root / "models" / name, files / "models" / name)
    before = git(site.root, "status", "--porcelain"), git(site.root, "rev-parse", "HEAD"), git(site.root, "branch")

    # a commit that the server's checkout does not have yet
    git(tmp_path, "clone", "-q", str(site.root), str(ci))
    git(tmp_path, "clone", "-q", "--bare", str(site.root), str(github))
    for root in (ci, site.root):
        git(root, "remote", *(("set-url", "origin") if root == ci else ("add", "origin")), str(github))
    shutil.copyfile(site.root / "params.yaml", ci / "params.yaml")
    params = yaml.safe_load((ci / "params.yaml").read_text())
    params["models"] = {"pixelcnn": params["models"]["pixelcnn"]}
    params["detector"]["rivals_read"] = []
    (ci / "params.yaml").write_text(yaml.safe_dump(params))
    (ci / "dvc.yaml").write_text(STAGES.format(of=files))
    for metrics in (ci / "metrics").glob("*.json"):
        metrics.unlink()
    (ci / "metrics" / "pixelcnn.json").write_text('{"bits_per_dim": 2.5}\n')
    (ci / "dvc.lock").unlink()
    git(ci, "add", "-A")
    git(ci, "commit", "-qm", "another graph")
    commit = git(ci, "rev-parse", "HEAD")
    git(ci, "push", "-q", "origin", "HEAD:refs/heads/main")

    given = {
        "${{ vars.PREFECT_API_URL }}": f"{site.server}/api",
        "${{ secrets.PREFECT_API_AUTH_STRING }}": (site.root / "var" / "prefect.login").read_text().strip(),
    }
    programs = tmp_path / "programs"
    programs.mkdir()
    gh = programs / "gh"
    gh.write_text('#!/bin/sh\nif [ "$2" = create ]; then echo https://github.com/x/y/pull/7; fi\n')
    gh.chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    runner = {"PATH": path, "HOME": str(tmp_path), "GITHUB_STEP_SUMMARY": "summary.md"}

    def step(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        found = workflow_step("retrain.yml", name)
        said = {key: given.get(value, value) for key, value in found["env"].items() if not value.startswith("${{ git")}
        command, variables = ["bash", "-e", "-c", found["run"]], runner | said | environment
        return subprocess.run(command, cwd=ci, env=variables, capture_output=True, text=True, check=False)

    well = step("ask", REF=commit)
    assert well.returncode == 0, well.stdout + well.stderr
    assert len(well.stdout.splitlines()) < 30, well.stdout
    assert re.search(r"pixelcnn +(promoted|unchanged) ", well.stdout)
    assert re.search(r"detector +unchanged ", well.stdout)
    assert re.search(r"\| metrics/pixelcnn.json +\| bits_per_dim +\| 2.5 +\| 1.5 +\|", well.stdout)
    assert "files that changed: dvc.lock, metrics/pixelcnn.json" in well.stdout
    assert "## Verdicts" in (ci / "summary.md").read_text()

    proposed = step("propose", BASE="main", GH_TOKEN="of-the-test")
    assert proposed.returncode == 0, proposed.stdout + proposed.stderr
    assert proposed.stdout == "pull request: https://github.com/x/y/pull/7\n"
    assert git(github, "diff", "--name-only", commit, f"retrain/{commit[:12]}").split() == [
        "dvc.lock",
        "metrics/pixelcnn.json",
    ]
    # what DVC keeps went to the remote of the server's checkout
    lock = yaml.safe_load(git(github, "show", f"retrain/{commit[:12]}:dvc.lock"))
    (out,) = [out for out in lock["stages"]["train"]["outs"] if out["path"] == "models/pixelcnn"]
    stored = out["md5"].removesuffix(".dir")
    assert list((site.root / "var" / "dvc-remote").rglob(f"{stored[2:]}*"))

    # the person's checkout is as it was, and the run is one of the deployment
    assert (git(site.root, "status", "--porcelain"), git(site.root, "rev-parse", "HEAD"), git(site.root, "branch")) == (
        before
    )
    assert not (site.root / "var" / "commits").exists()

    badly = step("ask", REF="f" * 40)
    assert badly.returncode != 0
    assert f"git does not know '{'f' * 40}'" in badly.stderr
    refused = step("ask", REF=commit, PREFECT_API_AUTH_STRING="densitywatch:guess")
    assert "refuses the login; set PREFECT_API_AUTH_STRING" in refused.stderr


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


SILENT = """
import os, sys
from datetime import timedelta
from densitywatch import environment
environment.settle(os.environ)
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running
from pipelines.deployments import watch_silent_runs
with get_client(sync_client=True) as client:
    for one in client.read_automations_by_name("Crash runs that went silent"):
        client.request("DELETE", "/automations/{id}", path_params={"id": one.id})
    watch_silent_runs(client, within=timedelta(seconds=10))
    run = client.create_flow_run_from_deployment(UUID(sys.argv[1]), state=Running())
emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})
import time; time.sleep(3)
print(run.id)
"""


def test_a_run_that_gives_no_sign_of_life_any_more_is_crashed(site: Site) -> None:
    """The watch of `make up`, with 10 seconds in the place of its 150."""
    made = {one["name"] for one in site.ask("POST", "automations/filter", {})}
    assert made == {"Crash runs that went silent", "Retrain when the stream has moved"}
    (watch,) = (one for one in site.ask("POST", "automations/filter", {}) if one["name"].startswith("Crash"))
    ended = {f"prefect.flow-run.{state}" for state in ("Outliers found", "Drift alarm", "Rejected", "TimedOut")}
    assert ended <= set(watch["trigger"]["expect"]), "a run that ended so has not gone silent"
    said = run(site.root, with_profile(site), "-c", SILENT, site.deployment("retrain")["id"]).stdout
    silent = an_id(said)
    assert site.state(silent) == "Running", said
    until(lambda: site.state(silent) == "Crashed")


def test_up_again_keeps_what_a_person_set_and_takes_what_is_new_in_params(site: Site) -> None:
    before = service_processes.noted(site.root)
    inbox = site.deployment("inbox")
    schedule = inbox["schedules"][0]
    site.ask("PATCH", f"deployments/{inbox['id']}", {"tags": ["night"], "concurrency_limit": 3})
    site.ask("PATCH", f"deployments/{inbox['id']}/schedules/{schedule['id']}", {"active": False})
    site.ask("PATCH", "work_pools/gpu", {"concurrency_limit": 7})
    site.ask("PATCH", "v2/concurrency_limits/gpu", {"limit": 5})

    def seen() -> tuple[Any, ...]:
        found = site.deployment("inbox")
        (one,) = found["schedules"]
        pool = site.ask("GET", "work_pools/gpu")["concurrency_limit"]
        slots = site.ask("GET", "v2/concurrency_limits/gpu")["limit"]
        limit = found["global_concurrency_limit"]["limit"]
        return found["tags"], limit, one["active"], one["schedule"]["cron"], pool, slots

    again = site.services("up")
    assert (again.returncode, service_processes.noted(site.root)) == (0, before), again.stdout
    assert seen() == (["night"], 3, False, "* * * * *", 7, 5)
    params = site.root / "params.yaml"
    edited = params.read_text().replace('"* * * * *"', '"30 2 * * *"').replace("  slots: 2", "  slots: 4")
    params.write_text(edited)
    assert site.services("up").returncode == 0
    assert seen() == (["night"], 3, False, "30 2 * * *", 7, 4)


def test_a_retraining_starts_by_the_clock_when_params_say_so_and_what_a_person_set_stays(site: Site) -> None:
    params = site.root / "params.yaml"

    def seen_after(cron: str) -> list[tuple[bool, str]]:
        params.write_text(re.sub(r"(?m)^(retrain:\n  cron: )[^#\n]*", rf"\g<1>{cron} ", params.read_text()))
        assert site.services("up").returncode == 0
        schedules = site.deployment("retrain")["schedules"]
        return sorted((one["active"], one["schedule"]["cron"]) for one in schedules)

    assert site.deployment("retrain")["schedules"] == []
    assert seen_after('"0 3 * * 0"') == [(True, "0 3 * * 0")]
    deployment = site.deployment("retrain")
    path = f"deployments/{deployment['id']}/schedules"
    site.ask("PATCH", f"{path}/{deployment['schedules'][0]['id']}", {"active": False})
    site.ask("POST", path, [{"schedule": {"cron": "5 5 5 5 *"}, "active": False}])
    assert seen_after('"0 3 * * 0"') == [(False, "0 3 * * 0"), (False, "5 5 5 5 *")]
    assert seen_after('"30 2 * * 6"') == [(False, "30 2 * * 6"), (False, "5 5 5 5 *")]
    assert seen_after("null") == [(False, "5 5 5 5 *")]


def test_a_second_checkout_on_the_same_ports_is_told_so_in_one_line_and_touches_nothing(
    site: Site, project_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (tmp_path / "pipelines").symlink_to(project_root / "pipelines")
    second, reports = own_environment(project_root), site.environment["REPORTS_PORT"]
    for ports, name in (
        ({"PREFECT_PORT": str(site.prefect)}, "PREFECT_PORT"),
        ({"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(site.mlflow)}, "MLFLOW_PORT"),
        (dict.fromkeys(("PREFECT_PORT", "MLFLOW_PORT"), str(free_port())) | {"REPORTS_PORT": reports}, "REPORTS_PORT"),
    ):
        said = run(tmp_path, second | ports, "pipelines.services", "up")
        assert said.returncode == 1
        assert re.fullmatch(
            rf"pipelines: port {ports[name]}, for \w+, is taken by another program \(`make up` in another checkout\?\);"
            rf" stop that one, or take another port: make up {name}=\d+\n",
            said.stdout,
        )
        assert not (tmp_path / "var" / "services.json").exists()
    assert {found["name"] for found in site.ask("POST", "deployments/filter", {})} == {
        "retrain",
        "train-model",
        "inbox",
        "promote",
        "rollback",
    }
    assert len(site.ask("POST", "work_pools/gpu/workers/filter", {})) == 1


def test_down_leaves_no_process_and_no_run_that_waits_for_one(site: Site) -> None:
    deployment = site.deployment("inbox")["id"]
    worker = next(entry["pid"] for entry in service_processes.noted(site.root) if entry["name"] == "worker")
    os.killpg(worker, signal.SIGSTOP)  # it is about to start them, as far as the server knows
    submitted, running, waiting = (
        site.ask("POST", f"deployments/{deployment}/create_flow_run", {})["id"] for _ in range(3)
    )
    pending = {"type": "PENDING", "name": "Submitting"}
    for one, state in ((submitted, pending), (running, pending), (running, {"type": "RUNNING"})):
        site.ask("POST", f"flow_runs/{one}/set_state", {"state": state, "force": True})
    os.killpg(worker, signal.SIGCONT)
    entries = service_processes.noted(site.root)
    stopped = site.services("down")
    assert stopped.stdout == "stopped: prefect, mlflow, reports, worker\n"
    assert not any(psutil.pid_exists(entry["pid"]) for entry in entries)
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(site.root)]
    with closing(sqlite3.connect(site.root / "var" / "prefect" / "prefect.db")) as database:
        states = dict(database.execute("select id, state_type from flow_run"))
    assert states[submitted] in ("SCHEDULED", "COMPLETED", "CRASHED")
    assert states[running] == "CRASHED"
    assert not {"PENDING", "RUNNING", "CANCELLING"} & set(states.values()), waiting
    assert site.services("down").stdout == "stopped: nothing was running\n"


def test_without_servers_the_job_has_one_of_its_own_which_ends_with_it(site: Site) -> None:
    (fill(site.root / "data" / "inbox" / "tuesday", 3) / "_SUCCESS").touch()
    done = run(site.root, site.environment, "pipelines", "detect-outliers")
    assert done.returncode == 0, done.stdout
    assert (site.root / "data" / "outliers" / "tuesday" / "summary.json").is_file()
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(site.root)]


TEMPORARY = """
import time
from pathlib import Path
from pipelines import prefect_home, server
prefect_home.settle(Path())
print(server.start_temporary(Path()), flush=True)
time.sleep(300)
"""


def test_the_temporary_server_asks_for_the_login_too_and_ends_when_the_run_is_killed(site: Site) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TEMPORARY], cwd=site.root, env=site.environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        server = owner.stdout.readline().strip().removesuffix("/api")
        known = (site.root / "var" / "prefect.login").read_bytes().strip()
        login = {"Authorization": f"Basic {base64.b64encode(known).decode()}"}
        assert refused(server, login) == 200
        assert refused(server, {}) == 401
        assert refused(server, login | {"Origin": "http://evil.example"}) == 403
        assert refused(server, login | {"Host": "evil.example"}) == 400
        (child,) = psutil.Process(owner.pid).children()
        owner.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 60)


def test_down_leaves_a_process_alone_whose_number_was_another_ones(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as bystander:
        entry = {"name": "prefect", "pid": bystander.pid, "created": time.time() - 1e6, "log": ""}
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "services.json").write_text(json.dumps([entry]))
        assert services.down(tmp_path) == []
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_service_is_found_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    with service_processes.start(tmp_path, "prefect", ["sleep", "60"]) as service:
        moved = psutil.boot_time() + seconds
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda: moved)
        (entry,) = service_processes.noted(tmp_path)
        found = service_processes.find(entry)
        service.kill()
    assert found is not None
    assert found.pid == service.pid


def test_the_notes_of_earlier_versions_are_understood(tmp_path: Path) -> None:
    with service_processes.start(tmp_path, "prefect", ["sleep", "60"]) as service:
        note = tmp_path / "var" / "services.json"
        (entry,) = json.loads(note.read_text())
        del entry["start"]
        created = psutil.Process(service.pid).create_time()
        note.write_text(json.dumps([entry | {"created": created}, entry | {"start": "damaged"}, entry]))
        found = [service_processes.find(entry) for entry in service_processes.noted(tmp_path)]
        service.kill()
    assert [process and process.pid for process in found] == [service.pid, None]


NESTED = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
time.sleep(300)
"""


def test_what_a_killed_service_had_started_ends_with_down(tmp_path: Path) -> None:
    service = service_processes.start(tmp_path, "worker", [sys.executable, "-c", NESTED])
    child = until(lambda: psutil.Process(service.pid).children(), 60)[0]
    service.kill()
    service.wait()
    assert child in service_processes.left_over(tmp_path)
    services.down(tmp_path)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)
    assert service_processes.left_over(tmp_path) == []


def test_a_service_started_from_the_background_of_a_shell_can_be_interrupted_all_the_same(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        service = service_processes.start(tmp_path, "worker", ["sleep", "300"])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    service.send_signal(signal.SIGINT)
    assert service.wait(60) == -signal.SIGINT


def test_a_server_that_ends_as_it_starts_is_named_with_its_last_words(tmp_path: Path) -> None:
    drawn = "echo '╭─ Error ─╮'; echo '│ the database is of a newer version │'; echo '╰─────────╯'; exit 1"
    service_processes.start(tmp_path, "prefect", ["sh", "-c", drawn]).wait()
    with pytest.raises(
        ServiceFailed, match=r"^prefect ended as it started: the database is of a newer version; see .*log$"
    ):
        service_processes.wait_until_it_answers(tmp_path, "prefect", "http://127.0.0.1:9/health", 9)


@pytest.mark.server
def test_an_answer_from_another_program_on_the_port_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    port = free_port()
    other = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(other, cwd=tmp_path, stderr=subprocess.DEVNULL) as program:
        own = service_processes.start(tmp_path, "mlflow", ["sleep", "300"])
        try:
            until(lambda: prefect_home.answers(f"http://127.0.0.1:{port}/"), 60)
            with pytest.raises(ServiceFailed, match=r"another program answers at .* in the place of mlflow"):
                service_processes.wait_until_it_answers(tmp_path, "mlflow", f"http://127.0.0.1:{port}/", port)
        finally:
            program.kill()
            own.kill()
            own.wait()


@pytest.mark.parametrize("port", ["prefect", "0", "70000", "-1"])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(ParamsError, match=f"^PREFECT_PORT={port}: not a port"):
        service_processes.check_port("Prefect", port, "PREFECT_PORT")


HOLD = """import sys; from pathlib import Path; from pipelines import run_lock
with run_lock.one_run_at_a_time(Path(sys.argv[1])):
    print(flush=True); sys.stdin.read()
"""


@pytest.fixture
@marks("server")
def half_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, subprocess.Popen[bytes], int]]:
    """A checkout with one service, the server on the port that is told, and the others gone; `up` gets no further than
    to its stop.
    """
    source = Path(__file__).parents[2]
    shutil.copyfile(source / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("PREFECT_PORT", str(port))
        for name in ("MLFLOW_PORT", "REPORTS_PORT"):
            monkeypatch.setenv(name, str(free_port()))
        listener.set_inheritable(True)
        with monkeypatch.context() as patched:
            popen = subprocess.Popen
            patched.setattr(subprocess, "Popen", lambda *args, **given: popen(*args, **given, close_fds=False))
            service = service_processes.start(tmp_path, "prefect", ["sleep", "300"])
    monkeypatch.setattr(services, "_start", lambda *_: None)
    monkeypatch.setattr(services, "_addresses", lambda _: "")
    try:
        yield tmp_path, service, port
    finally:
        service.kill()
        service.wait()


def test_up_stops_nothing_while_a_run_goes_on_that_no_service_has_started(
    half_up: tuple[Path, subprocess.Popen[bytes], int],
) -> None:
    root, service, _ = half_up
    command = [sys.executable, "-c", HOLD, str(root)]
    kept = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run_by_hand:
        assert run_by_hand.stdout is not None
        run_by_hand.stdout.readline()
        with pytest.raises(DensitywatchError, match=rf"another run \(process {run_by_hand.pid}\) is going on"):
            services.up(root)
        assert (service.poll(), run_by_hand.poll()) == (None, None)
        run_by_hand.kill()
    marked = kept | {service_processes.MARK: str(root.resolve())}
    with subprocess.Popen(command, env=marked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run_by_worker:
        assert run_by_worker.stdout is not None
        run_by_worker.stdout.readline()
        services.up(root)
        assert not psutil.pid_exists(run_by_worker.pid), "a run of the worker ends with it"
    assert not psutil.pid_exists(service.pid)


def test_up_stops_nothing_where_a_port_is_taken_and_takes_its_own_ones_back(
    half_up: tuple[Path, subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, service, port = half_up
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        taken = foreign.getsockname()[1]
        with monkeypatch.context() as patched:
            patched.setenv("REPORTS_PORT", str(taken))
            with pytest.raises(ServiceFailed, match=rf"^port {taken}, for Reports, is taken by another program"):
                services.up(root)
    assert service.poll() is None
    assert not service_processes._is_free(port)
    services.up(root)
    assert not psutil.pid_exists(service.pid)
    assert service_processes._is_free(port)


def test_a_network_that_comes_or_goes_starts_no_server_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(listening.HOST_VARIABLE, listening.EVERY)
    monkeypatch.setenv(environment.LOGIN, "name:password")
    before = services._settings()
    monkeypatch.setattr(listening, "_own_addresses", lambda: {"172.17.0.1"})
    assert services._settings() == before
    monkeypatch.setenv(listening.NAMES_VARIABLE, "watch.example")
    assert services._settings() != before


@pytest.mark.server
@pytest.mark.parametrize("name", ["50%", "what?", "no#1", "a:b", "{{ x }}", "two\nlines"])
def test_a_folder_whose_path_the_tools_would_take_apart_is_refused_before_anything_is_written(
    name: str, project_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / name
    root.mkdir()
    (root / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    environment = own_environment(project_root)
    environment["PYTHONPATH"] += os.pathsep + str(project_root)
    for command in (["pipelines.services", "up"], ["pipelines", "retrain"], ["densitywatch", "prepare"]):
        said = run(root, environment, *command)
        assert said.returncode == 2, said.stdout
        assert said.stdout.count("\n") == 1
        assert "move it to one without" in said.stdout
    assert [path.name for path in root.iterdir()] == ["params.yaml"]
