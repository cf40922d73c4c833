"""The history of a registered model: every change of champion, and every candidate that the gate refused.

Each entry is a tag of the registered model, `history.0007.3f2a`, so MLflow's page shows it. Its value is JSON. The tag
`last_change` says the newest entry in one sentence, and the tag `history` of a version what happened to that version.

An alias cannot be moved and noted in one step. So a change is announced in a tag first, and its entry is written once
the alias is where the announcement says. A process that is killed in between leaves the announcement, and the next one
writes the entry.

Nothing here imports torch: flows import it before they say how many threads torch gets.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from densitywatch.registry.champions import MISSING, Standing, standing

if TYPE_CHECKING:
    from mlflow import MlflowClient

Outcome = Literal["promoted", "rejected", "rolled back", "moved by hand"]
ENTRY = re.compile(r"history\.(\d+)\.[0-9a-f]+")
ANNOUNCED, LAST, OF_VERSION = "history_announced", "last_change", "history"
MOST = 4000
"""Characters of a tag: MLflow's table takes 5000."""
KEPT = 500
"""Entries of a model; the oldest ones go."""
SHORT, WORDS = 200, 1000
"""Most characters of a name or an address, and of a person's words."""


@dataclass(frozen=True)
class Actor:
    """Who asked for a change, with what, and why."""

    by: str = ""
    """The user's name; empty where nobody can tell."""
    through: str = "Python"
    """The command line, or the name of a flow."""
    run: str = ""
    """The address of the flow run in Prefect's page."""
    note: str = ""
    """The person's own words."""


@dataclass(frozen=True)
class Entry:
    """One line of the history."""

    at: str
    """When, UTC, as in 2026-11-29T18:43:35Z. Of a move by hand: when it was seen."""
    outcome: Outcome
    before: str | None
    """The champion's version before."""
    after: str | None
    """The champion's version after it; of a rejected candidate, the candidate's."""
    by: str = ""
    through: str = ""
    run: str = ""
    note: str = ""
    reason: str = ""
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """What the gate measured: see gate.Decision."""

    @property
    def champion(self) -> str | None:
        """The champion's version once this has happened."""
        return self.before if self.outcome == "rejected" else self.after

    @property
    def who(self) -> str:
        """By whom and with what, in words."""
        return ", ".join(filter(None, [self.by, self.through, self.run])) or "nobody can tell"

    @property
    def change(self) -> str:
        """From which version to which, in words."""
        return f"{self.before or 'none'} -> {self.after or 'none'}"

    def __str__(self) -> str:
        told = f"{self.at} {self.outcome}: version {self.change} ({self.who})"
        return told + "".join(f"; {text}" for text in (self.reason, self.note and f"note: {self.note}") if text)

    def as_dict(self) -> dict[str, Any]:
        """For programs; the keys are those of the tag."""
        found = asdict(self) | {"from": self.before, "to": self.after, "figures": dict(self.figures)}
        return {key: found[key] for key in KEYS}


KEYS = ("at", "outcome", "from", "to", "by", "through", "run", "note", "reason", "figures")


def user_name() -> str:
    """The name of the user whose process this is, or the number where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for its user
        return f"user {os.getuid()}"


def entry(
    outcome: Outcome,
    before: str | None,
    after: str | None,
    actor: Actor,
    reason: str = "",
    figures: Mapping[str, float | str] | None = None,
) -> Entry:
    """An entry of now. Texts are cut to what a tag holds; a figure that is no finite number becomes a text."""
    told = {
        key: value if isinstance(value, str) or math.isfinite(value) else str(value)
        for key, value in (figures or {}).items()
    }
    return Entry(
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        outcome=outcome,
        before=before,
        after=after,
        by=_cut(actor.by, SHORT),
        through=_cut(actor.through, SHORT),
        run=_cut(actor.run, SHORT),
        note=_cut(actor.note, WORDS),
        reason=reason,
        figures=told,
    )


def as_tag(found: Entry) -> str:
    """The entry as JSON of at most MOST characters: the reason is cut first, then figures go."""
    text = json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False)
    while len(text) > MOST:
        if len(found.reason) > SHORT:
            found = replace(found, reason=_cut(found.reason, max(SHORT, len(found.reason) - (len(text) - MOST) - 1)))
        elif found.figures:
            found = replace(found, figures={})
        else:
            found = replace(found, note=_cut(found.note, len(found.note) // 2))
        text = json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False)
    return text


def from_tag(text: str) -> Entry | None:
    """The entry that a tag holds; None where somebody wrote something else into it."""
    try:
        said = json.loads(text)
        given = {key: said[key] for key in KEYS}
        given["before"], given["after"] = given.pop("from"), given.pop("to")
        texts = (given[key] for key in given if key not in ("before", "after", "figures"))
        whole = all(isinstance(value, str) for value in texts) and isinstance(given["figures"], dict)
        whole &= all(value is None or isinstance(value, str) for value in (given["before"], given["after"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Entry(**given) if whole else None


def entries(tags: Mapping[str, str]) -> list[Entry]:
    """The entries among the tags of a registered model, the newest first.

    Two machines may have seen the same move by hand: it is there once.
    """
    keys = sorted((key for key in tags if ENTRY.fullmatch(key)), key=_place)
    found: list[Entry] = []
    for new in filter(None, (from_tag(tags[key]) for key in keys)):
        seen = found and found[-1].outcome == new.outcome == "moved by hand" and found[-1].change == new.change
        if not seen:
            found.append(new)
    return found[::-1]


def present(client: MlflowClient, registered: str) -> tuple[str | None, list[Entry]]:
    """The present champion's version and the history of a registered model, the newest entry first. Writes nothing.

    Raises RegistryError where there is no such model.
    """
    alias = standing(client, registered).alias
    tags = client.get_registered_model(registered).tags
    announced = from_tag(tags[ANNOUNCED]) if ANNOUNCED in tags else None
    known = entries(tags)
    # of a process that was killed after it moved the alias
    done = announced is not None and announced.after == alias and (not known or known[0] != announced)
    return alias, [announced, *known] if announced is not None and done else known


def add(client: MlflowClient, registered: str, new: Entry) -> None:
    """Write an entry. The same refusal of the same version is not written twice in a row.

    The caller holds the lock of the model's promotions.
    """
    tags = client.get_registered_model(registered).tags
    before = entries(tags)
    if before and new.outcome == "rejected" and _same(before[0], new):
        return
    keys = sorted((key for key in tags if ENTRY.fullmatch(key)), key=_place)
    number = _place(keys[-1])[0] + 1 if keys else 1
    client.set_registered_model_tag(registered, f"history.{number:04d}.{secrets.token_hex(2)}", as_tag(new))
    client.set_registered_model_tag(registered, LAST, _cut(str(new), MOST))
    for key in keys[: max(0, len(keys) + 1 - KEPT)]:
        client.delete_registered_model_tag(registered, key)
    for version in {new.before, new.after} - {None}:
        _tell_version(client, registered, str(version), new)


def announce(client: MlflowClient, registered: str, new: Entry) -> None:
    """Say what is about to be done with the alias; `settle` writes the entry."""
    client.set_registered_model_tag(registered, ANNOUNCED, as_tag(new))


def settle(client: MlflowClient, seen: Standing) -> None:
    """Write the entry of an announced change, if the alias is where that change put it, and drop the announcement."""
    tags = client.get_registered_model(seen.registered).tags
    if ANNOUNCED not in tags:
        return
    announced = from_tag(tags[ANNOUNCED])
    known = entries(tags)
    # a process killed after the entry was written leaves the announcement too
    if announced is not None and announced.after == seen.alias and (not known or known[0] != announced):
        add(client, seen.registered, announced)
    client.delete_registered_model_tag(seen.registered, ANNOUNCED)


def catch_up(client: MlflowClient, seen: Standing, found_by: str) -> Entry | None:
    """Write what happened to the alias since the last entry: a killed change, or a move by hand, which is returned.

    `found_by`: who looks, for the entry's reason. The caller holds the lock of the model's promotions.
    """
    settle(client, seen)
    known = entries(client.get_registered_model(seen.registered).tags)
    if known:
        before, moved = known[0].champion, known[0].champion != seen.alias
    else:  # a store whose champions were made before there was a history
        before = seen.trail[-1] if seen.trail else None
        moved = seen.by_hand or (seen.alias is None and before is not None)
    if not moved:
        return None
    what = f"was moved to version {seen.alias}" if seen.alias is not None else "was deleted"
    new = entry(
        "moved by hand",
        before,
        seen.alias,
        Actor(through="MLflow's page"),
        f"the alias champion {what} outside of densitywatch; {found_by} found it",
    )
    add(client, seen.registered, new)
    return new


def _tell_version(client: MlflowClient, registered: str, version: str, new: Entry) -> None:
    """Put the entry on top of the version's own history; a version that was deleted has none."""
    from mlflow.exceptions import MlflowException

    try:
        before = client.get_model_version(registered, version).tags.get(OF_VERSION, "")
        client.set_model_version_tag(registered, version, OF_VERSION, _cut(f"{new}\n{before}".strip(), MOST))
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise


def _same(one: Entry, other: Entry) -> bool:
    parts = ("outcome", "before", "after", "by", "through", "note", "reason")
    return all(getattr(one, part) == getattr(other, part) for part in parts)


def _place(key: str) -> tuple[int, str]:
    """The number of an entry's tag, for sorting; numbers grow beyond their four digits."""
    match = ENTRY.fullmatch(key)
    assert match is not None
    return int(match[1]), key


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
