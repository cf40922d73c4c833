"""MLflow's server as this project runs it, behind the checks of server.py: `python -m pipelines.mlflow_server PORT`.

What `mlflow server` does before it starts its workers is done here, for two reasons: the address of the store, which
may hold a password, is a variable and not part of a command line that every user of the machine can read; and every
request passes the login of a team, those to the parts of MLflow that its own login does not know among them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from densitywatch import environment
from pipelines import listening
from pipelines.server import OwnPagesOnly

STORE = "DENSITYWATCH_MLFLOW_STORE"


def command(port: int | str) -> list[str]:
    """The command line of the server."""
    return [sys.executable, "-m", "pipelines.mlflow_server", str(port)]


def variables(store: str) -> dict[str, str]:
    """Variables that the server's process needs in addition to the caller's."""
    return {
        STORE: store,
        # job execution is not used here, and it starts more processes
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # OwnPagesOnly checks hosts and origins, and knows the names of DENSITYWATCH_NAMES
        "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            f"{scheme}://{name}{port}"
            for name in listening.names()
            for scheme in ("http", "https")
            for port in ("", ":*")
        ),
    }


def main(arguments: list[str]) -> int:
    store = os.environ.pop(STORE)
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: store,
        constants.REGISTRY_STORE_URI_ENV_VAR: store,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: "./mlartifacts",
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    import uvicorn
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(store, store, "mlflow-artifacts:/")
    from mlflow.server.fastapi_app import app

    uvicorn.run(
        OwnPagesOnly(app, Path.cwd(), environment.login()),
        host=listening.host(),
        port=int(arguments[0]),
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
