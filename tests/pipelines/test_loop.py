"""From a batch in the inbox to a retraining and a message, without a hand: real servers, a worker and the schedule.

One checkout is up for all tests of this file. They stand in the order in which they are to run.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from densitywatch.data.accepted import accepted_rows
from densitywatch.data.encoding import png
from pipelines.automations import RETRAIN, TELL_DRIFT, TELL_FAILED
from tests.detector.standin import fill
from tests.marks import marks
from tests.pipelines.checkout import own_environment, run
from tests.pipelines.site import Site, copy_small_project, free_port, until
from tests.registry.registry_project import images

pytestmark = pytest.mark.timeout(900)

GRAPH = """
stages:
  look:
    cmd: densitywatch look
    always_changed: true
    outs: [{data/source.json: {persist: true}}, {data/accepted.json: {persist: true}}]
  count:
    cmd: ls data/accepted > counted.txt
    deps: [data/accepted.json]
    outs: [counted.txt]
"""
BLOCK = """
import os, sys
from densitywatch import environment
environment.settle(os.environ)
from prefect.blocks.webhook import Webhook
Webhook(url=sys.argv[1]).save("alarm")
"""


class Listener:
    """A program of the team's that takes messages over HTTP."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/"


@pytest.fixture(scope="module")
@marks("server")
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
@marks("server")
def site(project_root: Path, tmp_path_factory: pytest.TempPathFactory, listener: Listener) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("loop") / "checkout"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        copy_small_project(project_root, root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"] = {"pixelcnn": params["models"]["pixelcnn"]}
    params["detector"]["rivals_read"] = []
    params["data"]["accept"] = "all"
    params["inbox"]["drift_alarm"] = 0.9  # so that two batches of another kind are enough
    params["notify"]["block"] = "webhook/alarm"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "dvc.yaml").write_text(GRAPH)
    prefect, mlflow = free_port(), free_port()
    ports = {"PREFECT_PORT": str(prefect), "MLFLOW_PORT": str(mlflow)}
    patience = {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_API_REQUEST_TIMEOUT": "300"}
    made = Site(root, own_environment(root) | ports | patience, prefect, mlflow)
    try:
        started = made.services("up")
        assert started.returncode == 0, started.stdout
        made.said = started.stdout
        yield made
    finally:
        made.services("down")


def automations(site: Site) -> set[str]:
    return {one["name"] for one in site.ask("POST", "automations/filter", {})}


def retrainings(site: Site) -> list[dict[str, Any]]:
    chosen = {"id": {"any_": [site.deployment("retrain")["id"]]}}
    return list(site.ask("POST", "flow_runs/filter", {"deployments": chosen, "sort": "EXPECTED_START_TIME_ASC"}))


def arrive(site: Site, name: str, count: int) -> None:
    """A batch of images as the detector knows them, and `count` of another kind, which it flags."""
    folder = fill(site.root / "data" / "inbox" / name, count)
    for number, image in enumerate(images(40, seed=100 + count)):
        (folder / f"slope_{number}.png").write_bytes(png(image))
    (folder / "_SUCCESS").touch()


def test_a_block_that_is_not_there_yet_is_named_and_taken_at_the_next_up(site: Site, listener: Listener) -> None:
    assert "notify.block: Prefect has no block alarm of the type webhook, so nobody is told" in site.said
    assert automations(site) & {RETRAIN, TELL_DRIFT, TELL_FAILED} == {RETRAIN}
    profile = site.environment | {"PREFECT_PROFILES_PATH": "var/profiles.toml"}
    made = run(site.root, profile, "-c", BLOCK, listener.address)
    assert made.returncode == 0, made.stdout
    assert site.services("up").returncode == 0
    assert {RETRAIN, TELL_DRIFT, TELL_FAILED} <= automations(site)


def test_a_drifted_stream_leads_to_one_retraining_with_its_images_and_to_a_message(
    site: Site, listener: Listener
) -> None:
    for number, name in enumerate(("tuesday", "wednesday")):
        arrive(site, name, 41 + number)
    (retraining,) = until(lambda: retrainings(site))
    name = until(lambda: (now := retrainings(site)[0]["name"]).startswith("retrain: drift of") and now)
    alarmed = name.removeprefix("retrain: drift of ")
    assert alarmed in ("monday", "tuesday", "wednesday")
    assert until(lambda: (now := site.state(retraining["id"])) in ("Completed", "Failed", "Crashed") and now) == (
        "Completed"
    )
    scored = site.ask("GET", f"flow_runs/{retraining['parameters']['asked_by']}")
    assert (scored["state"]["name"], scored["state"]["type"]) == ("Drift alarm", "FAILED")
    assert re.match(r"detect-outliers: \d batch(es)?, ", scored["name"])
    assert retraining["parameters"]["drift"] == alarmed

    files = sorted((site.root / "data" / "accepted").glob("*.parquet"))
    assert files
    assert (site.root / "counted.txt").read_text().split() == [file.name for file in files], "before the stages ran"
    assert "path: accepted" in (site.root / "data" / "accepted.dvc").read_text(), "a version of DVC's"
    assert (site.root / "var" / "dvc-remote").is_dir(), "pushed"
    inbox = site.root / "data" / "inbox"
    tables = {file.stem: site.root / "data/outliers" / file.stem / "scores.parquet" for file in files}
    flagged = {
        (name, row["path"]) for name, at in tables.items() for row in pq.read_table(at).to_pylist() if row["outlier"]
    }
    assert flagged
    for file in files:
        for row in accepted_rows(file):
            assert (inbox / file.stem / row["path"]).is_file()
            assert (file.stem, row["path"]) not in flagged, "no flagged image without a verdict"

    (message,) = until(lambda: listener.told)
    assert message["subject"] == "densitywatch: the stream has moved"
    assert message["text"].startswith(f"The stream has moved: alarm at batch {alarmed}, most likely since batch ")


def test_a_further_batch_under_the_same_alarm_starts_no_second_retraining(site: Site, listener: Listener) -> None:
    before = len(site.runs("FAILED"))
    arrive(site, "thursday", 43)
    until(lambda: len(site.runs("FAILED")) > before)
    assert json.loads((site.root / "data/outliers/thursday/summary.json").read_text())["drift_alarm"]
    assert len(retrainings(site)) == 1
    assert len(listener.told) == 1


def test_a_run_that_failed_is_told_without_markup(site: Site, listener: Listener) -> None:
    made = site.ask("POST", f"deployments/{site.deployment('retrain')['id']}/create_flow_run", {"name": "<b>run</b>"})
    failed = {"type": "FAILED", "message": 'it said <!channel> & "quoted" @all'}
    site.ask("POST", f"flow_runs/{made['id']}/set_state", {"state": failed, "force": True})
    until(lambda: len(listener.told) > 1)
    assert listener.told[-1] == {
        "subject": "densitywatch: a run ended badly",
        "text": '(b)run(/b): Failed. it said (!channel)  and  "quoted" (at)all',
    }


def test_what_is_switched_off_in_params_is_gone_at_the_next_up(site: Site) -> None:
    file = site.root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["retrain"]["on_drift"] = False
    params["notify"]["block"] = None
    file.write_text(yaml.safe_dump(params))
    assert site.services("up").returncode == 0
    assert not automations(site) & {RETRAIN, TELL_DRIFT, TELL_FAILED}
