"""From a drift alarm to a message and a retraining: when each is due, and the events that ask for it.

The scheduled job calls `follow_alarm` at the end of every run. A new alarm is told at once, and once. It asks for a
retraining once, too, and again when there is more to learn: with `data.accept: reviewed` when a person has called more
images fine, with `all` also when further batches have come. An ask that had images to learn from begins
`retrain.cool_down` hours in which none follows; what is asked for meanwhile is not lost, it waits. A retraining that
did not end well is asked for again after as long. Automations of `make up` (automations.py) act on the events.
"""

from __future__ import annotations

import hashlib
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
from pipelines import run_lock, server
from pipelines.drift_note import FILE, Alarm, Asked, believed, held, stands
from pipelines.prefect_text import first_line, plain_words

EVENT = "densitywatch.drift"
"""Asks for a retraining."""
ALARM = "densitywatch.drift-alarm"
"""Tells of a new alarm."""
HOUR = 3600.0


def follow_alarm(
    summaries: Sequence[Mapping[str, Any]], params: Params, root: Path, *, began: float, now: float
) -> bool:
    """Note what these summaries say of drift, tell of a new alarm, and ask for a retraining where one is due.

    Returns whether it asked. `summaries`: of the batches that this run scored, in their order; may be empty. `began`:
    when the run did; what one says that began before another detector came on watch is of the old one's stream, and
    counts no more. A noted time of the future is not believed: the alarm counts, and no cool-down goes on. A server
    that does not take the events is named, fails nothing, and is asked again at the next run.
    """
    results = root / params.inbox.results
    if not summaries and not (results / FILE).exists():
        return False
    with held(results) as known:
        ended = believed(known.ended, now)
        if ended is None or began >= ended:
            for summary in summaries:
                known.alarm = _after(known.alarm, summary, params, results)
        alarm = known.alarm
        if alarm is None or not stands(alarm, params):
            known.alarm = None
            return False
        learnable, images = _learnable(alarm, params, root)
        asks = _is_due(known, alarm, learnable, images, params, root, now)
        events = [*([] if alarm.told else [ALARM]), *([EVENT] if asks else [])]
        if not events or not _emit(events, alarm, params):
            return False
        alarm.told = True
        if asks:
            alarm.asked, alarm.asked_at = learnable, now
            known.last = now if images else known.last
        return asks


def _is_due(known: Asked, alarm: Alarm, learnable: str, images: int, params: Params, root: Path, now: float) -> bool:
    """Whether a retraining is to be asked for now."""
    cool_down = params.retrain.cool_down * HOUR
    last = believed(known.last, now)
    if last is not None and now < last + cool_down:
        return False
    if alarm.asked is None or (alarm.asked != learnable and images):
        return True
    if alarm.learnt == alarm.asked:
        return False
    # it failed, or its process is gone; or it waits for a worker: then for an hour at least
    return now >= (believed(alarm.asked_at, now) or 0.0) + max(cool_down, HOUR) and run_lock.holder(root) is None


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
    if params.data.accept == "reviewed":
        return digest, fine
    return hashlib.sha256("\n".join([digest, *sorted(alarm.batches)]).encode()).hexdigest()[:16], fine + 1


def _emit(events: Sequence[str], alarm: Alarm, params: Params) -> bool:
    """Emit these events of the alarm; returns whether the server took them."""
    logger = get_run_logger()
    if server.is_temporary():
        logger.warning("no server of `make up`, so nobody hears of the drift alarm; run `make run` to retrain")
        return False
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event_of(event, alarm, params) for event in events])
    except Exception as error:  # the batch is scored all the same
        named = " and ".join(events)
        logger.warning("Prefect's server did not take the event %s: %s", named, visible(first_line(error)))
        return False
    for event in events:
        logger.info("the event %s is out: %s", event, visible(alarm.batch))
    return True


def event_of(event: str, alarm: Alarm, params: Params) -> dict[str, Any]:
    """One of the events of an alarm. Its texts are plain words: names from outside hold no markup."""
    from densitywatch.batches.drift_state import in_words

    run = flow_run.id
    words = plain_words(in_words(alarm.moved))
    batch, since = plain_words(alarm.batch), plain_words(alarm.since)
    evidence = f"a normal stream shows this much at most once in {alarm.evidence:,.0f}"
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    return {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
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
