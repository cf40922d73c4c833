"""The placement `pool` with a real server and two workers, each in its own clone; one is killed while it trains.

The tests stand in the order in which they are to run. The registry is a stand-in: nothing here is promoted.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from densitywatch.tracking.store import FLOW_RUN
from pipelines import arrivals, service_processes
from tests.marks import marks
from tests.pipelines.checkout import copy_checkout, own_environment, run
from tests.pipelines.site import LONG, Site, free_port, until

pytestmark = pytest.mark.timeout(1500)

MODELS = ("pixelcnn", "gan")
STAGES = ("look", "fetch", "prepare", "validate", "train")
WORKERS = ("gpu0", "gpu1")


def make_small(root: Path, environment: dict[str, str]) -> None:
    """The tiny profile with two models, and a graph that ends when they are trained; all of it committed."""
    assert run(root, environment, "densitywatch", "profile", "tiny").returncode == 0
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"] = {name: params["models"][name] for name in MODELS}
    params["detector"]["rivals_read"] = []
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    graph = yaml.safe_load((root / "dvc.yaml").read_text())
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: graph["stages"][name] for name in STAGES}}))
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    subprocess.run(["git", *identity, "commit", "-qam", "two small models"], cwd=root, check=True)


@pytest.fixture(scope="module")
@marks("server")
def site(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("caller") / "Ärger & 'Blanks'"
    root.mkdir()
    copy_checkout(project_root, root)
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port()), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment = own_environment(root) | ports | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    make_small(root, environment)
    made = Site(root, environment, int(ports["PREFECT_PORT"]), int(ports["MLFLOW_PORT"]))
    try:
        started = made.services("up")
        assert started.returncode == 0, started.stdout
        yield made
    finally:
        made.services("down")


def start_retrain(site: Site) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(site.root / "tests" / "pipelines" / "stoppable_run.py"), "retrain", "pool"],
        cwd=site.root,
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def clone(site: Site, name: str) -> Path:
    return site.root / "var" / "workers" / name


def trains(folder: Path) -> bool:
    """Whether a stage of training runs in a folder."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(folder) and "train" in words and any("densitywatch" in word for word in words):
            return True
    return False


def children(site: Site) -> list[Any]:
    """The runs that workers got."""
    chosen = {"id": {"any_": [site.deployment("train-model")["id"]]}}
    return list(site.ask("POST", "flow_runs/filter", {"deployments": chosen}))


def test_without_a_worker_the_run_says_how_to_start_one(site: Site) -> None:
    process = start_retrain(site)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 1, said
    assert "no worker is online in the pool training; start one: make worker GPU=0 (without GPU: on a CPU)" in said
    assert not children(site)


def test_a_worker_for_each_gpu_has_a_clone_of_the_commit_and_sees_its_gpu_alone(site: Site) -> None:
    for name in WORKERS:
        started = run(site.root, site.environment, "pipelines.worker", name.removeprefix("gpu"))
        assert started.returncode == 0, started.stdout
        (entry,) = service_processes.noted(clone(site, name))
        seen = psutil.Process(entry["pid"]).environ()
        assert seen["CUDA_VISIBLE_DEVICES"] == name.removeprefix("gpu")
        assert seen["DENSITYWATCH_CLONE"] == str(clone(site, name))
    again = run(site.root, site.environment, "pipelines.worker", "1")
    assert again.returncode == 0
    assert service_processes.noted(clone(site, "gpu1")) == [entry]
    assert (clone(site, "gpu0") / "params.yaml").read_bytes() == (site.root / "params.yaml").read_bytes()


def test_two_workers_train_at_once_and_a_stopped_run_stops_them(site: Site) -> None:
    process = start_retrain(site)
    until(lambda: process.poll() is not None or all(trains(clone(site, name)) for name in WORKERS), LONG)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    until(lambda: all(one["state"]["type"] in ("CANCELLED", "CRASHED") for one in children(site)), 60)
    until(lambda: not any(trains(clone(site, name)) for name in WORKERS), 30)


def test_a_worker_that_is_killed_leaves_its_stage_to_another_and_the_models_are_those_of_here(site: Site) -> None:
    process = start_retrain(site)
    until(lambda: process.poll() is not None or trains(clone(site, "gpu0")), LONG)
    (entry,) = service_processes.noted(clone(site, "gpu0"))
    os.kill(entry["pid"], signal.SIGKILL)
    gone = time.monotonic()
    until(lambda: not trains(clone(site, "gpu0")), 30)
    assert time.monotonic() - gone < 15
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-6000:]
    assert "the next one takes it up" in said
    states = [one["state"]["type"] for one in children(site)]
    assert states.count("COMPLETED") == len(MODELS)
    runs = {one["id"] for one in children(site)}
    with closing(sqlite3.connect(site.root / "mlflow.db")) as store:
        links = {row[0] for row in store.execute("select value from tags where key = ?", (FLOW_RUN,))}
    assert any(run_id in link for run_id in runs for link in links), "its run in MLflow links back"
    left = [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(clone(site, "gpu0"))]
    assert not left
    pooled = arrivals.lock_entries(site.root)
    stages = [f"train@{name}" for name in MODELS]
    bytes_there = {name: arrivals.digest(site.root / "models" / name) for name in MODELS}
    here = run(site.root, site.environment, "dvc", "repro", "--force", "--single-item", *stages)
    assert here.stdout.count("Running stage") == len(MODELS), here.stdout
    assert {name: arrivals.digest(site.root / "models" / name) for name in MODELS} == bytes_there
    assert arrivals.lock_entries(site.root) == pooled


def test_down_ends_the_workers_too(site: Site) -> None:
    stopped = site.services("down")
    assert stopped.stdout == "stopped: worker gpu1, prefect, mlflow, reports, worker\n"
    until(
        lambda: not [one for one in psutil.process_iter(["cwd"]) if str(one.info["cwd"]).startswith(str(site.root))], 30
    )
