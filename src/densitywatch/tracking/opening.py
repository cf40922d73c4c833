"""The store of runs and versions, opened: MLflow's client for it, its errors as sentences, and a new database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from densitywatch.environment import settle
from densitywatch.errors import DensitywatchError
from densitywatch.params import Params
from densitywatch.tracking.addresses import ARTIFACTS, follow_move
from densitywatch.tracking.database import mlflow_uri
from densitywatch.tracking.schemas import prepare
from densitywatch.tracking.store import check_reachable, is_database, plain, sqlite_path, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def open_client(uri: str) -> MlflowClient:
    """MLflow's client for one store: without telemetry or pickles, and it gives up after seconds, not minutes."""
    settle(os.environ)
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    with store_errors(uri):  # the tables of a new database are made here
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def store_errors(uri: str, error_type: type[DensitywatchError] = DensitywatchError) -> Iterator[None]:
    """Turn an error of MLflow, its database or the network into one sentence that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(plain(str(error)).partition("[SQL:")[0].split())[:300]
        raise error_type(f"MLflow's store {plain(uri)} did not do what was asked: {reason}") from error


def prepare_store(params: Params, root: Path, experiment_name: str | None = None) -> str:
    """Make the store where it is new, and return the id of the experiment, by default params.mlflow.experiment.

    Several processes that open a new database at once break all but one of them, so opening is under a lock. Artifacts
    of a database go under `root`/mlartifacts; those of a server go where the server says. Raises DensitywatchError
    when the store cannot be reached.
    """
    uri = tracking_uri(params, root)
    name = experiment_name or params.mlflow.experiment
    with store_lock(uri, root, "open"):
        if "MLFLOW_TRACKING_URI" not in os.environ and uri == mlflow_uri():  # a worker's clone is given the address
            prepare(root)
        _make_database(uri)
        check_reachable(uri)
        follow_move(uri, root)
        client = open_client(uri)
        with store_errors(uri):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                location = (root / ARTIFACTS).resolve().as_uri() if is_database(uri) else None
                # MLflow's pages then show it as training, not as an application of language models
                tags = {"mlflow.experimentKind": "custom_model_development"}
                return str(client.create_experiment(name, artifact_location=location, tags=tags))
    if experiment.lifecycle_stage != "active":
        raise DensitywatchError(
            f"MLflow's experiment '{name}' was deleted; restore it or choose another mlflow.experiment"
        )
    return str(experiment.experiment_id)


def _make_database(uri: str) -> None:
    """Make the sqlite file of `uri` where there is none, whole or not at all.

    A file that a full disk or a kill left half made could never be opened again.
    """
    path = sqlite_path(uri)
    if path is None or (path.exists() and path.stat().st_size):
        return
    for left in path.parent.glob(f"{path.name}.*.new*"):
        left.unlink()
    made = path.with_name(f"{path.name}.{uuid4().hex}.new")  # MLflow keeps what it has opened by its name
    check_reachable(f"sqlite:///{made}")
    client = open_client(f"sqlite:///{made}")
    with store_errors(uri):
        client.search_experiments(max_results=1)  # the first call makes the tables
        made.replace(path)
