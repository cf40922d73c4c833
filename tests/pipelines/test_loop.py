"""From a batch in the inbox to a message and to a detector that was trained, gated and promoted, without a hand.

Real servers, a worker and the schedule. One checkout is up for all tests of this file. They are in the order in which
they are to run: its stages are stand-ins first, and those of dvc.yaml once a detector is to be trained.
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

from densitywatch.batches.review.judging import give_verdicts
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
REAL = ("look", "fetch", "prepare", "validate", "train", "detector_reads", "calibrate")
"""Stages of this checkout that a detector is made by."""
EVALUATED = {"cmd": "mkdir -p evaluated && cp models/${key}/model.safetensors evaluated/${key}"}
"""In the place of the figures and pictures of a model, after which it is released."""
ENDED = ("Completed", "Failed", "Crashed")
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
    assert until(lambda: (now := site.state(retraining["id"])) in ENDED and now) == "Completed"
    scored = site.ask("GET", f"flow_runs/{retraining['parameters']['asked_by']}")
    assert (scored["state"]["name"], scored["state"]["type"]) == ("Drift alarm", "FAILED")
    assert re.match(r"detect-outliers: \d batch(es)?, ", scored["name"])
    assert retraining["parameters"]["drift"] == alarmed
    noted = json.loads((site.root / "data/outliers/retrain-asked.json").read_text())["alarm"]
    assert noted["told"]
    assert noted["learnt"] == noted["asked"] is not None, "it ended well and is not asked for again"

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


def train_in_earnest(site: Site, source: Path) -> None:
    """From now on the checkout has the stages of `source`, for a small model and 600 images; the gate takes it."""
    camera = site.root.parent / "camera"
    camera.mkdir()
    for number, image in enumerate(images(600, seed=7)):
        (camera / f"{number:04d}.png").write_bytes(png(image))
    stages = yaml.safe_load((source / "dvc.yaml").read_text())["stages"]
    evaluated = EVALUATED | {"deps": ["models/${key}/model.safetensors"], "outs": ["evaluated/${key}"]}
    chosen = {name: stages[name] for name in REAL} | {"evaluate": {"foreach": "${models}", "do": evaluated}}
    (site.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": chosen}))
    tiny = yaml.safe_load((source / "profiles" / "tiny.yaml").read_text())
    params = yaml.safe_load((site.root / "params.yaml").read_text())
    params["data"] |= {"source": "folder", "address": str(camera), "calibration": 0.2, "gate": 0.15}
    params["expectations"] |= {"min_images": 100, "min_label_share": 0.0}
    params["device"] |= tiny["device"]
    params["models"]["pixelcnn"] |= {"settings": {"channels": 8, "dilations": [1]}}
    params["models"]["pixelcnn"]["training"] |= tiny["models"]["pixelcnn"]["training"]
    params["gate"] |= {"least_images": 8, "floor": False, "margin": dict.fromkeys(params["gate"]["margin"], 1.0)}
    params["retrain"]["cool_down"] = 0
    (site.root / "params.yaml").write_text(yaml.safe_dump(params))


def history(site: Site) -> list[dict[str, Any]]:
    """What `densitywatch history` says of the detector, the newest first."""
    said = run(site.root, site.environment, "densitywatch", "history", "detector", "--json")
    assert said.returncode == 0, said.stdout
    return list(json.loads(said.stdout[said.stdout.index("[") :]))


def scored_with(site: Site, batch: str) -> Any:
    summary = site.root / "data" / "outliers" / batch / "summary.json"
    until(summary.is_file)
    return json.loads(summary.read_text())["identity"]["detector"]


def test_a_verdict_on_a_drifted_batch_leads_to_a_detector_that_is_trained_gated_and_promoted(
    site: Site, project_root: Path
) -> None:
    train_in_earnest(site, project_root)
    results = site.root / "data" / "outliers" / "thursday"
    flagged = next(row for row in pq.read_table(results / "scores.parquet").to_pylist() if row["outlier"])
    give_verdicts(results, {(flagged["path"], flagged["sha256"]): "fine"})
    retraining = until(lambda: retrainings(site)[1:])[0]["id"]
    assert until(lambda: (now := site.state(retraining)) in ENDED and now) == "Completed"
    assert flagged["path"] in {
        row["path"] for row in accepted_rows(site.root / "data" / "accepted" / "thursday.parquet")
    }
    manifest = pq.read_table(site.root / "data" / "prepared" / "manifest.parquet").to_pylist()
    learnt = [row for row in manifest if "accepted/thursday/" in row["path"]]
    assert learnt
    assert {row["split"] for row in learnt} == {"train"}
    newest, first = history(site)
    assert [(one["outcome"], one["from"], one["to"]) for one in (first, newest)] == [
        ("promoted", None, "1"),
        ("promoted", "1", "2"),
    ]
    assert newest["through"] == "retrain"
    assert newest["run"] == f"{site.server}/runs/flow-run/{retraining}"
    assert newest["reason"].startswith("version 2 passed: error on defects ")
    assert newest["figures"]["champion"] > 0


def test_a_rollback_puts_the_old_detector_back_on_watch_and_the_history_shows_it(site: Site) -> None:
    params = yaml.safe_load((site.root / "params.yaml").read_text())
    params["retrain"]["cool_down"] = 24
    (site.root / "params.yaml").write_text(yaml.safe_dump(params))
    given = {"model": "detector", "reason": "too many flags", "asked_by": "anna"}
    path = f"deployments/{site.deployment('rollback')['id']}/create_flow_run"
    back = site.ask("POST", path, {"parameters": given})["id"]
    assert until(lambda: (now := site.state(back)) in ENDED and now) == "Completed"
    newest = history(site)[0]
    assert (newest["outcome"], newest["from"], newest["to"]) == ("rolled back", "2", "1")
    assert (newest["by"], newest["note"]) == ("anna", "too many flags")
    assert newest["run"] == f"{site.server}/runs/flow-run/{back}"
    arrive(site, "friday", 44)
    assert scored_with(site, "friday") == scored_with(site, "thursday")


def test_a_browser_shows_the_run_its_artifacts_and_the_version(site: Site, browser: Any, tmp_path: Path) -> None:
    retraining = retrainings(site)[1]
    chosen = {"artifacts": {"flow_run_id": {"any_": [retraining["id"]]}}}
    artifacts = {one["key"]: one["id"] for one in site.ask("POST", "artifacts/filter", chosen)}
    assert {"asked-by", "gate", "models", "retrain-steps"} <= artifacts.keys()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})

    def shows(name: str, address: str, *texts: str) -> None:
        page.goto(address)
        for text in texts:
            page.get_by_text(text).first.wait_for(timeout=120_000)
        page.screenshot(path=tmp_path / f"{name}.png")

    run_page = f"{site.server}/runs/flow-run/{retraining['id']}"
    page.goto(f"{site.server}/dashboard")  # a run's page, opened without a login, is "not found" in Prefect
    password = page.locator('input[type="password"]')
    password.wait_for(timeout=120_000)
    password.fill((site.root / "var" / "prefect.login").read_text().strip())
    password.press("Enter")
    password.wait_for(state="hidden", timeout=120_000)
    shows("run", run_page, retraining["name"], "Completed", "of 4 batches accepted into the dataset", RETRAIN)
    shows("gate", f"{site.server}/artifacts/artifact/{artifacts['gate']}", "version 2 passed", "promoted")
    shows("models", f"{site.server}/artifacts/artifact/{artifacts['models']}", "detector", "promoted")
    link = page.get_by_role("link", name="2", exact=True).last
    version = f"http://127.0.0.1:{site.mlflow}/#/models/densitywatch-detector/versions/2"
    assert link.get_attribute("href") == version
    shows("version", version, "rolled back: version 2", "promoted: version 1")
    page.close()


def test_a_run_that_failed_is_told_without_markup(site: Site, listener: Listener) -> None:
    made = site.ask("POST", f"deployments/{site.deployment('retrain')['id']}/create_flow_run", {"name": "<b>run</b>"})
    failed = {"type": "FAILED", "message": 'it said <!channel> & "quoted" @all'}
    site.ask("POST", f"flow_runs/{made['id']}/set_state", {"state": failed, "force": True})
    until(lambda: "(b)run" in listener.told[-1]["text"])
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
