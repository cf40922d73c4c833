"""The registry through MLflow's server, as `make up` starts it and as a team's programs reach it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import densitywatch
from densitywatch.errors import RegistryError
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.history import Actor
from densitywatch.registry.read_history import read_history
from densitywatch.tracking import runs as tracking
from pipelines import mlflow_server, service_processes
from tests.marks import marks
from tests.pipelines.site import free_port
from tests.registry.registry_project import aliases, images, write_data, write_model

NAME = "remote"
CHAMPION = f"models:/densitywatch-{NAME}@champion"
ANNA = Actor("anna", "command line", note="the new camera")


@pytest.fixture(scope="module")
@marks("server")
def server(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server whose store is empty, and the folder it runs in, where nobody else looks."""
    home, port = tmp_path_factory.mktemp("server"), free_port()
    address = f"http://127.0.0.1:{port}"
    variables = {"PYTHONPATH": f"{project_root / 'src'}:{project_root}"}
    process = service_processes.start(
        home,
        "mlflow",
        mlflow_server.command(port),
        mlflow_server.variables(f"sqlite:///{home / 'mlflow.db'}") | variables,
    )
    try:
        service_processes.wait_until_it_answers(home, "mlflow", f"{address}/health", port)
        yield address, home
    finally:
        service_processes.end(service_processes.find(service_processes.noted(home)[-1]))  # type: ignore[arg-type]
        process.wait()


def files_of(home: Path) -> list[Path]:
    """Where the server has the weights of its versions."""
    return sorted(home.glob(f"mlartifacts/**/{WEIGHTS}"))


def test_versions_are_registered_promoted_rolled_back_and_told_of_through_a_server(
    server: tuple[str, Path], params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, home = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    root = tmp_path / "project"
    write_data(root)
    first = write_model(root, NAME, steps=1)
    poor = (first / WEIGHTS).read_bytes()
    assert registry.register(NAME, params, root) == 1
    assert registry.promote(NAME, params, root, actor=ANNA).passed
    better = (write_model(root, NAME, steps=40) / WEIGHTS).read_bytes()
    assert registry.register(NAME, params, root) == 2
    assert registry.register(NAME, params, root) == 2, "equal bytes have one version"
    decision = registry.promote(NAME, params, root, actor=ANNA)
    assert decision.passed, decision.reason
    assert "better than the champion's" in decision.reason
    assert len(files_of(home)) == 2
    assert not (root / "mlartifacts").exists(), "the files are the server's"
    assert list(temporary.glob("*/MLmodel")) == [], "what was read back from the server is gone"

    assert (registry.download_model(CHAMPION, params, root) / WEIGHTS).read_bytes() == better
    assert registry.rollback(NAME, params, root, actor=ANNA) == 1
    assert (registry.download_model(CHAMPION, params, root) / WEIGHTS).read_bytes() == poor
    assert aliases(params, root, NAME) == {"champion": "1", "challenger": "2"}
    tracking.open_client(address).set_registered_model_alias(f"densitywatch-{NAME}", "champion", "2")
    assert registry.rollback(NAME, params, root, actor=ANNA) == 1
    champion, found = read_history(NAME, params, root)
    assert champion == "1"
    assert [(one.outcome, one.before, one.after) for one in found] == [
        ("rolled back", "2", "1"),
        ("moved by hand", "1", "2"),
        ("rolled back", "2", "1"),
        ("promoted", "1", "2"),
        ("promoted", None, "1"),
    ]
    assert found[3].figures == pytest.approx(decision.figures)

    # another machine: no project, an empty cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.chdir(tmp_path)
    model = densitywatch.load_model(CHAMPION)
    assert torch.isfinite(model.log_prob(torch.from_numpy(images(2, 9)))).all()


def test_a_champion_whose_files_the_server_has_lost_or_altered_is_told_and_the_one_before_stands_in(
    server: tuple[str, Path],
    params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, home = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    root, name = tmp_path / "project", "lost"
    champion = f"models:/densitywatch-{name}@champion"
    write_data(root)
    known = set(files_of(home))
    for steps in (1, 40):
        write_model(root, name, steps=steps)
        registry.register(name, params, root)
        assert registry.promote(name, params, root).passed
        (newest,) = set(files_of(home)) - known
        known.add(newest)
    first = registry.download_model(f"models:/densitywatch-{name}/1", params, root)
    kept = newest.read_bytes()

    newest.write_bytes(kept + b"more")
    shutil.rmtree(cache)
    capsys.readouterr()
    assert registry.download_model(champion, params, root) == first
    said = capsys.readouterr().err
    assert "not those that were registered" in said
    assert "version 1, the newest champion that can be verified, stood in" in said
    newest.write_bytes(kept)
    assert (registry.download_model(champion, params, root) / WEIGHTS).read_bytes() == kept, "mended on the server"

    (registry.download_model(champion, params, root) / WEIGHTS).write_bytes(b"spoilt")
    assert (registry.download_model(champion, params, root) / WEIGHTS).read_bytes() == kept, "the cache is only a copy"

    shutil.rmtree(newest.parent)
    shutil.rmtree(cache)
    with pytest.raises(RegistryError, match="version 2: its files are gone from mlflow-artifacts:/"):
        registry.download_model(champion, params, root, stand_in=False)
    assert registry.download_model(champion, params, root) == first
    assert "its files are gone" in capsys.readouterr().err
    assert registry.rollback(name, params, root) == 1
