"""The errors that users see: one sentence each, about what is wrong, where, and what to do."""

from __future__ import annotations

from densitywatch.text import visible


class DensitywatchError(Exception):
    """A failure with a one-sentence message; the command line prints it and exits with 1.

    Many messages have names from outside in them, so control characters are shown by their codes.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message).replace("\n", " ")))


class ParamsError(DensitywatchError):
    """params.yaml or the command line cannot be used; the exit code is 2."""

    exit_code = 2


class DataError(DensitywatchError):
    """Data is missing, unreachable, altered or unreadable."""


class DiskFull(DataError):
    """No space or no quota is left for a file."""


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


class DriftAlarm(DensitywatchError):
    """The stream of batches has moved away from what the detector knows, or from what it was."""


class OutliersFound(DensitywatchError):
    """A batch has at least N outliers (`densitywatch score --fail-on N`)."""
