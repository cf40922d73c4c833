"""`make run` struck at twenty random moments and started again each time: it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from densitywatch.files import file_digest
from tests.faults import struck
from tests.faults.tally import Tally
from tests.pipelines.checkout import copy_checkout, own_environment

pytestmark = [pytest.mark.timeout(5400), pytest.mark.server]

BLOWS = 20
SEED = 15
WAYS = ("SIGKILL", "SIGKILL of all its processes", "SIGTERM", "SIGINT")
BEGUN = "Running stage '"
"""What a run prints when its first stage begins."""
OF_THIS_RUN = re.compile(r"(^|_)(seconds|per_second|run_id)$")


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout whose environment needs no setting up."""

    root: Path
    environment: dict[str, str]

    def start(self) -> subprocess.Popen[str]:
        return struck.start(["make", "run", "PROFILE=tiny"], self.root, self.environment)

    def said(self) -> str:
        return (self.root / "said.txt").read_text(errors="replace")

    def finish(self) -> tuple[float, float]:
        """Run to the end; returns the seconds until the stages begin, and those until the end."""
        before, began = self.said().count(BEGUN), time.monotonic()
        process = self.start()
        while self.said().count(BEGUN) == before and process.poll() is None:
            time.sleep(0.1)
        begun = time.monotonic() - began
        assert process.wait(2400) == 0, self.said()[-6000:]
        return begun, time.monotonic() - began


def checkout(source: Path, root: Path) -> Checkout:
    """The copy has an environment of its own as far as `make` and Python can tell; its packages are this one's."""
    root.mkdir(parents=True)
    copy_checkout(source, root)
    (root / "said.txt").touch()
    (root / ".git" / "info" / "exclude").write_text("/said.txt\n")
    (root / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    environment = own_environment(root) | {struck.TOKEN: str(root), "SHELL": "/bin/sh"}
    (root / ".venv" / "ready").touch()
    return Checkout(root, environment)


def metrics(root: Path) -> dict[str, dict[str, Any]]:
    """Every figure of metrics/ that says something about models and data, not about the seconds of one run."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((root / "metrics").glob("*.json"))}
    return {name: {k: v for k, v in one.items() if not OF_THIS_RUN.search(k)} for name, one in found.items()}


def files(root: Path) -> dict[str, str]:
    """The digests of all scores and weights."""
    paths = [*(root / "data" / "outliers").glob("*/scores.parquet"), *(root / "models").glob("*/*.safetensors")]
    return {str(path.relative_to(root)): file_digest(path) for path in sorted(paths)}


def versions(root: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Of each registered model, the contents of its versions and its aliases."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = {}
    for model in client.search_registered_models():
        kept = client.search_model_versions(f"name = '{model.name}'")
        contents = {str(version.version): str(version.tags["content_sha256"]) for version in kept}
        assert set(map(str, model.aliases.values())) <= contents.keys(), f"{model.name}: {model.aliases}"
        found[model.name] = (
            sorted(contents.values()),
            {alias: contents[str(version)] for alias, version in model.aliases.items()},
        )
    return found


def runs(root: Path, experiment: str) -> list[tuple[str, str]]:
    """The name and state of every run in an experiment of MLflow, those that were killed for good left out."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    return sorted((run.info.run_name, run.info.status) for run in found if run.info.status != "KILLED")


def blow(copy: Checkout, way: str, begun: float, after: float, *, early: bool) -> bool:
    """Start `make run` and strike it; returns False where it had ended before the moment came.

    early: at some moment of the time until its stages begin, else `after` seconds after that.
    """
    before = copy.said().count(BEGUN)
    process = copy.start()
    while not early and copy.said().count(BEGUN) == before and process.poll() is None:
        time.sleep(0.05)
    moment = time.monotonic() + (after % begun if early else after)
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        assert process.returncode == 0, copy.said()[-6000:]
        return False
    if way == "SIGKILL of all its processes":
        for one in struck.living(copy.root):
            one.kill()
    else:
        number = signal.Signals[way.split()[0]]
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C reaches all of the foreground
        else:
            for one in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(number)
    assert process.wait(60) != 0
    assert struck.left_over(copy.root, 20) == [], way
    return True


def test_make_run_struck_at_twenty_random_moments_ends_like_an_undisturbed_one(
    project_root: Path, tmp_path: Path, tally: Tally
) -> None:
    reference = checkout(project_root, tmp_path / "undisturbed")
    begun, whole = reference.finish()
    strike_all(project_root, tmp_path, reference, begun, whole, tally)


def strike_all(source: Path, folder: Path, reference: Checkout, begun: float, whole: float, tally: Tally) -> None:
    """All blows, on one copy of the checkout, or on more where one is done before the last blow."""
    chosen = random.Random(SEED)
    ways = [WAYS[i % len(WAYS)] for i in range(BLOWS)]
    chosen.shuffle(ways)
    # they spread over the whole of the work: what was struck in the middle of a stage begins that stage anew
    longest = 2 * (whole - begun) / (BLOWS * 0.8)
    plan = [(way, chosen.uniform(0, longest), i % 5 == 4) for i, way in enumerate(ways)]
    copies = 0
    while plan:
        copies += 1
        copy = checkout(source, folder / f"struck{copies}")
        struck_now = []
        while plan:
            way, after, early = plan[0]
            if not blow(copy, way, begun, after, early=early):
                break
            struck_now.append(way)
            print(f"{len(plan)} left: {way} after {after:.1f} s{' of the start' if early else ''}", flush=True)
            plan.pop(0)
        copy.finish()
        for way in WAYS:
            if way in struck_now:
                with tally.tried(f"make run: {way}", times=struck_now.count(way)):
                    check(copy, reference)


def check(copy: Checkout, reference: Checkout) -> None:
    """Compare a checkout whose runs were struck with one that nobody disturbed."""
    assert metrics(copy.root) == metrics(reference.root)
    assert files(copy.root) == files(reference.root)
    assert "data/outliers/demo/scores.parquet" in files(copy.root)
    registered = versions(copy.root)
    assert registered == versions(reference.root)
    assert all(len(contents) == len(set(contents)) for contents, _ in registered.values())
    assert all("champion" in aliases for _, aliases in registered.values())
    assert [name for name, state in runs(copy.root, "densitywatch-batches")] == ["score data/inbox/demo"]
    assert runs(copy.root, "densitywatch-batches") == runs(reference.root, "densitywatch-batches")
    assert runs(copy.root, "densitywatch") == runs(reference.root, "densitywatch")
    assert struck.left_over(copy.root, 5) == []
    again = subprocess.run(
        ["make", "run", "PROFILE=tiny"],
        cwd=copy.root,
        env=copy.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"everything is up to date", again.stdout), again.stdout[-2000:] + again.stderr[-2000:]
