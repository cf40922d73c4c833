"""The errors a user meets: one sentence each, saying what is wrong, where, and what to do."""

from __future__ import annotations

from densitywatch.text import visible


class DensitywatchError(Exception):
    """A failure with a one-sentence message; the command line prints it and exits with 1.

    Names from outside stand in many of them, so whatever a terminal, a log or a page would obey is shown by its code.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message).replace("\n", " ")))


class ParamsError(DensitywatchError):
    """params.yaml, or what was typed, cannot be used; the command line exits with 2."""

    exit_code = 2


class DataError(DensitywatchError):
    """Data is missing, unreachable, altered or unreadable."""


class DiskFull(DataError):
    """No space, or no quota, is left where something was to be written."""


class ValidationFailed(DensitywatchError):
    """An expectation on the data does not hold."""


class ModelError(DensitywatchError):
    """A model cannot be found, loaded, or asked for what it does not offer."""


class TrainingDiverged(DensitywatchError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class RegistryError(DensitywatchError):
    """The model registry cannot be reached or has no such model, version or alias."""


class GateRejected(DensitywatchError):
    """A candidate did not pass the promotion gate."""


class OutliersFound(DensitywatchError):
    """A batch has as many outliers as the caller asked to be told of (`densitywatch score --fail-on N`)."""
