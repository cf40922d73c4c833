"""The member scores by name."""

from __future__ import annotations

from collections.abc import Iterable

from densitywatch.detector.member import MEMBERS, Member
from densitywatch.detector.scores import rivals, scores
from densitywatch.errors import ParamsError
from densitywatch.params import Params

SCORE_FILES = (scores, rivals)
"""Imported so that what stands in them under `@member` is in MEMBERS; a new file of scores is added here."""


def all_members() -> dict[str, Member]:
    """Every member by name: the functions under `@member` in the files of scores/."""
    return MEMBERS


def find_member(name: str) -> Member:
    """The member of that name. Raises ParamsError, naming those that exist."""
    members = all_members()
    if name not in members:
        raise ParamsError(f"detector.members: no score '{name}'; there is: {', '.join(sorted(members))}")
    return members[name]


def check_reads(members: Iterable[Member], params: Params) -> None:
    """Raises ParamsError where a member reads a model that params lack, or that calibrate does not wait for."""
    for member in members:
        for name in member.reads:
            if name not in params.models:
                raise ParamsError(
                    f"detector.members: '{member.name}' reads the model '{name}', which `models` of params.yaml lacks;"
                    " add it there or leave the member out"
                )
            if name not in params.detector.reads:
                raise ParamsError(
                    f"detector.reads: '{member.name}' reads the model '{name}', which is not named there, so nothing"
                    " would wait for its training; add it"
                )
