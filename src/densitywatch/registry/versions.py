"""The registry: `register`, `promote` and `rollback` of versions of densitywatch-<model> and densitywatch-detector.

The aliases are champion and challenger. One promotion runs at a time, under a lock. champions.py knows who is champion
and who was; history.py notes each change; gate.py measures; version_files.py packs; download.py gets a version's files.
MLflow is imported inside functions: it takes seconds, and `rollback --help` or a folder's address needs none of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densitywatch.errors import RegistryError
from densitywatch.models.offers import Bounded, ExactDensity, Reconstructor
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.registry import history
from densitywatch.registry.champions import (
    CHALLENGER,
    REGISTERED,
    ROLLED_BACK,
    Standing,
    Trail,
    all_versions,
    fetch,
    find,
    move,
    newest_verified,
    standing,
)
from densitywatch.registry.download import download_model, who_stands_in
from densitywatch.registry.gate import Decision, gate
from densitywatch.registry.history import Actor, Entry, entry, user_name
from densitywatch.registry.service import answers_of
from densitywatch.registry.version_files import WEIGHTS_TAG, pack_detector, pack_model
from densitywatch.sizes import height_width
from densitywatch.tracking.addresses import CONTENT, PACKED
from densitywatch.tracking.runs import open_client, prepare_store, run_exists, store_errors
from densitywatch.tracking.store import store_lock, tracking_uri
from densitywatch.training.bookkeeping import training_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["Actor", "Decision", "download_model", "gate", "promote", "register", "rollback"]

DESCRIPTION = """\
Serve it: `mlflow models serve -m models:/{registered}@champion --env-manager local --host 127.0.0.1`.

Ask it: POST /invocations with `{{"inputs": [...]}}`, a list of images as nested arrays of 0 to 255, (C, H, W) each, or
as image files in base64; or `{{"inputs": {{"samples": 4, "seed": 1}}}}` where the model draws samples.
"""
REQUIREMENTS = ("densitywatch", "mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "scipy", "torch")


def register(name: str, params: Params, root: Path) -> int:
    """Put models/<name> into the registry as a version of densitywatch-<name>, alias challenger; returns its number.

    A density takes along what its p-values need, and the detector (name `detector`) the weights of its models: see
    version_files.py. Registering the same bytes again returns the version that has them, if its files are still there.

    Raises ModelError when there is nothing whole to register, RegistryError when the store does not take it.
    """
    experiment = prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name

    def version_of(model: str, weights: str) -> int | None:
        with store_errors(uri, RegistryError):
            found = all_versions(client, REGISTERED + model)
        return next((int(version.version) for version in found if version.tags.get(WEIGHTS_TAG) == weights), None)

    with tempfile.TemporaryDirectory() as scratch, store_lock(uri, root, f"register-{name}"):
        packed = Path(scratch) / PACKED
        packed.mkdir()
        tags = pack_detector(root, packed, version_of) if name == "detector" else pack_model(name, root, packed)
        with store_errors(uri, RegistryError):
            same = [v for v in all_versions(client, registered) if v.tags.get(CONTENT) == tags[CONTENT]]
            whole, _, _ = newest_verified(client, uri, registered, [str(v.version) for v in same])
            version = None if whole is None else int(whole)
            if version is None:
                run_id = _training_run(client, name, root)
                version = _log_version(client, uri, experiment, registered, packed, params, run_id, tags)
            client.set_registered_model_alias(registered, CHALLENGER, str(version))
    return version


def _training_run(client: MlflowClient, name: str, root: Path) -> str | None:
    """The MLflow run that trained the model, if this machine noted one and this store has it."""
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
    """Log the packed folder as models from code, and make it a version once it has answered a request."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    model: Any = None if registered == REGISTERED + "detector" else load_model_folder(packed)
    judges = model is None or isinstance(model, ExactDensity | Bounded | Reconstructor)
    images = np.zeros((1, params.data.channels, *height_width(params.data.size)), dtype=np.uint8)
    example = images if judges else {"samples": 1}
    logged = client.create_logged_model(experiment, name=registered, source_run_id=run_id, tags=tags)
    with _current_store(uri), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # MLflow says it of its own types
        # a request is arrays or files in base64, which MLflow's schemas cannot say: service.py checks it
        info = mlflow.pyfunc.log_model(
            model_id=logged.model_id,
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={PACKED: str(packed)},
            signature=ModelSignature(outputs=Schema([ColSpec(kind, key) for key, kind in answers_of(model).items()])),
            input_example=example,
            model_config={"resize": params.data.resize},
            pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
        )
        read_back = packed.with_name("read back")  # by default MLflow leaves what it gets from a server in /tmp
        read_back.mkdir()
        mlflow.pyfunc.load_model(info.model_uri, dst_path=str(read_back)).predict(example)
        with suppress(MlflowException):  # it exists already from the second version on
            client.create_registered_model(registered, description=DESCRIPTION.format(registered=registered))
        version = client.create_model_version(
            registered, f"models:/{logged.model_id}", run_id=run_id, tags=tags, model_id=logged.model_id
        )
        version = _without_twins(client, version)
    if run_id is not None:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return int(version.version)


def _without_twins(client: MlflowClient, made: ModelVersion) -> ModelVersion:
    """The version that was made, once.

    Where a server made it and its answer was lost, MLflow's client has asked again: the first one stays.
    """
    twins = [version for version in all_versions(client, made.name) if version.source == made.source]
    first, *others = sorted(twins, key=lambda version: int(version.version))
    for other in others:
        client.delete_model_version(other.name, other.version)
    return first


@contextmanager
def _current_store(uri: str) -> Iterator[None]:
    """Point MLflow's fluent calls, which logging a model needs, at this store; the environment is restored after."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets, as MLflow's own code does it


def promote(
    name: str,
    params: Params,
    root: Path,
    version: int | None = None,
    *,
    automatic: bool = False,
    afresh: bool = False,
    actor: Actor | None = None,
) -> Decision:
    """Make the challenger, or `version`, champion if it passes the gate. The old champion is kept for `rollback`.

    Where the alias or the champion's files are gone, the candidate is compared with the newest earlier champion that
    can be verified. A version that was rolled back is promoted again only by its number. The decision is noted among
    the version's tags and, with the `actor` who asked for it, in the model's history.

    `automatic`: a champion that a person chose in MLflow stays. A promotion that a person asks for, whatever the gate
    says, lets automatic ones go on. `afresh`: the candidate is compared with nothing.

    Raises RegistryError when there is no such version or the store does not answer.
    """
    prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name
    actor = actor or Actor(user_name())
    with _promotions(uri, root, name):
        with store_errors(uri, RegistryError):
            wanted = f"models:/{registered}" + (f"/{version}" if version is not None else f"@{CHALLENGER}")
            candidate = find(client, wanted)
            number = str(candidate.version)
            seen = standing(client, registered)
            history.catch_up(client, seen, "a promotion")
            if automatic and seen.by_hand and number != seen.alias:
                return Decision(False, f"version {seen.alias} was made champion by hand and stays; {_go_on(name)}")
            if number == seen.alias:
                fetch(client, uri, candidate)
                if not automatic and (seen.by_hand or candidate.tags.get(ROLLED_BACK)):
                    _settle(client, seen, candidate)
                return Decision(True, f"version {number} is the champion already")
            if version is None and candidate.tags.get(ROLLED_BACK):
                why = f"was rolled back; `densitywatch promote {name} --version {number}` would insist"
                refused = Decision(False, f"rejected: version {number} {why}")
                history.add(client, registered, entry("rejected", seen.alias, number, actor, refused.reason))
                return refused
            ours = fetch(client, uri, candidate)
            order = [] if afresh else seen.newest_first
            compared, theirs, reasons = newest_verified(client, uri, registered, order)
        decision = gate(name, ours, theirs, params, root)
        told = "" if afresh else who_stands_in(seen, compared, reasons)
        decision = replace(decision, reason=f"version {number} {decision.reason}{told and f'; {told}'}")
        with store_errors(uri, RegistryError):
            client.set_model_version_tag(registered, number, "gate", decision.reason[:5000])
            client.set_model_version_tag(registered, number, "gate_figures", json.dumps(decision.figures))
            outcome: history.Outcome = "promoted" if decision.passed else "rejected"
            noted = entry(outcome, seen.alias, number, actor, decision.reason, decision.figures)
            if decision.passed:
                _settle(client, seen, candidate, noted)
                return decision
            history.add(client, registered, noted)
            if not automatic and seen.by_hand:
                move(client, seen, seen.alias, seen.after(str(seen.alias)))
                decision = replace(decision, reason=f"{decision.reason}; automatic promotion goes on from here")
    return decision


@contextmanager
def _promotions(uri: str, root: Path, name: str) -> Iterator[None]:
    """The lock under which one process at a time moves a model's alias. One line says that another holds it."""
    with store_lock(
        uri, root, f"promote-{name}", waiting=lambda: say(f"{name}: another promotion runs; waiting for it")
    ):
        yield


def _settle(client: MlflowClient, seen: Standing, candidate: ModelVersion, noted: Entry | None = None) -> None:
    """Make the candidate champion, unless the alias was moved in the meantime."""
    _move(client, seen, str(candidate.version), seen.after(str(candidate.version)), noted)
    if candidate.tags.get(ROLLED_BACK):
        client.delete_model_version_tag(candidate.name, candidate.version, ROLLED_BACK)


def _move(client: MlflowClient, seen: Standing, version: str | None, trail: Trail, noted: Entry | None) -> None:
    """`move`, and its entry in the history. Raises RegistryError when the alias is not where it was `seen`."""
    if noted is not None:
        history.announce(client, seen.registered, noted)
    move(client, seen, version, trail)
    if noted is not None:
        history.settle(client, standing(client, seen.registered))


def _go_on(name: str) -> str:
    return f"`densitywatch promote {name}` lets automatic promotion go on"


def rollback(
    name: str,
    params: Params,
    root: Path,
    *,
    to_none: bool = False,
    actor: Actor | None = None,
    reason: str = "",
) -> int | None:
    """Make the previous champion the champion again; returns its version.

    Versions whose files are gone or altered are passed over, and a line says so. Where the alias is gone, the last
    champion gets it back. Where there is no earlier champion, `to_none` leaves the model without one and returns None;
    otherwise RegistryError is raised. The history has the `actor` who asked for it, and the `reason`.
    """
    prepare_store(params, root)
    uri = tracking_uri(params, root)
    client = open_client(uri)
    registered = REGISTERED + name
    with _promotions(uri, root, name), store_errors(uri, RegistryError):
        seen = standing(client, registered)
        history.catch_up(client, seen, "a rollback")
        present = seen.alias
        earlier = seen.newest_first if present is None else seen.newest_first[1:]
        found, _, reasons = newest_verified(client, uri, registered, earlier)
        for text in reasons:
            say(f"{name}: passed over: {text}")
        if found is None and not (to_none and present):
            raise RegistryError(_nowhere_to_go(registered, present, reasons))
        kept = seen.trail[: _place(seen.trail, found) + 1 if found is not None else _place(seen.trail, present)]
        if present is not None:
            left = {*seen.trail[len(kept) :], present} - {found}
            for version in all_versions(client, registered):
                if str(version.version) in left:
                    client.set_model_version_tag(registered, version.version, ROLLED_BACK, "true")
                elif str(version.version) == found and version.tags.get(ROLLED_BACK):
                    client.delete_model_version_tag(registered, version.version, ROLLED_BACK)
        why = "; ".join(filter(None, [reason, *(f"passed over: {text}" for text in reasons)]))
        noted = entry("rolled back", present, found, actor or Actor(user_name()), why)
        _move(client, seen, found, kept, noted)
    return None if found is None else int(found)


def _place(trail: Trail, number: str | None) -> int:
    """The last place of `number` in the trail; the trail's length where it is not in it."""
    return len(trail) - 1 - trail[::-1].index(number) if number is not None and number in trail else len(trail)


def _nowhere_to_go(registered: str, present: str | None, reasons: list[str]) -> str:
    name = registered.removeprefix(REGISTERED)
    if present is None and not reasons:
        return f"{registered}: there is no champion, and none before; run `densitywatch promote {name}`"
    what = (
        "has no champion before it to go back to" if not reasons else "has no champion before it that can be verified"
    )
    where = f"version {present}" if present is not None else "the registry"
    return f"{registered}: {where} {what}; `densitywatch promote {name} --version N` makes another one champion"
