"""A real Ray cluster of two nodes, a real S3 server: the results are those of one process, whatever is lost on the way.

All tests look at one run of ray_job.py: a cluster takes ten seconds and more to start, and each batch as long again for
its workers to import torch.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from densitywatch.batches.score_batch import score_source
from densitywatch.detector.calibrate import calibrate
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.batches.conftest import PROJECT
from tests.detector.standin import Brightness, fill, png
from tests.marks import marks
from tests.small_project import make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
PROMISED = ("scores.parquet", "summary.json", "gallery.parquet", "report.html")


class Lost(Brightness):
    """Is killed after five chunks, as far as its caller can tell."""

    def score(self, images: Any) -> Any:
        if self.seen >= 39:  # broken.png is in the first chunk of eight
            raise DataError("killed")
        return super().score(images)


@dataclass(frozen=True)
class Run:
    """Results folders, and what ray_job.py printed of its tasks."""

    folder: Path
    tasks: list[dict[str, Any]]
    seconds: float


@pytest.fixture(scope="module")
@marks("server")
def s3() -> Iterator[None]:
    """An S3 server on this machine, a process of its own; fsspec finds it by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (AWS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
            patch.setenv(name, value)
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield
        finally:
            fsspec.filesystem("s3").clear_instance_cache()
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def run(s3: None, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ray")
    tasks = [_published(folder, params), _stored(folder, params), _killed(folder, params)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.batches.ray_job", json.dumps(tasks)],
        cwd=PROJECT,
        env={
            **os.environ,
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        },
        stdout=subprocess.PIPE,
        check=True,
        timeout=1100,
    )
    return Run(folder, json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started)


def _published(folder: Path, params: Params) -> dict[str, Any]:
    """A batch that one process scored; then a file changed."""
    source = fill(folder / "published" / "batch", 30, bright=2)
    score_source(str(source), params, folder, folder / "published" / "out", Brightness())
    (source / "normal_0009.png").write_bytes(png(180))
    score_source(str(source), params, folder, folder / "published" / "here", Brightness())
    return {"root": str(folder), "source": str(source), "out": str(folder / "published" / "out")}


def _stored(folder: Path, params: Params) -> dict[str, Any]:
    """Images in a store, some of them in an archive and one broken, for a detector as `calibrate` writes it."""
    root = folder / "project"
    calibrate(make_project(root, PROJECT / "params.yaml"), root)
    store = fsspec.filesystem("s3")
    store.mkdir("bucket")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for i, image in enumerate(np.load(root / "data/panel/mnist.npy")[:6]):
            data = _as_png(image[0])
            member = tarfile.TarInfo(f"foreign_{i}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    store.pipe("bucket/monday/foreign.tar", tar.getvalue())
    for i, image in enumerate(np.load(root / "data/prepared/test.npy")[:40]):
        store.pipe(f"bucket/monday/test_{i:02d}.png", _as_png(image[0]))
    store.pipe("bucket/monday/broken.png", png()[:60])
    detector = root / "models" / "detector"
    score_source("s3://bucket/monday", params, root, folder / "stored" / "here", detector)
    return {
        "root": str(root),
        "source": "s3://bucket/monday",
        "out": str(folder / "stored" / "out"),
        "detector": str(detector),
        "copy_to": "s3://bucket/results/monday/",
    }


def _killed(folder: Path, params: Params) -> dict[str, Any]:
    """Twenty chunks; five of them wait since a job of one process was killed."""
    source = fill(folder / "killed" / "batch", 150, bright=6)
    for name, data in (("broken.png", png()[:60]), ("text.png", b"no image")):
        (source / name).write_bytes(data)
    out = folder / "killed" / "out"
    with pytest.raises(DataError, match="killed"):
        score_source(str(source), params, folder, out, Lost())
    score_source(str(source), params, folder, folder / "killed" / "here", Brightness())
    return {"root": str(folder), "source": str(source), "out": str(out), "seconds": 0.5, "kill_after": 7}


def _as_png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def same(folder: Path) -> bool:
    return all((folder / "out" / name).read_bytes() == (folder / "here" / name).read_bytes() for name in PROMISED)


def scored_now(folder: Path) -> int:
    return int(json.loads((folder / "out" / "run.json").read_text())["scored_now"])


def test_a_node_that_is_killed_while_it_works_changes_no_byte(run: Run) -> None:
    job = run.tasks[2]
    assert len(set(job["before"])) == 2, "both nodes were at work"
    assert set(job["after"][-3:]) == set(job["before"]) - {job["second"]}, "the other one went on alone"
    assert len(job["before"]) + len(job["after"]) > 15, "a chunk of the lost node was scored again"
    assert same(run.folder / "killed")
    table = scores(run.folder / "killed")
    assert (table.status == "quarantined").sum() == 2
    assert table.outlier.sum() == 6


def test_chunks_that_wait_since_a_job_of_one_process_are_not_scored_again(run: Run) -> None:
    assert scored_now(run.folder / "killed") == 158 - 40


def test_of_a_batch_with_one_changed_file_one_chunk_is_scored_again(run: Run) -> None:
    assert len(run.tasks[0]["after"]) == 1
    assert scored_now(run.folder / "published") == 8
    assert same(run.folder / "published")


def test_images_of_a_store_are_scored_and_the_results_copied_into_it(run: Run) -> None:
    assert same(run.folder / "stored")
    table = scores(run.folder / "stored")
    assert len(table) == 47
    assert table.path.str.startswith("foreign.tar/").sum() == 6
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    out = run.folder / "stored" / "out"
    assert {name.rpartition("/")[2] for name in store.ls("bucket/results/monday", detail=False)} == {
        path.name for path in out.iterdir()
    }
    for path in out.iterdir():
        assert store.cat(f"bucket/results/monday/{path.name}") == path.read_bytes()


def scores(folder: Path) -> Any:
    return pd.read_parquet(folder / "out" / "scores.parquet")
