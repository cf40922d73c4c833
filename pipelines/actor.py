"""Who asks the registry for a change: the flow run in which this code runs, with its address in Prefect's page."""

from __future__ import annotations

from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from densitywatch.registry.history import Actor, user_name
from pipelines import server


def actor(*, by: str = "", note: str = "") -> Actor:
    """The present flow run. `by`: a person's name; by default the user whose process this is.

    A run on a server that ends with this process has no address.
    """
    address = None if server.is_temporary() or not flow_run.id else url_for("flow-run", obj_id=flow_run.id)
    return Actor(by or user_name(), flow_run.flow_name or "Python", address or "", note)
