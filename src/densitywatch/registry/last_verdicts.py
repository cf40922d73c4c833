"""What the gate last said about each registered model, read from the tags that `promote` leaves; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densitywatch.errors import RegistryError
from densitywatch.params import Params
from densitywatch.registry.champions import CHAMPION, REGISTERED
from densitywatch.tracking.runs import open_client, store_errors
from densitywatch.tracking.store import check_reachable, sqlite_path, tracking_uri

PAGE = 200


@dataclass(frozen=True)
class Verdict:
    """The gate's last word about a model."""

    model: str
    champion: str | None
    """The version that is champion now."""
    version: str
    """The version that the gate spoke about."""
    reason: str
    """What it said, in a sentence."""
    time: float
    """When that version last changed, in seconds since 1970."""


def last_verdicts(params: Params, root: Path) -> list[Verdict]:
    """One verdict for each model of this project that the gate has judged, the newest first.

    Raises DensitywatchError when the store does not answer.
    """
    uri = tracking_uri(params, root)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        return []
    check_reachable(uri, create=False)
    client = open_client(uri)
    newest: dict[str, Verdict] = {}
    token = None
    with store_errors(uri, RegistryError):
        champions = {
            model.name: model.aliases.get(CHAMPION)
            for model in client.search_registered_models(f"name LIKE '{REGISTERED}%'", max_results=PAGE)
        }
        while True:
            found = client.search_model_versions(f"name LIKE '{REGISTERED}%'", max_results=PAGE, page_token=token)
            for version in found:
                known = newest.get(version.name)
                if "gate" in version.tags and (known is None or int(version.version) > int(known.version)):
                    champion = champions.get(version.name)
                    newest[version.name] = Verdict(
                        model=version.name.removeprefix(REGISTERED),
                        champion=None if champion is None else str(champion),
                        version=str(version.version),
                        reason=str(version.tags["gate"]),
                        time=(version.last_updated_timestamp or 0) / 1000,
                    )
            token = found.token
            if not token:
                return sorted(newest.values(), key=lambda verdict: verdict.time, reverse=True)
