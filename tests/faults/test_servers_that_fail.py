"""A DVC remote and an MLflow server that answer 500 to every third request.

Both kinds of failure are tried: the request never arrived, and it did its work before the answer was lost.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from densitywatch.files import file_digest
from densitywatch.models.storage import WEIGHTS
from densitywatch.registry import versions as registry
from densitywatch.tracking import runs as tracking
from pipelines import mlflow_server, service_processes
from tests.faults import struck, toy
from tests.faults.every_third import Lost, every_third_fails, files_by_http
from tests.faults.tally import Tally
from tests.faults.test_training import TRAIN, outputs, project
from tests.marks import marks
from tests.pipelines.site import free_port
from tests.registry.registry_project import aliases, tiny_params, write_data, write_model

pytestmark = [pytest.mark.timeout(1800), pytest.mark.server]
KINDS = get_args(Lost)


@pytest.mark.parametrize("lost", KINDS)
def test_a_dvc_remote_that_fails_every_third_time_takes_and_gives_all(lost: Lost, tmp_path: Path, tally: Tally) -> None:
    with files_by_http(tmp_path / "store") as store, every_third_fails(store, lost) as proxy:
        root = toy.make(tmp_path / "project", remote=f"{proxy.address}/remote")
        with tally.tried(f"a DVC remote that answers 500 to every third request, {lost} lost: push"):
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            first, kept = toy.outputs(root), {path for path in (tmp_path / "store").rglob("*") if path.is_file()}
            wanted = {file_digest(root / name, "md5") for name in (*first, "data/raw")}
            assert wanted <= {path.parent.name + path.name for path in kept}
            assert all(file_digest(path, "md5") == path.parent.name + path.name for path in kept)
            assert proxy.failed >= 3
        with tally.tried(f"a DVC remote that answers 500 to every third request, {lost} lost: pull"):
            before = proxy.failed
            for folder in ("models", "data", ".dvc/cache"):
                shutil.rmtree(root / folder)
            (root / "report.txt").unlink()
            code, said = toy.retrain(root)
            assert code == 0, said[-4000:]
            assert toy.outputs(root) == first
            assert toy.dvc(root, "status", "--json").stdout.strip() == "{}"
            assert proxy.failed > before


@pytest.fixture(scope="module")
@marks("server")
def mlflow(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[str]:
    """The address of a server of MLflow with an empty store."""
    home, port = tmp_path_factory.mktemp("server"), free_port()
    variables = {"PYTHONPATH": f"{project_root / 'src'}:{project_root}"}
    store = mlflow_server.variables(f"sqlite:///{home / 'mlflow.db'}")
    process = service_processes.start(home, "mlflow", mlflow_server.command(port), store | variables)
    try:
        service_processes.wait_until_it_answers(home, "mlflow", f"http://127.0.0.1:{port}/health", port)
        yield f"http://127.0.0.1:{port}"
    finally:
        service_processes.end(service_processes.find(service_processes.noted(home)[-1]))  # type: ignore[arg-type]
        process.wait()


@pytest.mark.parametrize("lost", KINDS)
def test_versions_go_into_an_mlflow_server_that_fails_every_third_time_once_each(
    lost: Lost, mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    params, root, name = tiny_params(), tmp_path / "project", f"third_{lost[4:]}"
    write_data(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with every_third_fails(mlflow, lost) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        # a twin that was taken away keeps its number: where the first answer was lost, the second version is 3
        numbers: list[int] = []
        for steps in (1, 40):
            with tally.tried(
                f"an MLflow server that answers 500 to every third request, {lost} lost: register, promote"
            ):
                made = (write_model(root, name, steps=steps) / WEIGHTS).read_bytes()
                numbers.append(registry.register(name, params, root))
                assert registry.promote(name, params, root).passed
                champion = registry.download_model(f"models:/densitywatch-{name}@champion", params, root)
                assert (champion / WEIGHTS).read_bytes() == made
        with tally.tried(f"an MLflow server that answers 500 to every third request, {lost} lost: roll back"):
            assert registry.rollback(name, params, root) == numbers[0]
        assert proxy.failed >= 10
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    found = tracking.open_client(mlflow).search_model_versions(f"name = 'densitywatch-{name}'")
    assert sorted(int(version.version) for version in found) == numbers
    assert len({version.tags["content_sha256"] for version in found}) == 2
    assert aliases(params, root, name) == {"champion": str(numbers[0]), "challenger": str(numbers[1])}


@pytest.mark.parametrize("lost", KINDS)
def test_a_training_into_an_mlflow_server_that_fails_every_third_time_is_logged_whole_and_once(
    lost: Lost, mlflow: str, tmp_path: Path, tally: Tally
) -> None:
    root = project(tmp_path / "project")
    fault = f"an MLflow server that answers 500 to every third request, {lost} lost: training"
    with every_third_fails(mlflow, lost) as proxy, tally.tried(fault):
        struck.finish(TRAIN, root, struck.of_project(root) | {"MLFLOW_TRACKING_URI": proxy.address})
        assert proxy.failed >= 3
        client = tracking.open_client(mlflow)
        experiment = client.get_experiment_by_name("densitywatch")
        found = client.search_runs([experiment.experiment_id], f"attributes.start_time >= {started(root)}")
        assert Counter(run.info.status for run in found) == {"FINISHED": 1}
        curve = client.get_metric_history(found[0].info.run_id, "train_loss")
        assert sorted({point.step for point in curve}) == list(range(20, 301, 20))
        assert len(client.list_artifacts(found[0].info.run_id, "model")) >= len(outputs(root))


def started(root: Path) -> int:
    """The time in milliseconds at which a project was made, as MLflow counts."""
    return int((root / "params.yaml").stat().st_mtime * 1000)
