"""`make up` and `make down`, with real servers on ports that are free."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.outliers.gallery import GALLERY, picture
from pipelines import services
from tests.pipelines.checkout import copy_checkout, own_environment, run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(address: str) -> Any:
    request = Request(address, data=b"{}", headers={"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.timeout(900)
def test_up_starts_servers_and_deploys_with_a_schedule_and_down_leaves_nothing(
    project_root: Path, tmp_path: Path, browser: Any
) -> None:
    root = tmp_path / "checkout"
    copy_checkout(project_root, root)
    prefect, mlflow = free_port(), free_port()
    environment = own_environment(root) | {"PREFECT_PORT": str(prefect), "MLFLOW_PORT": str(mlflow)}
    try:
        started = run(root, environment, "pipelines.services", "up")
        assert started.returncode == 0, started.stdout
        assert f"http://127.0.0.1:{prefect}" in started.stdout
        with urlopen(f"http://127.0.0.1:{mlflow}/health", timeout=30) as response:
            assert response.status == 200
        api = f"http://127.0.0.1:{prefect}/api"
        deployments = {found["name"]: found for found in post(f"{api}/deployments/filter")}
        assert set(deployments) == {"retrain", "inbox"}
        assert deployments["inbox"]["schedules"][0]["schedule"]["cron"] == "*/15 * * * *"
        assert [limit["name"] for limit in post(f"{api}/v2/concurrency_limits/filter")].count("gpu") == 1
        assert post(f"{api}/automations/filter")[0]["name"] == "Crash runs that went silent"

        look_at_the_gallery(root, environment, f"http://127.0.0.1:{prefect}", browser)

        before = services._noted(root)
        again = run(root, environment, "pipelines.services", "up")
        assert (again.returncode, services._noted(root)) == (0, before)
    finally:
        stopped = run(root, environment, "pipelines.services", "down")
    assert stopped.stdout == "stopped: prefect, mlflow, worker\n"
    assert not any(psutil.pid_exists(entry["pid"]) for entry in before)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", prefect)) != 0
    assert run(root, environment, "pipelines.services", "down").stdout == "stopped: nothing was running\n"


PUBLISH = """
import sys
from pathlib import Path
from prefect.artifacts import create_markdown_artifact
from pipelines.detect_outliers import gallery_text
print(create_markdown_artifact(gallery_text(Path(sys.argv[1])), key="outlier-batch"))
"""


def look_at_the_gallery(root: Path, environment: dict[str, str], server: str, browser: Any) -> None:
    """The artifact of a scored batch shows its images in Prefect's UI."""
    folder = root / "batch"
    folder.mkdir()
    square = picture(np.full((1, 28, 28), 90, dtype=np.uint8))
    rows = [{"picture": square, "outlier": i < 2} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), folder / GALLERY)
    published = subprocess.run(
        [sys.executable, "-c", PUBLISH, folder],
        cwd=root,
        env=environment | {"PREFECT_API_URL": f"{server}/api"},
        capture_output=True,
        text=True,
        check=True,
    )
    page = browser.new_page()
    page.goto(f"{server}/artifacts/artifact/{published.stdout.split()[-1]}")
    shown = page.locator('img[src^="data:image/png"]')
    shown.wait_for(timeout=60_000)
    assert shown.evaluate("image => image.naturalWidth") == 6 * 96
    page.screenshot(path=root / "gallery.png")


def test_down_leaves_a_process_alone_whose_number_was_another_ones(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as bystander:
        entry = {"name": "prefect", "pid": bystander.pid, "created": time.time() - 1e6, "log": ""}
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "services.json").write_text(json.dumps([entry]))
        assert services.down(tmp_path) == []
        assert bystander.poll() is None
        bystander.kill()


def test_a_server_that_ends_as_it_starts_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program = tmp_path / "prefect"
    program.write_text("#!/bin/sh\necho Port 4200 is in use\nexit 1\n")
    program.chmod(0o755)
    services._start(tmp_path, "prefect", ["prefect", "server", "start"]).wait()
    with pytest.raises(services.ServiceFailed, match=r"^prefect ended as it started: Port 4200 is in use; see .*log$"):
        services._wait(tmp_path, "prefect", "http://127.0.0.1:9/health")
    assert os.environ.get("PREFECT_API_URL") is None or "4200" not in os.environ["PREFECT_API_URL"]
