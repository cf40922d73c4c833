"""From a drift alarm to a retraining: when it is asked for, and the event that asks.

The scheduled job calls `follow_alarm` at the end of every run. An alarm asks once. With `data.accept: reviewed` there
is often nothing to learn from yet, because nobody has looked; so it asks again when a person has called more images
fine. An ask that had images to learn from begins `retrain.cool_down` hours in which none follows; what is asked for
meanwhile is not lost, it waits. An automation of `make up` (automations.py) starts the deployment `retrain` on the
event.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from densitywatch.params import Params
from densitywatch.text import visible
from pipelines import server
from pipelines.drift_note import FILE, Alarm, held, stands
from pipelines.prefect_text import first_line, plain_words

EVENT = "densitywatch.drift"
HOUR = 3600.0


def follow_alarm(summaries: Sequence[Mapping[str, Any]], params: Params, root: Path, *, now: float) -> bool:
    """Note what these summaries say of drift, and ask for a retraining where one is due; returns whether it did.

    `summaries`: of the batches that this run scored, in their order; may be empty. A server that does not take the
    event is named, fails nothing, and is asked again at the next run.
    """
    results = root / params.inbox.results
    if not summaries and not (results / FILE).exists():
        return False
    with held(results) as known:
        for summary in summaries:
            known.alarm = _after(known.alarm, summary, params, results)
        alarm = known.alarm
        if alarm is None or not stands(alarm, params):
            known.alarm = None
            return False
        learnable, images = _learnable(alarm, params, root)
        waits = known.last is not None and now < known.last + params.retrain.cool_down * HOUR
        if alarm.asked == learnable or waits or (alarm.asked is not None and not images):
            return False
        if not _ask(alarm, params):
            return False
        alarm.asked = learnable
        known.last = now if images else known.last
        return True


def _after(alarm: Alarm | None, summary: Mapping[str, Any], params: Params, results: Path) -> Alarm | None:
    """The alarm that stands after this batch."""
    from densitywatch.batches.drift_state import batches_since

    if summary.get("drift_alarm") is None or summary.get("drift_stream") is None:  # the batch is in no stream
        return alarm
    if not summary["drift_alarm"]:
        # one from before the alarm that was scored again; in another stream, that of a new detector
        return alarm if alarm is not None and alarm.stream == summary["drift_stream"] else None
    stream, batch, since = (str(summary[key]) for key in ("drift_stream", "drift_alarm_batch", "drift_since"))
    name = Path(str(summary["folder"])).name
    if alarm is not None and (alarm.stream, alarm.batch) == (stream, batch):
        return alarm if name in alarm.batches else alarm.model_copy(update={"batches": [*alarm.batches, name]})
    names = batches_since(results, stream, since)
    if params.inbox.drift_seen in names:  # one under an alarm that a person has seen, scored again
        return alarm
    return Alarm(
        stream=stream,
        batch=batch,
        since=since,
        moved=str(summary["drift_moved"]),
        evidence=float(summary["drift_evidence"]),
        batches=names,
        seen=params.inbox.drift_seen,
    )


def _learnable(alarm: Alarm, params: Params, root: Path) -> tuple[str, int]:
    """A text that changes when a retraining would have more to learn from; and about how many images that is."""
    from densitywatch.batches.accepting import verdicts_digest

    if params.data.accept == "never":
        return "never", 0
    digest, fine = verdicts_digest(alarm.batches, params, root)
    return digest, fine + (1 if params.data.accept == "all" else 0)


def _ask(alarm: Alarm, params: Params) -> bool:
    """Emit the event; returns whether the server took it."""
    logger = get_run_logger()
    if server.is_temporary():
        logger.warning("no server of `make up`, so nobody hears of the drift alarm; run `make run` to retrain")
        return False
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event_of(alarm, params)])
    except Exception as error:  # the batch is scored all the same
        logger.warning("Prefect's server did not take the event %s: %s", EVENT, visible(first_line(error)))
        return False
    logger.info("the event %s is out: %s", EVENT, visible(alarm.batch))
    return True


def event_of(alarm: Alarm, params: Params) -> dict[str, Any]:
    """The event of an alarm. Its texts are plain words: names from outside hold no markup."""
    from densitywatch.batches.drift_state import in_words

    run = flow_run.id
    words = plain_words(in_words(alarm.moved))
    batch, since = plain_words(alarm.batch), plain_words(alarm.since)
    evidence = f"a normal stream shows this much at most once in {alarm.evidence:,.0f}"
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    return {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"densitywatch.stream.{alarm.stream}",
            "prefect.resource.name": plain_words(f"stream of {params.inbox.address}"),
        },
        "related": related,
        "payload": {
            "batch": batch,
            "since": since,
            "batches": len(alarm.batches),
            "moved": words,
            "evidence": evidence,
            "scored_by": str(run or ""),
            "sentence": f"The stream has moved: alarm at batch {batch}, most likely since batch {since}: {words}."
            f" {evidence[0].upper()}{evidence[1:]}.",
        },
    }
