"""What `make up` puts into Prefect's server to act without a hand: drift or the clock starts a retraining, and
somebody is told.

They are made once. What a person changes in Prefect's page (switched off, another action) stays, unless params.yaml
says something else than at the last `make up`: then they are made anew or taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from densitywatch.params import Params
from densitywatch.progress import say
from pipelines.drift_loop import ALARM, EVENT
from pipelines.retrain_schedule import keep_schedule

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import BlockDocument

RETRAIN = "Retrain when the stream has moved"
TELL_DRIFT = "Tell of a drift alarm"
TELL_FAILED = "Tell of a run that failed or crashed"
ENDED_BADLY = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
# texts of a run are from outside: what could be markup, for Slack or in a mail, is taken out
WITHOUT_MARKUP = "| replace('<', '(') | replace('>', ')') | replace('&', ' and ') | replace('@', '(at)')"


def keep_automations(client: SyncPrefectClient, params: Params, before: dict[str, Any]) -> dict[str, Any]:
    """Bring the automations to what params say; returns what to note for the next time, which comes as `before`."""
    retrain = next((found for found in client.read_deployments() if found.name == "retrain"), None)
    _keep_retrain(client, retrain.id if retrain else None, params.retrain.on_drift)
    schedule = keep_schedule(client, retrain, params.retrain.cron, before.get("retrain")) if retrain else None
    _keep_notices(client, params.notify.block, before.get("notify"))
    return {"notify": params.notify.block, "retrain": schedule}


def _keep_retrain(client: SyncPrefectClient, deployment: UUID | None, wanted: bool) -> None:
    from prefect.events.actions import RunDeployment

    present = client.read_automations_by_name(RETRAIN)
    if deployment is None or not wanted:
        for one in present:
            client.delete_automation(one.id)
        return
    stale = [one for one in present if getattr(one.actions[0], "deployment_id", None) != deployment]
    for one in stale:  # of a deployment that was deleted and made anew
        client.delete_automation(one.id)
    if len(present) > len(stale):
        return

    def of_event(key: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{key} }}}}"}

    action = RunDeployment(
        source="selected",
        deployment_id=deployment,
        job_variables=None,
        parameters={"drift": of_event("batch"), "asked_by": of_event("scored_by")},
    )
    _make(client, RETRAIN, {EVENT}, ["densitywatch.stream.*"], action)


def _keep_notices(client: SyncPrefectClient, block: str | None, before: str | None) -> None:
    present = {name: client.read_automations_by_name(name) for name in (TELL_DRIFT, TELL_FAILED)}
    if block != before or block is None:
        for ones in present.values():
            for one in ones:
                client.delete_automation(one.id)
        present = {name: [] for name in present}
    if block is None:
        return
    document = _block(client, block)
    if document is None:
        kind, _, name = block.partition("/")
        say(
            f"warning: notify.block: Prefect has no block {name} of the type {kind}, so nobody is told; make it on"
            f" Prefect's page (/blocks/catalog/{kind}/create), then run `make up` again"
        )
        return
    if not present[TELL_DRIFT]:
        action = _tell(document, block, "densitywatch: the stream has moved", "{{ event.payload.sentence }}")
        _make(client, TELL_DRIFT, {ALARM}, ["densitywatch.stream.*"], action)
    if not present[TELL_FAILED]:
        run, message = (f"{{{{ flow_run.{key} {WITHOUT_MARKUP} }}}}" for key in ("name", "state.message"))
        action = _tell(
            document, block, "densitywatch: a run ended badly", f"{run}: {{{{ flow_run.state.name }}}}. {message}"
        )
        _make(client, TELL_FAILED, ENDED_BADLY, ["prefect.flow-run.*"], action, of_deployments=True)


def _block(client: SyncPrefectClient, block: str) -> BlockDocument | None:
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    try:
        return client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        return None


def _tell(document: BlockDocument, block: str, subject: str, body: str) -> Any:
    """The action that sends a text: a plain webhook gets JSON, everything else is one of Prefect's notifications."""
    from prefect.events.actions import CallWebhook, SendNotification

    if block.startswith("webhook/"):
        text = f"{{% set text %}}{body}{{% endset %}}"
        return CallWebhook(
            block_document_id=document.id,
            payload=f'{text}{{"subject": "{subject}", "text": {{{{ text | string | tojson }}}}}}',
        )
    return SendNotification(block_document_id=document.id, subject=subject, body=body)


def _make(
    client: SyncPrefectClient,
    name: str,
    expect: set[str],
    resources: list[str],
    action: Any,
    *,
    of_deployments: bool = False,
) -> None:
    """Do `action` at each of these events. How often they come is for who emits them to say."""
    from datetime import timedelta

    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    related: dict[str, str | list[str]] = {"prefect.resource.role": "deployment"} if of_deployments else {}
    trigger = EventTrigger(
        expect=expect,
        match=ResourceSpecification({"prefect.resource.id": resources}),
        match_related=ResourceSpecification(related),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    client.create_automation(AutomationCore(name=name, trigger=trigger, actions=[action]))
