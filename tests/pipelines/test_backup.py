"""Backup and restore with SQLite, while other processes write; what restore refuses."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError
from densitywatch.params import load_params
from densitywatch.registry import download
from densitywatch.tracking import database
from densitywatch.tracking.runs import open_client, tracking_uri
from pipelines import backup, postgres_dump
from tests.marks import marks
from tests.pipelines.checkout import copy_checkout, own_environment, run
from tests.pipelines.site import copy_small_project

WRITER = """
import shutil, sqlite3, sys, time
from pathlib import Path
database, results = Path(sys.argv[1]), Path(sys.argv[2])
connection = sqlite3.connect(database, timeout=60)
connection.execute("PRAGMA journal_mode=WAL")
connection.executescript("CREATE TABLE a (n); CREATE TABLE b (n);")
print("writing", flush=True)
n = 0
while True:
    n += 1
    time.sleep(0.02)
    with connection:  # both or none
        connection.execute("INSERT INTO a VALUES (?)", (n,))
        connection.execute("INSERT INTO b VALUES (?)", (n,))
    new, old = results / ".batch.densitywatch" / "new", results / ".batch.densitywatch" / "old"
    new.mkdir(parents=True)
    for name in ("scores.parquet", "summary.json"):
        (new / name).write_text(str(n))
    if (results / "batch").exists():
        (results / "batch").rename(old)
    new.rename(results / "batch")
    shutil.rmtree(results / ".batch.densitywatch")
"""


@pytest.fixture(scope="module")
@marks("slow")
def project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("backup") / "a checkout"
    with pytest.MonkeyPatch.context() as patched:
        for name in ("MLFLOW_TRACKING_URI", "DATABASE_URL"):
            patched.delenv(name, raising=False)
        copy_small_project(project_root, root)
    for name, text in {"var/prefect.login": "densitywatch:secret-word", "var/deployed.json": "{}"}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def writer(project: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that writes a database and replaces results all the time."""
    (project / "var" / "prefect").mkdir(parents=True, exist_ok=True)
    database = project / "var" / "prefect" / "prefect.db"
    database.unlink(missing_ok=True)
    command = [sys.executable, "-c", WRITER, str(database), str(project / "data" / "outliers")]
    (project / "data" / "outliers").mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


@pytest.fixture
def fresh(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone of the project."""
    for name in ("MLFLOW_TRACKING_URI", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "fresh"
    root.mkdir()
    copy_checkout(project, root)
    return root


def test_a_backup_made_while_others_write_is_of_one_moment_and_its_champion_loads(
    project: Path, fresh: Path, writer: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = [backup.backup(project, tmp_path / f"saved-{i}") for i in range(3)]
    assert writer.poll() is None
    for folder in saved:
        with closing(sqlite3.connect(folder / "prefect.db")) as copy:
            ((first,), (second,)) = (
                copy.execute(f"SELECT coalesce(sum(n), 0) FROM {name}").fetchone() for name in "ab"
            )
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert first == second > 0
        results = folder / "results" / "batch"
        assert (results / "scores.parquet").read_text() == (results / "summary.json").read_text()
        assert not list((folder / "results").glob(".*.densitywatch"))
        assert not list(folder.rglob("prefect.login"))
    backup.restore(fresh, saved[-1])
    params = load_params(fresh / "params.yaml")
    champion = download.download_model("models:/densitywatch-detector@champion", params, fresh, stand_in=False)
    assert champion.resolve().is_relative_to(fresh / "mlartifacts")
    versions = open_client(tracking_uri(params, fresh)).search_model_versions("name = 'densitywatch-detector'")
    assert [version.version for version in versions] == [1]
    assert (fresh / "var" / "deployed.json").read_text() == "{}"
    assert "differs" not in capsys.readouterr().out


def test_restore_overwrites_nothing_and_takes_no_damaged_backup(project: Path, fresh: Path, tmp_path: Path) -> None:
    saved = backup.backup(project, tmp_path / "saved")
    (fresh / "mlflow.db").write_text("mine")
    with pytest.raises(DensitywatchError, match=r"mlflow\.db: there is something already; restore overwrites nothing"):
        backup.restore(fresh, saved)
    assert (fresh / "mlflow.db").read_text() == "mine"
    assert not (fresh / "mlartifacts").exists()
    (fresh / "mlflow.db").unlink()
    (saved / "mlflow.db").write_bytes(b"damage")
    with pytest.raises(DensitywatchError, match=r"mlflow\.db: missing, or not what was backed up"):
        backup.restore(fresh, saved)
    assert not (fresh / "mlartifacts").exists()
    with pytest.raises(DensitywatchError, match="no backup; name a folder"):
        backup.restore(fresh, tmp_path)


def test_what_is_there_already_byte_for_byte_is_left_and_a_changed_params_is_named(
    project: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = project / "var" / "dvc-remote" / "files"
    remote.mkdir(parents=True)
    (remote / "one").write_text("pushed")
    (project / "data").mkdir(exist_ok=True)
    (project / "data" / "accepted.dvc").write_text("outs: []\n")  # which a retraining wrote and nobody committed
    saved = backup.backup(project, tmp_path / "saved")
    shared = fresh / "var" / "dvc-remote" / "files"
    shared.mkdir(parents=True)
    (shared / "one").write_text("pushed")
    (shared / "two").write_text("pushed later")
    (fresh / "params.yaml").write_text((fresh / "params.yaml").read_text() + "# mine\n")
    assert (saved / "project" / "data" / "accepted.dvc.kept").read_text() == "outs: []\n"
    backup.restore(fresh, saved)
    assert sorted(path.name for path in shared.iterdir()) == ["one", "two"]
    assert (fresh / "mlflow.db").is_file()
    said = capsys.readouterr().out
    for name in ("params.yaml", "data/accepted.dvc"):
        assert f"{name} here is not that of the backup; compare with {saved}/project/{name}.kept" in said
    assert (fresh / "var" / "prefect").stat().st_mode & 0o077 == 0, "the database in it holds secrets"


def test_a_backup_goes_into_a_new_folder_and_a_failed_one_leaves_none(project: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for command, said in {
        ("backup", str(tmp_path / "full")): "there is something already; a backup goes into a new folder",
        ("backup", "mlartifacts/new"): "which is part of the backup; choose another folder",
    }.items():
        done = run(project, own_environment(project), "pipelines.backup", *command)
        assert done.returncode in (1, 2)
        assert done.stdout.count("\n") == 1
        assert said in done.stdout
    shutil.rmtree(project / "var" / "prefect", ignore_errors=True)
    broken = project / "var" / "prefect" / "prefect.db"
    broken.parent.mkdir()
    broken.write_bytes(b"no database" * 1000)
    with pytest.raises(DensitywatchError, match="the database cannot be copied"):
        backup.backup(project, tmp_path / "new")
    broken.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_backup_of_another_kind_of_database_says_what_to_set(project: Path, fresh: Path, tmp_path: Path) -> None:
    saved = backup.backup(project, tmp_path / "saved")
    note = json.loads((saved / "backup.json").read_text())
    (saved / "backup.json").write_text(json.dumps(note | {"database": "postgresql"}))
    with pytest.raises(DensitywatchError, match="of the kind postgresql; set DATABASE_URL and restore again"):
        backup.restore(fresh, saved)


def test_a_dump_from_a_server_that_stops_answering_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pg_dump"
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    program.chmod(0o755)
    monkeypatch.setattr(postgres_dump, "_find", lambda name: str(program))
    monkeypatch.setattr(postgres_dump, "SECONDS", 1.0)
    monkeypatch.setenv(database.VARIABLE, "postgresql://me:secret@localhost/one")
    with pytest.raises(DensitywatchError, match=r"pg_dump was not done within 0 minutes.*nothing was written$") as told:
        postgres_dump.dump(tmp_path / "file")
    assert "secret" not in str(told.value)
