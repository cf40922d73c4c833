"""The registry: versions of `densitywatch-<model>` and `densitywatch-detector`, aliases champion and challenger.

MLflow's aliases have no history and no compare-and-set: so one promotion runs at a time, under a lock, and a champion
carries the version before it as a tag, which is what `rollback` goes back to.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densitywatch.answers import answers_of
from densitywatch.bookkeeping import training_of
from densitywatch.errors import RegistryError
from densitywatch.gate import Verdict, gate
from densitywatch.models import WEIGHTS, load_model_folder
from densitywatch.packing import CONTENT, REGISTERED, WEIGHTS_TAG, content_digest, pack_detector, pack_model
from densitywatch.params import Params, load_params
from densitywatch.store import check_reachable, store_lock, tracking_uri
from densitywatch.tracking import open_client, prepare_store, run_exists, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["Verdict", "download_model", "gate", "promote", "register", "rollback"]

CHAMPION, CHALLENGER = "champion", "challenger"
PREVIOUS, ROLLED_BACK = "previous_champion", "rolled_back"
PACKED = "model"  # the folder among a version's artifacts that holds what `load_model` reads
DESCRIPTION = """\
Serve it: `mlflow models serve -m models:/{registered}@champion --env-manager local --host 127.0.0.1`.

Ask it: POST /invocations with `{{"inputs": [...]}}`, a list of images as nested arrays of 0 to 255, (C, H, W) each, or
as image files in base64; or `{{"inputs": {{"samples": 4, "seed": 1}}}}` where the model draws samples.
"""
REQUIREMENTS = ("densitywatch", "mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "scipy", "torch")


def register(name: str, params: Params, root: Path) -> int:
    """Put models/<name> into the registry as a version of densitywatch-<name>, alias challenger; returns its number.

    A density takes along what its p-values need, and the detector (name `detector`) the weights of its models; see
    packing.py. Registering the same bytes again returns the version that has them.

    Raises ModelError when there is nothing whole to register, RegistryError when the store does not take it.
    """
    experiment = prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name

    def version_of(model: str, weights: str) -> int | None:
        with store_errors(uri, RegistryError):
            return _version_with(client, REGISTERED + model, WEIGHTS_TAG, weights)

    with tempfile.TemporaryDirectory() as scratch, store_lock(uri, root, f"register-{name}"):
        packed = Path(scratch) / PACKED
        packed.mkdir()
        tags = pack_detector(root, packed, version_of) if name == "detector" else pack_model(name, root, packed)
        with store_errors(uri, RegistryError):
            version = _version_with(client, registered, CONTENT, tags[CONTENT])
            if version is None:
                run_id = _training_run(client, name, root)
                version = _log_version(client, uri, experiment, registered, packed, params, run_id, tags)
            client.set_registered_model_alias(registered, CHALLENGER, str(version))
    return version


def _version_with(client: MlflowClient, registered: str, tag: str, value: str) -> int | None:
    """The newest version whose tag has this value."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{registered}'", max_results=200, page_token=token)
        found += [int(version.version) for version in page if version.tags.get(tag) == value]
        token = page.token
        if not token:
            return max(found, default=None)


def _training_run(client: MlflowClient, name: str, root: Path) -> str | None:
    """The MLflow run that trained the model, where this machine noted one that this store knows."""
    weights = root / "models" / name / WEIGHTS
    run_id = training_of(weights, name, root).get("mlflow_run_id") if weights.is_file() else None
    return run_id if run_id and run_exists(client, run_id) else None


def _log_version(
    client: MlflowClient,
    uri: str,
    experiment: str,
    registered: str,
    packed: Path,
    params: Params,
    run_id: str | None,
    tags: dict[str, str],
) -> int:
    """Log the packed folder by the models-from-code route, and make it a version once it has answered a question."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    model: Any = None if registered == REGISTERED + "detector" else load_model_folder(packed)
    judges = model is None or any(hasattr(model, offer) for offer in ("log_prob", "elbo", "reconstruct"))
    images = np.zeros((1, params.data.channels, params.data.size, params.data.size), dtype=np.uint8)
    example = images if judges else {"samples": 1}
    logged = client.create_logged_model(experiment, name=registered, source_run_id=run_id, tags=tags)
    with _current_store(uri), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # of MLflow's own types, at its import
        # what comes in is an array or a file in base64, which MLflow's schemas cannot say: serving.py checks it itself
        info = mlflow.pyfunc.log_model(
            model_id=logged.model_id,
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={PACKED: str(packed)},
            signature=ModelSignature(outputs=Schema([ColSpec(kind, key) for key, kind in answers_of(model).items()])),
            input_example=example,
            model_config={"resize": params.data.resize},
            pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
        )
        mlflow.pyfunc.load_model(info.model_uri).predict(example)
        with suppress(MlflowException):  # it exists already from the second version on
            client.create_registered_model(registered, description=DESCRIPTION.format(registered=registered))
        version = client.create_model_version(
            registered, f"models:/{logged.model_id}", run_id=run_id, tags=tags, model_id=logged.model_id
        )
    if run_id is not None:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return int(version.version)


@contextmanager
def _current_store(uri: str) -> Iterator[None]:
    """MLflow's fluent calls, which logging a model needs, speak to this store; the environment stays as it was."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets, as MLflow's own code does it


def promote(name: str, params: Params, root: Path, version: int | None = None) -> Verdict:
    """Make the challenger, or `version`, champion if it passes the gate; the champion before it is kept for `rollback`.

    A version that was rolled back is not promoted again unless it is named by its number. The verdict is noted among
    the version's tags. Raises RegistryError when there is no such version or the store does not answer.
    """
    prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name
    with store_lock(uri, root, f"promote-{name}"):
        with store_errors(uri, RegistryError):
            wanted = f"models:/{registered}" + (f"/{version}" if version is not None else f"@{CHALLENGER}")
            candidate = _find(client, wanted)
            champion = _champion(client, registered)
            if champion is not None and champion.version == candidate.version:
                return Verdict(True, f"version {candidate.version} is the champion already")
            if version is None and candidate.tags.get(ROLLED_BACK):
                why = f"was rolled back; `densitywatch promote {name} --version {candidate.version}` would insist"
                return Verdict(False, f"rejected: version {candidate.version} {why}")
            ours = _fetch(client, uri, candidate)
            theirs = None if champion is None else _fetch(client, uri, champion)
        verdict = gate(name, ours, theirs, params, root)
        verdict = replace(verdict, reason=f"version {candidate.version} {verdict.reason}")
        with store_errors(uri, RegistryError):
            client.set_model_version_tag(registered, candidate.version, "gate", verdict.reason[:5000])
            if verdict.passed:
                _make_champion(client, candidate, champion)
    return verdict


def _make_champion(client: MlflowClient, candidate: ModelVersion, champion: ModelVersion | None) -> None:
    """Move the alias, unless the champion that the candidate was compared with is champion no more."""
    now = _champion(client, candidate.name)
    if (now and now.version) != (champion and champion.version):
        raise RegistryError(f"{candidate.name}: the champion changed while the gate was at work; promote again")
    before = "" if champion is None else str(champion.version)
    client.set_model_version_tag(candidate.name, candidate.version, PREVIOUS, before)
    if candidate.tags.get(ROLLED_BACK):
        client.delete_model_version_tag(candidate.name, candidate.version, ROLLED_BACK)
    client.set_registered_model_alias(candidate.name, CHAMPION, str(candidate.version))


def rollback(name: str, params: Params, root: Path, *, to_none: bool = False) -> int | None:
    """Make the champion before the present one champion again; returns its version.

    Where there is none before it, `to_none` leaves the model without a champion and returns None.
    Raises RegistryError when there is none otherwise, or its files are gone or altered.
    """
    prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name
    with store_lock(uri, root, f"promote-{name}"), store_errors(uri, RegistryError):
        champion = _find(client, f"models:/{registered}@{CHAMPION}")
        before = champion.tags.get(PREVIOUS)
        if not before and to_none:
            client.set_model_version_tag(registered, champion.version, ROLLED_BACK, "true")
            client.delete_registered_model_alias(registered, CHAMPION)
            return None
        if not before:
            raise RegistryError(f"{registered}: version {champion.version} has no champion before it to go back to")
        previous = _find(client, f"models:/{registered}/{before}")
        _fetch(client, uri, previous)
        client.set_model_version_tag(registered, champion.version, ROLLED_BACK, "true")
        client.set_registered_model_alias(registered, CHAMPION, str(previous.version))
    return int(previous.version)


def _champion(client: MlflowClient, registered: str) -> ModelVersion | None:
    model = client.get_registered_model(registered)
    number = model.aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(registered, number)


def download_model(address: str, params: Params | None = None, root: Path | None = None) -> Path:
    """The local folder with model.safetensors, or the detector, of `models:/NAME@alias` or `models:/NAME/version`.

    Without `params` the store is MLFLOW_TRACKING_URI's, or that of params.yaml in the present folder. Files of a remote
    store are kept under ~/.cache/densitywatch. Raises RegistryError when there is no such model, version or alias, the
    store does not answer, or the files are not those that were registered.
    """
    root = root or Path.cwd()
    if params is not None:
        uri = tracking_uri(params, root)
    elif not (uri := os.environ.get("MLFLOW_TRACKING_URI", "")):
        uri = tracking_uri(load_params(root / "params.yaml", check_models=False), root)
    check_reachable(uri, create=False)
    client = open_client(uri)
    with store_errors(uri, RegistryError):
        return _fetch(client, uri, _find(client, address))


def _find(client: MlflowClient, address: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([\w.-]+)(?:@([\w-]+)|/(\d+))", address)
    if match is None:
        raise RegistryError(f"'{address}' is no registry address; write models:/NAME@alias or models:/NAME/version")
    registered, alias, number = match.groups()
    try:
        if number is not None:
            return client.get_model_version(registered, number)
        return client.get_model_version_by_alias(registered, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise
        verb = "promote" if alias == CHAMPION else "register"
        advice = f"; run `densitywatch {verb} {registered.removeprefix(REGISTERED)}`"
        missing = f"version {number}" if number else f"version with the alias {alias}"
        raise RegistryError(f"{registered}: the registry has no {missing}{advice if not number else ''}") from None


def _fetch(client: MlflowClient, uri: str, version: ModelVersion) -> Path:
    """The version's packed folder on this machine, its bytes compared with what was registered."""
    from mlflow.artifacts import download_artifacts

    where = f"{version.name} version {version.version}"
    content = version.tags.get(CONTENT)
    if content is None:
        raise RegistryError(f"{where} was not registered by densitywatch: it has no tag {CONTENT}")
    source = client.get_model_version_download_uri(version.name, version.version).rstrip("/") + f"/artifacts/{PACKED}"
    if source.startswith(("/", "file:")):
        folder = Path(download_artifacts(artifact_uri=source))
    else:
        folder = _cache() / content
        if not folder.is_dir():
            _cache().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=_cache()) as beside:
                fresh = Path(download_artifacts(artifact_uri=source, dst_path=beside, tracking_uri=uri))
                with suppress(OSError):  # another process was first; the digest below says whether its files are right
                    fresh.rename(folder)
    if content_digest(folder) != content:
        raise RegistryError(f"{where}: the files in {folder} are not those that were registered; register it again")
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densitywatch"
