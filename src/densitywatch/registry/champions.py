"""Who is champion: the alias in MLflow, the trail of the champions so far, and which of them can be verified.

MLflow's aliases have no history and no compare-and-set. So the registered model has a tag with the trail: all versions
that this project made champion, the present one last. An alias that points elsewhere was moved by a person, and that
holds until the next decision (docs/decisions/0016-the-registry-belongs-to-its-checkout.md). MLflow is imported inside
functions: it takes seconds, and loading a model from a folder imports this file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import RegistryError
from densitywatch.files import content_digest
from densitywatch.tracking.addresses import CONTENT, PACKED, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "densitywatch-"
"""The prefix of a model's name in the registry."""
CHAMPION, CHALLENGER = "champion", "challenger"
TRAIL, PREVIOUS, ROLLED_BACK = "champions", "previous_champion", "rolled_back"
KEPT = 500
"""Champions in the trail; a tag holds 5000 characters."""
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")

Trail = tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """Where the alias champion of a registered model points, and which versions this project made champion."""

    registered: str
    alias: str | None
    trail: Trail

    @property
    def by_hand(self) -> bool:
        """Whether a person gave the alias to its version."""
        return self.alias is not None and self.alias != _last(self.trail)

    @property
    def newest_first(self) -> list[str]:
        """The champion, then those that were champion before it."""
        before = list(reversed(self.trail))
        if self.alias is None:
            return before
        return [self.alias, *(before[before.index(self.alias) + 1 :] if self.alias in before else before)]

    def after(self, version: str) -> Trail:
        """The trail once `version` is champion."""
        trail = (*self.trail, self.alias) if self.alias is not None and self.by_hand else self.trail
        return trail if _last(trail) == version else (*trail, version)[-KEPT:]


def standing(client: MlflowClient, registered: str) -> Standing:
    """The alias and the trail as they are now. Raises RegistryError when there is no such registered model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(registered)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        name = registered.removeprefix(REGISTERED)
        raise RegistryError(
            f"{registered}: the registry has no such model; run `densitywatch register {name}`"
        ) from None
    given = model.aliases.get(CHAMPION)
    alias = None if given is None else str(given)
    noted = model.tags.get(TRAIL)
    if noted is None:
        return Standing(registered, alias, _older_trail(client, registered))
    # a process that was killed while it moved the alias leaves "old trail > new trail"
    trails = [tuple(part.split()) for part in noted.split(">")]
    return Standing(registered, alias, trails[-1] if _last(trails[-1]) == alias else trails[0])


def move(client: MlflowClient, seen: Standing, version: str | None, trail: Trail) -> None:
    """Give the alias to `version` (None: to no version), and store the trail that follows.

    Raises RegistryError when the alias is not where it was `seen`.
    """
    if standing(client, seen.registered).alias != seen.alias:
        raise RegistryError(f"{seen.registered}: the champion changed in the meantime; run the same command again")
    both = f"{' '.join(seen.trail)} > {' '.join(trail)}"
    client.set_registered_model_tag(seen.registered, TRAIL, both if len(both) < 5000 else " ".join(trail))
    if version is None:
        client.delete_registered_model_alias(seen.registered, CHAMPION)
    elif version != seen.alias:
        client.set_registered_model_alias(seen.registered, CHAMPION, version)
    client.set_registered_model_tag(seen.registered, TRAIL, " ".join(trail))


def newest_verified(
    client: MlflowClient, uri: str, registered: str, numbers: Sequence[str]
) -> tuple[str | None, Path | None, list[str]]:
    """The first of `numbers` whose files are as registered, their folder, and why those before it were passed over."""
    reasons: list[str] = []
    for number in numbers:
        try:
            return number, fetch(client, uri, find(client, f"models:/{registered}/{number}")), reasons
        except RegistryError as error:
            reasons.append(str(error))
    return None, None, reasons


def find(client: MlflowClient, address: str) -> ModelVersion:
    """The version that a registry address names. Raises RegistryError when there is none."""
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
        if error.error_code not in MISSING:
            raise
        verb = "promote" if alias == CHAMPION else "register"
        advice = f"; run `densitywatch {verb} {registered.removeprefix(REGISTERED)}`"
        missing = f"version {number}" if number else f"version with the alias {alias}"
        raise RegistryError(f"{registered}: the registry has no {missing}{advice if not number else ''}") from None


def fetch(client: MlflowClient, uri: str, version: ModelVersion) -> Path:
    """The version's packed folder on this machine, its bytes compared with those that were registered.

    Raises RegistryError when they are gone or not the same.
    """
    from mlflow.exceptions import MlflowException

    where = f"{version.name} version {version.version}"
    content = version.tags.get(CONTENT)
    if content is None:
        raise RegistryError(f"{where} was not registered by densitywatch: it has no tag {CONTENT}")
    try:
        source = client.get_model_version_download_uri(version.name, version.version).rstrip("/")
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        raise RegistryError(f"{where}: its files were deleted; {_again(version)}") from None
    here = local_path(source)
    folder = (
        here / "artifacts" / PACKED if here is not None else _downloaded(f"{source}/artifacts/{PACKED}", uri, content)
    )
    if folder is None or not folder.is_dir():
        raise RegistryError(f"{where}: its files are gone from {folder or source}; {_again(version)}")
    if content_digest(folder) != content:
        raise RegistryError(f"{where}: the files in {folder} are not those that were registered; {_again(version)}")
    return folder


def _again(version: ModelVersion) -> str:
    return f"`densitywatch register {version.name.removeprefix(REGISTERED)}` makes a version of what is in models/"


def _downloaded(source: str, uri: str, content: str) -> Path | None:
    """The files of a remote store, cached by their digest; None where the store no longer has them."""
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densitywatch"
    folder = cache / content
    if folder.is_dir() and content_digest(folder) == content:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            # a download of what is not there fails as one from a store that is down does
            if not list_artifacts(artifact_uri=source, tracking_uri=uri):
                return None
            fresh = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=uri))
        except MlflowException as error:
            if error.error_code not in MISSING:
                raise
            return None
        if folder.is_dir() and content_digest(folder) != content:
            with suppress(OSError):  # another process was faster
                folder.rename(Path(scratch) / "spoilt")
        with suppress(OSError):  # another process was faster; the digest tells whether its files are right
            fresh.rename(folder)
    return folder


def _last(trail: Trail) -> str | None:
    return trail[-1] if trail else None


def _older_trail(client: MlflowClient, registered: str) -> Trail:
    """The trail in a store of densitywatch 0.1.0, where each champion has a tag with the one before it."""
    versions = {str(found.version): found.tags for found in all_versions(client, registered)}
    made = {
        number: tags[PREVIOUS] for number, tags in versions.items() if PREVIOUS in tags and not tags.get(ROLLED_BACK)
    }
    ends = [number for number in made if number not in made.values()]
    number = max(ends or made, key=int, default="")
    trail: list[str] = []
    while number and number not in trail:
        trail.insert(0, number)
        number = made.get(number, "")
    return tuple(trail)


def all_versions(client: MlflowClient, registered: str) -> list[ModelVersion]:
    """Every version of a registered model, the newest first; none where there is no such model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{registered}'", max_results=200, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version), reverse=True)
