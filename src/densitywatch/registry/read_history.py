"""The history of the project's registered models, read from the store of params.yaml; see history.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import DensitywatchError, RegistryError
from densitywatch.params import Params
from densitywatch.registry import history
from densitywatch.registry.champions import CHALLENGER, REGISTERED, find, standing
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


def is_champion(name: str, params: Params, root: Path) -> bool:
    """Whether the challenger of densitywatch-<name> is the champion already, so that a promotion measures nothing.

    False where that cannot be told: the promotion says why.
    """
    try:
        uri, client = _open(params, root)
        with store_errors(uri, RegistryError):
            challenger = str(find(client, f"models:/{REGISTERED}{name}@{CHALLENGER}").version)
            return standing(client, REGISTERED + name).alias == challenger
    except DensitywatchError:
        return False


def _open(params: Params, root: Path) -> tuple[str, MlflowClient]:
    uri = tracking_uri(params, root)
    check_reachable(uri, create=False)
    follow_move(uri, root)
    return uri, open_client(uri)
