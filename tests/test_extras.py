"""What the extras are for, tried for real: runs and versions in PostgreSQL, and a DVC remote in S3."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.tracking import runs as tracking
from densitywatch.tracking.store import check_driver, check_reachable
from pipelines import dvc_commands
from tests.marks import marks
from tests.postgres import PASSWORD
from tests.registry.registry_project import tiny_params, write_data, write_model


@pytest.fixture
def params(database: str, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = tiny_params()
    return params.model_copy(update={"mlflow": params.mlflow.model_copy(update={"tracking_uri": database})})


def test_runs_and_versions_live_in_postgresql(params: Params, database: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    write_model(tmp_path, "pixelcnn")
    facts: dict[str, Any] = {"dataset_name": "slopes", "dataset_digest": "0" * 64, "stage": "train@pixelcnn"}
    with tracking.training_run("pixelcnn", params, tmp_path, **facts) as run:
        run.log(1, {"loss": 2.0})
    client = tracking.open_client(database)
    assert client.get_run(run.run_id).data.metrics == {"loss": 2.0}
    assert registry.register("pixelcnn", params, tmp_path) == 1
    assert registry.promote("pixelcnn", params, tmp_path).passed
    folder = registry.download_model("models:/densitywatch-pixelcnn@champion", params, tmp_path)
    assert folder.is_relative_to(tmp_path / "mlartifacts")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_wrong_password_is_one_sentence_without_it(params: Params, database: str, tmp_path: Path) -> None:
    wrong = database.replace(PASSWORD, "not-this-one")
    given = params.model_copy(update={"mlflow": params.mlflow.model_copy(update={"tracking_uri": wrong})})
    with pytest.raises(DensitywatchError, match="password authentication failed") as caught:
        tracking.prepare_store(given, tmp_path)
    assert "not-this-one" not in str(caught.value)


def test_a_driver_that_is_not_installed_names_the_extra(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(DensitywatchError) as caught:
        check_reachable(database)
    assert str(caught.value) == (
        f"MLflow's store postgresql://127.0.0.1:{urlsplit(database).port}/postgres needs a driver that is not there;"
        " install it: .venv/bin/python -m pip install -e '.[postgres]'"
    )


def test_the_driver_of_another_database_is_named_by_its_module() -> None:
    with pytest.raises(DensitywatchError, match=r"the module MySQLdb"):
        check_driver("mysql://user@127.0.0.1/runs")
    with pytest.raises(ParamsError, match="is no address of a database"):
        check_driver("postgresql+nothing://127.0.0.1/runs")


@pytest.mark.parametrize(
    ("remote", "module", "install"),
    [
        ("s3://bucket/dvc", "dvc_s3", "the package dvc-s3; install it: .venv/bin/python -m pip install -e '.[s3]'"),
        ("gs://bucket/dvc", "dvc_gs", "the package dvc-gs; install it: .venv/bin/python -m pip install dvc-gs"),
        ("ssh://me:secret@host/dvc", "dvc_ssh", "remote ssh://host/dvc needs the package dvc-ssh"),
    ],
)
def test_a_remote_that_dvc_cannot_reach_names_what_to_install(
    remote: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(dvc_commands.StageFailed) as caught:
        dvc_commands.check_remote(remote)
    assert install in str(caught.value)


@pytest.mark.parametrize("remote", [None, "/mnt/dvc", "https://host/dvc", "s3://bucket/dvc"])
def test_a_remote_that_dvc_can_reach_is_no_matter(remote: str | None) -> None:
    dvc_commands.check_remote(remote)


@pytest.fixture
@marks("server")
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 of this test's own, with the bucket `bucket`."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_a_dvc_remote_in_s3_takes_what_is_pushed_and_gives_it_back(tmp_path: Path, s3: str) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "weights.bin").write_bytes(b"weights" * 100)
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "remote", "add", "-q", "-d", "store", "s3://bucket/dvc"],
        [*dvc, "remote", "modify", "store", "endpointurl", s3],
        [*dvc, "add", "-q", "weights.bin"],
    ):
        subprocess.run(command, cwd=root, check=True)
    remote = dvc_commands.default_remote(root)
    dvc_commands.check_remote(remote)
    assert remote is not None
    assert dvc_commands.holds_something(remote)
    dvc_commands.run_dvc(root, "push")
    (root / "weights.bin").unlink()
    shutil.rmtree(root / ".dvc" / "cache")
    dvc_commands.run_dvc(root, "pull")
    assert (root / "weights.bin").read_bytes() == b"weights" * 100
