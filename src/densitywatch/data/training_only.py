"""Images that are for training alone: their file names begin with `training-only-`.

`densitywatch review --collect` names the images so that a person saw because the detector flagged them. They are the
least usual of their batch and no fair sample of what arrives. Among the calibration images they would make every
p-value too large, in validation or test they would bend the figures. As training images they do no such harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from densitywatch.data.raw import RawImage

MARK = "training-only-"


class _Row(Protocol):
    image: RawImage
    sha256: str
    group: str


R = TypeVar("R", bound=_Row)


def for_training_only(path: str) -> bool:
    """Whether the name of an image, with or without folders before it, has the mark."""
    return path.startswith(MARK, _name_of(path))


def with_mark(path: str) -> str:
    """The path with the mark before the file's name."""
    name = _name_of(path)
    return f"{path[:name]}{MARK}{path[name:]}"


def without_mark(path: str) -> str:
    """The path as it is without the mark: what names say of scenes, folders and order is the same for both."""
    name = _name_of(path)
    return path[:name] + path[name:].removeprefix(MARK)


def _name_of(path: str) -> int:
    """Where the file's name begins."""
    return max(path.rfind("/"), path.rfind("\\")) + 1


def set_apart(rows: Sequence[R]) -> tuple[list[R], list[R]]:
    """(the rows that may go into any split, those that are for training alone)."""
    marked = [row for row in rows if for_training_only(row.image.path)]
    return [row for row in rows if not for_training_only(row.image.path)], marked


def add_to_training(marked: Iterable[R], train: list[R], others: Mapping[str, Sequence[R]]) -> list[dict[str, str]]:
    """Append the marked rows to `train`, except what an image of another split repeats or shares a group with.

    Those would show the models an image that they are measured on. Returns them as (path, reason).
    """
    taken: dict[str, str] = {}
    for name, rows in others.items():
        for row in rows:
            taken[row.sha256] = f"the same pixels as {row.image.path} of the {name} part"
            if row.group:
                taken[f"group {row.group}"] = f"of one group with {row.image.path} of the {name} part"
    left_out = []
    for row in marked:
        why = taken.get(row.sha256) or taken.get(f"group {row.group}")
        if why is None:
            train.append(row)
        else:
            left_out.append({"path": row.image.path, "reason": why})
    return left_out
