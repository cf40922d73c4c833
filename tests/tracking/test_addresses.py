"""A checkout that was moved, copied or restored: the registry's addresses point into it, and nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from densitywatch.data.look import look
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params, load_params
from densitywatch.registry import versions as registry
from densitywatch.tracking import runs as tracking
from densitywatch.tracking.addresses import follow_move
from pipelines import dvc_commands, up_to_date
from tests.registry.registry_project import PARAMS, tiny_params, write_data, write_model

ODD = "neu gestellt/Prüfung #2, 100%25 & mehr"


@pytest.fixture(scope="module")
def params() -> Params:
    return tiny_params()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A project with two champions, one after the other, a run with a file, and the receipt of a whole run."""
    root = tmp_path_factory.mktemp("written") / "old place"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_data(root)
        for steps in (0, 40):
            write_model(root, "pixelcnn", steps=steps)
            registry.register("pixelcnn", params, root)
            assert registry.promote("pixelcnn", params, root).passed
        note_a_run(params, root)
    (root / "params.yaml").write_bytes(PARAMS.read_bytes())
    look(load_params(root / "params.yaml"), root)
    up_to_date.note_up_to_date(root)
    return root


@pytest.fixture
def old(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project where it was written, put back for each test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(dvc_commands, "stale_stages", lambda root: set())
    kept = written.parent / "kept"
    if not kept.exists():
        shutil.copytree(written, kept)
    shutil.rmtree(written, ignore_errors=True)
    shutil.copytree(kept, written)
    return written


def note_a_run(params: Params, root: Path) -> str:
    facts: dict[str, Any] = {"dataset_name": "slopes", "dataset_digest": "0" * 64, "stage": "train@pixelcnn"}
    with tracking.training_run("pixelcnn", params, root, **facts) as run:
        run.log_artifacts(root / "data" / "prepared", "data")
    return run.run_id


def addresses(root: Path) -> list[str]:
    """Every address in the store that names a folder of this machine."""
    with sqlite3.connect(root / "mlflow.db") as store:
        return [
            row[0]
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("model_versions", "storage_location"),
            )
            for row in store.execute(f"SELECT {column} FROM {table}")
            if "/mlartifacts" in row[0]
        ]


@pytest.mark.parametrize("place", ["elsewhere", ODD])
def test_after_a_move_the_champion_loads_and_everything_goes_on(
    params: Params, old: Path, tmp_path: Path, place: str
) -> None:
    new = tmp_path / place
    new.parent.mkdir(parents=True, exist_ok=True)
    old.rename(new)
    champion = registry.download_model("models:/densitywatch-pixelcnn@champion", params, new)
    assert champion.is_relative_to(new)
    assert (champion / WEIGHTS).read_bytes() == (new / "models" / "pixelcnn" / WEIGHTS).read_bytes()
    assert registry.register("pixelcnn", params, new) == 2, "the version is there and none is made anew"
    assert "already" in registry.promote("pixelcnn", params, new).reason
    assert registry.rollback("pixelcnn", params, new) == 1
    assert registry.promote("pixelcnn", params, new, version=2).passed
    note_a_run(params, new)
    assert not old.exists(), "nothing is written where the checkout was"
    assert len(addresses(new)) > 5
    assert {address.startswith(f"{new.as_uri()}/mlartifacts") for address in addresses(new)} == {True}
    assert up_to_date.is_up_to_date(new)


def test_what_is_registered_after_a_move_is_served_from_there(params: Params, old: Path, tmp_path: Path) -> None:
    import mlflow

    new = tmp_path / "Größe 2"
    old.rename(new)
    write_model(new, "pixelcnn", steps=1)
    version = registry.register("pixelcnn", params, new)
    assert version == 3
    uri = tracking.tracking_uri(params, new)
    client = tracking.open_client(uri)
    folder = client.get_model_version_download_uri("densitywatch-pixelcnn", "2")
    assert mlflow.pyfunc.load_model(folder).predict({"samples": 1})
    assert registry.download_model("models:/densitywatch-pixelcnn/3", params, new).is_relative_to(new)


def test_a_run_that_has_nothing_to_do_says_so_after_a_move_and_looks_at_the_champion_first(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "moved"
    old.rename(new)
    assert up_to_date.is_up_to_date(new)
    assert "addresses point into" in capsys.readouterr().err
    assert up_to_date.is_up_to_date(new)
    assert capsys.readouterr().err == "", "once is enough"
    shutil.rmtree(new / "mlartifacts")
    assert not up_to_date.is_up_to_date(new)
    assert capsys.readouterr().out == "densitywatch-pixelcnn: the champion's files are gone or altered\n"


def test_a_lost_champion_is_made_again_from_what_is_in_models(params: Params, old: Path, tmp_path: Path) -> None:
    restored = tmp_path / "restored"
    shutil.copytree(old, restored, ignore=shutil.ignore_patterns("mlartifacts"))
    shutil.rmtree(old)
    assert not up_to_date.is_up_to_date(restored)
    assert registry.register("pixelcnn", params, restored) == 3
    assert registry.promote("pixelcnn", params, restored, automatic=True).passed
    assert registry.download_model("models:/densitywatch-pixelcnn@champion", params, restored).is_dir()
    assert up_to_date.is_up_to_date(restored)


def test_a_copy_beside_the_original_has_files_of_its_own(params: Params, old: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(old, copy)
    found = registry.download_model("models:/densitywatch-pixelcnn@champion", params, copy)
    assert found.is_relative_to(copy)
    note_a_run(params, copy)
    assert registry.download_model("models:/densitywatch-pixelcnn@champion", params, old).is_relative_to(old)
    assert {address.startswith(old.as_uri()) for address in addresses(old)} == {True}


def test_a_copy_inside_the_original_has_files_of_its_own_too(params: Params, old: Path) -> None:
    copy = old / "backup" / "monday"
    shutil.copytree(old, copy, ignore=shutil.ignore_patterns("backup"))
    found = registry.download_model("models:/densitywatch-pixelcnn@champion", params, copy)
    assert found.is_relative_to(copy)


def test_the_address_in_the_environment_finds_a_moved_store(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "moved"
    old.rename(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new / 'mlflow.db'}")
    monkeypatch.chdir("/")
    assert registry.download_model("models:/densitywatch-pixelcnn@champion").is_relative_to(new)


def test_addresses_that_a_person_chose_are_left_alone(params: Params, old: Path, tmp_path: Path) -> None:
    chosen = ["s3://bucket/mlartifacts", (tmp_path / "disk" / "files").as_uri()]
    with sqlite3.connect(old / "mlflow.db") as store:
        for number, address in enumerate(chosen):
            store.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
                f" VALUES ({number + 7}, 'mine{number}', ?, 'active')",
                (address,),
            )
    new = tmp_path / "moved"
    old.rename(new)
    tracking.prepare_store(params, new)
    with sqlite3.connect(new / "mlflow.db") as store:
        kept = store.execute("SELECT artifact_location FROM experiments WHERE name LIKE 'mine%' ORDER BY 1").fetchall()
    assert sorted(address for (address,) in kept) == sorted(chosen)


def test_a_store_that_two_checkouts_share_keeps_its_addresses(params: Params, old: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.move(old / "mlflow.db", shared / "mlflow.db")
    there = params.model_copy(
        update={"mlflow": params.mlflow.model_copy(update={"tracking_uri": f"sqlite:///{shared}/mlflow.db"})}
    )
    other = tmp_path / "other"
    (other / "mlartifacts").mkdir(parents=True)
    found = registry.download_model("models:/densitywatch-pixelcnn@champion", there, other)
    assert found.is_relative_to(old)
    old.rename(tmp_path / "gone")
    found = registry.download_model("models:/densitywatch-pixelcnn@champion", there, tmp_path / "gone")
    assert found.is_relative_to(tmp_path / "gone")


def test_two_processes_that_find_a_moved_checkout_at_once_rewrite_it_once(tmp_path: Path) -> None:
    old, new = tmp_path / "place", tmp_path / "place" / "inside"
    (new / "mlartifacts").mkdir(parents=True)
    database = new / "mlflow.db"
    here = f"UPDATE experiments SET artifact_location = '{new / 'mlartifacts'}'"
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE experiments (artifact_location)")
        other.execute("INSERT INTO experiments VALUES (?)", (str(old / "mlartifacts"),))
        other.commit()
        other.execute(here)  # the first one is at work, and has not committed
        second = threading.Thread(target=follow_move, args=(f"sqlite:///{database}", new))
        second.start()
        time.sleep(0.5)
        other.commit()
        second.join()
        assert other.execute("SELECT artifact_location FROM experiments").fetchall() == [(str(new / "mlartifacts"),)]
