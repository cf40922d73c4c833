"""The schedule of the deployment `retrain`, which params.yaml sets in `retrain.cron`; by default there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densitywatch.errors import ParamsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

SLUG = "params"
"""Marks our schedule among those that a person has made in Prefect's page."""


def keep_schedule(
    client: SyncPrefectClient, deployment: DeploymentResponse, cron: str | None, before: object
) -> dict[str, str | None]:
    """Make, move or delete our schedule where `cron` is another than at the last `make up`, or the deployment is new.

    So one that a person has paused, moved or deleted in Prefect's page stays so. Returns what to note for the next
    time, which comes as `before`. Raises ParamsError when `cron` is none.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    now = {"deployment": str(deployment.id), "cron": cron}
    if now == before:
        return now
    ours = next((schedule for schedule in deployment.schedules if schedule.slug == SLUG), None)
    if cron is None:
        if ours is not None:
            client.delete_deployment_schedule(deployment.id, ours.id)
        return now
    try:
        schedule = CronSchedule(cron=cron)
    except ValueError:
        raise ParamsError(f"retrain.cron: {cron}: not a time of cron; give one such as 0 3 * * 0, or null") from None
    if ours is None:
        made = DeploymentScheduleCreate(schedule=schedule, active=True, slug=SLUG)
        client.create_deployment_schedules(deployment.id, [made])
    else:
        client.update_deployment_schedule(deployment.id, ours.id, schedule=schedule)
    return now
