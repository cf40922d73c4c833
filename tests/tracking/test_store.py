"""Where the store is, what is said when it does not answer, and its lock."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.params import Params
from densitywatch.tracking.runs import prepare_store
from densitywatch.tracking.store import check_reachable, plain, store_lock, tracking_uri


def with_store(params: Params, uri: str) -> Params:
    return params.model_copy(update={"mlflow": params.mlflow.model_copy(update={"tracking_uri": uri})})


def test_a_relative_sqlite_path_counts_from_the_projects_folder(params: Params, tmp_path: Path) -> None:
    assert tracking_uri(params, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(with_store(params, "sqlite:///./a/b.db?timeout=5"), tmp_path) == (
        f"sqlite:///{tmp_path}/a/b.db?timeout=5"
    )


def test_the_environments_address_overrides_params(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(params, tmp_path) == "http://127.0.0.1:5000"


@pytest.mark.parametrize("address", ["mlruns", "file:///somewhere", "ftp://host/x"])
def test_an_address_that_mlflow_does_not_serve_is_named(params: Params, tmp_path: Path, address: str) -> None:
    with pytest.raises(ParamsError, match=r"mlflow\.tracking_uri: .* is no store"):
        tracking_uri(with_store(params, address), tmp_path)


def test_a_password_in_the_address_is_not_shown() -> None:
    assert plain("postgresql://me:secret@host/db") == "postgresql://host/db"
    with pytest.raises(DensitywatchError) as caught:
        check_reachable("postgresql://me:secret@127.0.0.1:9/db")
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_one_sentence_within_seconds(params: Params, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DensitywatchError, match=r"http://127\.0\.0\.1:9 cannot be opened .*make up"):
        prepare_store(with_store(params, "http://127.0.0.1:9"), tmp_path)
    assert time.monotonic() - began < 10


def test_a_file_that_is_no_database_is_one_sentence(params: Params, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are not the rows you are looking for" * 100)
    with pytest.raises(DensitywatchError, match=r"cannot be opened \(file is not a database\)"):
        prepare_store(params, tmp_path)
    with pytest.raises(DensitywatchError, match="cannot be written"):
        prepare_store(with_store(params, "sqlite:///mlflow.db/x.db"), tmp_path)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    program = (
        "import time; from pathlib import Path; from densitywatch.tracking.store import store_lock\n"
        f"with store_lock('sqlite:///{tmp_path}/m.db', Path({str(tmp_path)!r}), 'promote'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_the_lock_of_a_killed_process_is_free_again(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    with store_lock(f"sqlite:///{tmp_path}/m.db", tmp_path, "promote"):
        pass
