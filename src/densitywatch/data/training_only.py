"""Images that are for training alone: their file names begin with `training-only-`.

`densitywatch review --collect` names the images so that a person saw because the detector flagged them. They are the
least usual of their batch and no fair sample of what arrives. Among the calibration images they would make every
p-value too large, in validation or test they would bend the figures. As training images they do no such harm.
"""

from __future__ import annotations

MARK = "training-only-"


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
