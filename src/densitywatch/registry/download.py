"""What a model's address means: a folder, or a version of the registry whose files are fetched and checked.

models/pixelcnn                             a folder, relative to the project
models:/densitywatch-pixelcnn@champion      the version with this alias
models:/densitywatch-pixelcnn/3             this version
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import RegistryError
from densitywatch.params import Params, load_params
from densitywatch.progress import say
from densitywatch.registry.champions import CHAMPION, Standing, fetch, find, newest_verified, standing
from densitywatch.tracking.addresses import follow_move
from densitywatch.tracking.runs import open_client, store_errors
from densitywatch.tracking.store import check_reachable, tracking_uri

if TYPE_CHECKING:  # MLflow takes seconds to import, and a folder needs none of it
    from mlflow import MlflowClient


def model_folder(address: str | Path, params: Params | None = None, root: Path | None = None) -> Path:
    """The local folder that `address` means; a relative folder counts from `root`.

    Raises RegistryError as `download_model` does. A folder is not looked at.
    """
    if isinstance(address, str) and address.startswith("models:/"):
        return download_model(address, params, root)
    return (root or Path()) / address


def download_model(
    address: str, params: Params | None = None, root: Path | None = None, *, stand_in: bool = True
) -> Path:
    """The local folder with model.safetensors, or the detector, of `models:/NAME@alias` or `models:/NAME/version`.

    Without `params` the store is the one of MLFLOW_TRACKING_URI, or else of params.yaml in the present folder. Files of
    a remote store are kept under ~/.cache/densitywatch. Where the champion's alias or files are gone, the newest
    earlier champion that can be verified takes its place and a line says so; `stand_in=False` turns that off.

    Raises RegistryError when there is no such model, version or alias, the store does not answer, or the files are not
    those that were registered.
    """
    project = root or Path.cwd()
    if params is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        params = load_params(project / "params.yaml")
    if params is not None:
        uri, root = tracking_uri(params, project), project
    else:
        uri, root = os.environ["MLFLOW_TRACKING_URI"], None
    check_reachable(uri, create=False)
    follow_move(uri, root)
    client = open_client(uri)
    with store_errors(uri, RegistryError):
        if not stand_in or not address.endswith(f"@{CHAMPION}"):
            return fetch(client, uri, find(client, address))
        folder, told = champion_folder(client, uri, address)
    if told:
        say(told)
    return folder


def champion_folder(client: MlflowClient, uri: str, address: str) -> tuple[Path, str]:
    """The files of the champion, or of the newest one before it that can be verified and a sentence about it."""
    registered = address.removeprefix("models:/").removesuffix(f"@{CHAMPION}")
    try:
        return fetch(client, uri, find(client, address)), ""
    except RegistryError as error:
        failure = error
    try:
        seen = standing(client, registered)
    except RegistryError:
        raise failure from None
    if not seen.newest_first:
        raise failure
    used, folder, reasons = newest_verified(client, uri, registered, seen.newest_first)
    if folder is None:
        raise RegistryError(f"{registered}: no champion can be verified: {'; '.join(reasons)}")
    return folder, f"{registered}: {who_stands_in(seen, used, reasons)}"


def who_stands_in(seen: Standing, used: str | None, reasons: list[str]) -> str:
    """Why the version `used` takes the place of the champion; empty where it is the one that the alias names."""
    said = ["the alias champion is gone"] if seen.alias is None and seen.trail else []
    said += reasons
    if not said:
        return ""
    taken = f"version {used}, the newest champion that can be verified, stood in"
    return "; ".join([*said, taken if used else "no other can be verified"])
