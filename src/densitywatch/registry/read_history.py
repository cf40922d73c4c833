"""The history of the project's registered models, read from the store of params.yaml; see history.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import RegistryError
from densitywatch.params import Params
from densitywatch.registry import history
from densitywatch.registry.champions import REGISTERED
from densitywatch.registry.history import Entry
from densitywatch.tracking.addresses import follow_move
from densitywatch.tracking.runs import open_client, store_errors
from densitywatch.tracking.store import check_reachable, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


def read_history(name: str, params: Params, root: Path) -> tuple[str | None, list[Entry]]:
    """The present champion's version and the history of densitywatch-<name>, the newest entry first. Writes nothing.

    Raises RegistryError where there is no such model or the store does not answer.
    """
    uri, client = _open(params, root)
    with store_errors(uri, RegistryError):
        return history.present(client, REGISTERED + name)


def registered_models(params: Params, root: Path) -> list[str]:
    """The names of all registered models of this project. Raises RegistryError when the store does not answer."""
    uri, client = _open(params, root)
    found: list[str] = []
    token = None
    with store_errors(uri, RegistryError):
        while True:
            page = client.search_registered_models(f"name LIKE '{REGISTERED}%'", max_results=100, page_token=token)
            found += [model.name.removeprefix(REGISTERED) for model in page]
            token = page.token
            if not token:
                return sorted(found)


def _open(params: Params, root: Path) -> tuple[str, MlflowClient]:
    uri = tracking_uri(params, root)
    check_reachable(uri, create=False)
    follow_move(uri, root)
    return uri, open_client(uri)
