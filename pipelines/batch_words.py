"""What the scheduled job says of batches in Prefect: a run's name, its last state, and figures for people, rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipelines.prefect_text import name_this_run, plain_words

OUTLIERS = "Outliers found"
"""The name of the state of a run that flagged an image; its type is Completed."""
NAMED = 2
"""Batches that a run's name has, at most."""


def name_run(names: Sequence[str]) -> None:
    """Put the batches and their number into the name of the run that this is called in."""
    shown = ", ".join(plain_words(name)[:60] for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    name = (
        f"detect-outliers: {counted(len(names), 'batch')}, {shown}{more}" if names else "detect-outliers: no new batch"
    )
    name_this_run(name)


def last_state(summaries: list[dict[str, Any]]) -> State[list[dict[str, Any]]] | None:
    """The state of a run that flagged images, with their number and the batches; None where none was flagged."""
    found = [summary for summary in summaries if summary["outliers"]]
    if not found:
        return None
    count = sum(summary["outliers"] for summary in found)
    where = ", ".join(f"{plain_words(_name(summary))} ({summary['outliers']})" for summary in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    message = f"{counted(count, 'image')} flagged in {counted(len(found), 'batch')}: {where}{more}"
    return Completed(name=OUTLIERS, message=message, data=summaries)


def in_figures(summary: Mapping[str, Any]) -> str:
    """One line about a batch."""
    scored, flagged = summary["scored"], summary["outliers"]
    share = f" ({flagged / scored:.1%})" if scored else ""
    return (
        f"{plain_words(_name(summary))}: {counted(summary['files'], 'file')}, {scored:,} scored, {flagged:,} flagged"
        f"{share}, {summary['quarantined']:,} quarantined, drift: {drift_in_words(summary)}"
    )


def drift_in_words(summary: Mapping[str, Any]) -> str:
    """What the stream shows with this batch."""
    from densitywatch.batches.drift_state import in_words

    if summary.get("drift_alarm") is None:
        return "not tested"
    if not summary["drift_alarm"]:
        return f"no alarm ({counted(summary['drift_batches'], 'batch')} in the stream)"
    since = plain_words(str(summary["drift_since"]))
    return f"alarm, most likely since {since}: {in_words(str(summary['drift_moved']))}"


def row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table about batches; names from outside are text, never markup."""
    scored = summary["scored"]
    return {
        "batch": plain_words(str(summary["batch"])),
        "files": summary["files"],
        "scored": scored,
        "flagged": summary["outliers"],
        "flagged share": f"{summary['outliers'] / scored:.1%}" if scored else "",
        "quarantined": summary["quarantined"],
        "false-discovery rate": float(f"{summary['false_discovery_rate']:.3g}"),
        "drift": drift_in_words(summary),
        "p-value of the batch alone": f"{summary['drift_p_value']:.2g}",
        "not the champion": plain_words(str(summary.get("stand_in", ""))),
    }


def counted(number: int, thing: str) -> str:
    """A number and its noun."""
    plural = f"{thing}es" if thing.endswith("ch") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def _name(summary: Mapping[str, Any]) -> str:
    return Path(str(summary["folder"])).name
