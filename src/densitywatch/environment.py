"""The environment every process of the project runs under: no telemetry, no pickles. Named here and nowhere else."""

from __future__ import annotations

from collections.abc import MutableMapping

SETTINGS = {
    "DO_NOT_TRACK": "true",  # Prefect's parser refuses "1"
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow's and DVC's advice and update notices would stand among the stage's own lines
    "DVC_NO_UPDATER": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def settle(environment: MutableMapping[str, str]) -> None:
    """Set what is not set yet; what the user exported stays. Call it before the libraries concerned are imported."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
