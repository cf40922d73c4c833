"""`make status`: what runs, what it is doing, what waits, what the gate said last, and what the last batches were like.

It only looks: nothing is started, and a server that is down is one line of the answer. Each part is gathered by itself,
so one that cannot be had does not hide the others.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from densitywatch import environment
from densitywatch.errors import DataError, DensitywatchError
from densitywatch.files import read_json
from densitywatch.params import Params, load_params
from densitywatch.text import as_text, one_line, visible
from densitywatch.tracking.store import is_own, plain, sqlite_path, tracking_uri
from pipelines import dvc_commands, listening, prefect_home, reports, run_lock, run_processes, service_processes
from pipelines.worker import WORKERS

SHOWN = 5
"""Batches, verdicts and waiting batches that are listed."""
SECONDS = 5.0
"""How long a server has to answer."""
NAMES = {"prefect": "Prefect", "mlflow": "MLflow", reports.NAME: reports.NAMED, "worker": "Worker"}
WORDS = 110
"""Characters of a sentence from elsewhere."""


def status(root: Path) -> dict[str, Any]:
    """All of it, as JSON has it. Times are in seconds since 1970, ages in seconds."""
    params = load_params(root / "params.yaml")
    servers = _servers(params, root)
    return {
        "servers": servers,
        "runs": _parts(lambda: _runs(root, servers)),
        "inbox": _parts(lambda: _inbox(params, root)),
        "gate": _parts(lambda: _gate(params, root)),
        "batches": _parts(lambda: _batches(params, root)),
        "look_at": _look_at(params, root),
    }


def _parts(gather: Callable[[], Any]) -> Any:
    """What `gather` returns, or {"problem": a sentence} where it fails."""
    try:
        return gather()
    except (DensitywatchError, OSError, ValueError, KeyError, TypeError) as error:
        return {"problem": visible(one_line(error))}


def _servers(params: Params, root: Path) -> list[dict[str, Any]]:
    """Each program of `make up`: whether it lives and answers, where, and its process."""
    noted = {entry["name"]: entry for entry in service_processes.noted(root)}
    addresses = _addresses(root)
    store = tracking_uri(params, root)
    found: list[dict[str, Any]] = []
    for name in [*NAMES, *(name for name in noted if name not in NAMES)]:
        if name == "mlflow" and not is_own(store):  # `make up` starts none
            found.append({"name": "MLflow", "state": "elsewhere", "address": plain(store), "pid": None, "log": None})
            continue
        entry = noted.get(name)
        process = service_processes.find(entry) if entry is not None else None
        shown = NAMES.get(name, name)
        address = addresses.get(shown)
        state = "up" if process is not None else "stopped" if entry is not None else "down"
        if state == "up" and address is not None:
            # people may reach it by another name
            near = f"http://{listening.reached()}:{urlsplit(address).port or 80}"
            health = f"{near}/api/health" if name == "prefect" else f"{near}/health"
            state = "up" if prefect_home.answers(health, SECONDS) else "does not answer"
        found.append(
            {
                "name": shown,
                "state": state,
                "address": address if state == "up" else None,
                "pid": process.pid if process is not None else None,
                "log": entry["log"] if entry is not None and state != "up" else None,
            }
        )
    for clone in sorted((root / WORKERS).glob("*/")):  # of `make worker`
        for entry in service_processes.noted(clone):
            process = service_processes.find(entry)
            state, pid = ("up", process.pid) if process is not None else ("stopped", None)
            log = None if pid else entry["log"]
            found.append({"name": f"Worker {clone.name}", "state": state, "address": None, "pid": pid, "log": log})
    return found


def _addresses(root: Path) -> dict[str, str]:
    try:
        known = read_json(root / "var" / "addresses.json")
    except (FileNotFoundError, DataError):
        return {}
    known = known if isinstance(known, dict) else {}
    return {str(name): str(address) for name, address in known.items()}


def _runs(root: Path, servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The flow runs that go on or wait for their turn, and what a run without the server is at."""
    address = next((server["address"] for server in servers if server["name"] == "Prefect"), None)
    found = _runs_of_server(root, address) if address is not None else []
    stages, pid = _stages(root), run_lock.holder(root)
    if pid and not any(run["state"] == "Running" for run in found):
        found.append({"name": f"process {pid}", "state": "Running", "started": _started(pid), "tasks": stages})
    elif stages and not any(run["tasks"] for run in found):
        found.append({"name": "a run", "state": "Running", "started": None, "tasks": stages})
    return found


def _runs_of_server(root: Path, address: str) -> list[dict[str, Any]]:
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    runs = _ask(root, address, "flow_runs/filter", {"flow_runs": states, "sort": "START_TIME_ASC", "limit": 20})
    tasks: list[Any] = []
    if runs:
        body = {
            "flow_runs": {"id": {"any_": [run["id"] for run in runs]}},
            "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        tasks = _ask(root, address, "task_runs/filter", body | {"limit": 100})
    return [
        {
            "name": as_text(str(run["name"])),
            "state": as_text(str((run.get("state") or {}).get("name"))),
            "started": _time(run.get("start_time")),
            "tasks": sorted(as_text(str(task["name"])) for task in tasks if task["flow_run_id"] == run["id"]),
            "page": f"{address}/runs/flow-run/{run['id']}",
        }
        for run in runs
    ]


def _ask(root: Path, address: str, path: str, body: dict[str, Any]) -> Any:
    login = base64.b64encode(prefect_home.login(root).encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    near = prefect_home.prefect_address(root) or f"{address}/api"  # people may reach it by another name
    request = Request(f"{near}/{path}", data=json.dumps(body).encode(), headers=headers)  # noqa: S310
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return json.loads(answer.read())
    except (URLError, OSError, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise DensitywatchError(f"Prefect's server did not say ({one_line(error)})") from None


def _stages(root: Path) -> list[str]:
    """The stages that DVC runs now for any run of this checkout."""
    found = set()
    for process, mark in run_processes.marked():
        if mark.split(" ", 2)[2:] == [str(root.resolve())]:
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            stage = dvc_commands.stage_of(words)
            if stage is not None:
                found.add(stage)
    return sorted(found)


def _started(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _inbox(params: Params, root: Path) -> dict[str, Any]:
    from densitywatch.batches.inbox import find_batches
    from densitywatch.batches.looks import oldest, read_look

    now = time.time()
    present = find_batches(params, root, now=now)
    waiting = [batch for batch in present if batch.state in ("ready", "waiting")]
    since = oldest(waiting)
    look = read_look(root / params.inbox.results)
    waiting.sort(key=lambda batch: now if batch.since is None else batch.since)
    return {
        "address": params.inbox.address,
        "cron": params.inbox.cron,
        "waiting": len(waiting),
        "complete": sum(batch.state == "ready" for batch in waiting),
        "oldest_age": None if since is None else max(0.0, now - since),
        "names": [batch.name for batch in waiting[:SHOWN]],
        "stray": sum(batch.state == "stray" for batch in present),
        "last_look": None if look is None else look.model_dump(),
    }


def _gate(params: Params, root: Path) -> list[dict[str, Any]]:
    """The newest entry of each model's history, the newest first."""
    from densitywatch.registry.read_history import read_history, registered_models

    database = sqlite_path(tracking_uri(params, root))
    if database is not None and not database.is_file():
        return []
    rows = []
    for name in registered_models(params, root):
        champion, entries = read_history(name, params, root)
        for entry in entries[:1]:
            what = f"{entry.outcome}, {entry.reason}" if entry.reason else entry.outcome
            when = datetime.fromisoformat(entry.at).timestamp()
            rows.append({"model": name, "version": entry.after, "champion": champion, "reason": what, "time": when})
    return sorted(rows, key=lambda row: row["time"], reverse=True)


def _batches(params: Params, root: Path) -> list[dict[str, Any]]:
    from densitywatch.batches.batch_table import read_table
    from densitywatch.batches.over_time import drift_in_words

    results = root / params.inbox.results
    rows = read_table(results) if results.is_dir() else []
    return [
        {
            "batch": row.folder,
            "time": row.time,
            "files": row.files,
            "flagged": row.outliers,
            "flagged_share": row.flagged_share,
            "quarantined": row.quarantined,
            "drift": drift_in_words(row, params.inbox.drift_alarm),
            "drift_alarm": row.drift_alarm,
        }
        for row in reversed(rows[-SHOWN:])
    ]


def _look_at(params: Params, root: Path) -> dict[str, str]:
    """Where to look further: addresses where servers run, files otherwise."""
    from densitywatch.batches.results_folder import OVER_TIME

    places = {"batches over time": root / params.inbox.results / OVER_TIME, "models": root / "reports" / "index.html"}
    at = reports.address(root)
    served = {"batches over time": f"{at}/", "models": f"{at}/{reports.TRAINING}/"}
    return {
        name: served[name] if at is not None else str(file.resolve()) for name, file in places.items() if file.is_file()
    }


def text(found: dict[str, Any], now: float) -> str:
    """`status` for people, on one screen."""
    lines = ["Servers"]
    width = max(len(server["name"]) for server in found["servers"]) + 2
    down = [server["name"] for server in found["servers"] if server["state"] == "down"]
    for server in found["servers"]:
        if server["state"] == "up":
            lines.append(f"  {server['name']:<{width}}{server['address'] or 'runs':<30}process {server['pid']}")
        elif server["state"] == "elsewhere":
            lines.append(f"  {server['name']:<{width}}{server['address']:<30}not of this checkout")
        elif server["state"] != "down":
            lines.append(f"  {server['name']:<{width}}{server['state']}; see {server['log']}")
    if down:
        lines.append(f"  {', '.join(down)} {'is' if len(down) == 1 else 'are'} down; `make up` starts what is down")
    lines += ["", "Runs", *_indented(found["runs"], lambda run: _run(run, now), "none goes on")]
    lines += ["", *_inbox_text(found["inbox"], now)]
    lines += [
        "",
        "The last change of each champion, or the last refusal",
        *_indented(found["gate"], _verdict, "none yet", most=SHOWN),
    ]
    lines += ["", "The last batches", *_indented(found["batches"], _batch, "none yet")]
    if found["look_at"]:
        lines += ["", "Look at", *(f"  {name:<19}{where}" for name, where in found["look_at"].items())]
    return "\n".join(visible(line) for line in lines)


def _indented(part: Any, line: Callable[[Any], str], none: str, most: int | None = None) -> list[str]:
    if isinstance(part, dict):
        return [f"  not known: {part['problem']}"]
    lines = [f"  {line(one)}" for one in part[:most]]
    left = len(part) - len(lines)
    return [*lines, *([f"  and {left} more: --json shows all"] if left else [])] or [f"  {none}"]


def _run(run: dict[str, Any], now: float) -> str:
    since = f", for {age(now - run['started'])}" if run["started"] is not None else ""
    tasks = f": {', '.join(run['tasks'])}" if run["tasks"] else ""
    return f"{run['name']}, {run['state'].lower()}{since}{tasks}"


def _inbox_text(inbox: dict[str, Any], now: float) -> list[str]:
    if "problem" in inbox:
        return ["Inbox", f"  not known: {inbox['problem']}"]
    lines = [f"Inbox {inbox['address']}, looked at by the schedule {inbox['cron']}"]
    if inbox["waiting"]:
        count = inbox["waiting"]
        more = ", ..." if count > len(inbox["names"]) else ""
        old = f", the oldest for {age(inbox['oldest_age'])}" if inbox["oldest_age"] is not None else ""
        what = f"{count:,} {'batch waits' if count == 1 else 'batches wait'} ({inbox['complete']:,} complete)"
        lines.append(f"  {what}{old}: {', '.join(inbox['names'])}{more}")
    else:
        lines.append("  nothing waits")
    if inbox["stray"]:
        lines.append(f"  {inbox['stray']:,} loose {'file is' if inbox['stray'] == 1 else 'files are'} part of no batch")
    look = inbox["last_look"]
    if look is not None:
        well = "all went well" if not look["failed"] else f"{look['failed']} failed: {look['failures'][0][:WORDS]}"
        lines.append(f"  last look {age(now - look['time'])} ago: {look['scored']:,} scored, {well}")
        if look["failed"] and look["last_success"] is not None:
            lines.append(f"  the last look without a failure was {age(now - look['last_success'])} ago")
    return lines


def _verdict(verdict: dict[str, Any]) -> str:
    champion = verdict["champion"]
    now = "no champion" if champion is None else f"champion {champion}"
    reason = verdict["reason"]
    reason = reason if len(reason) <= WORDS else f"{reason[: WORDS - 1]}…"
    return f"{_when(verdict['time'])}  {verdict['model']} ({now}): {reason}"


def _batch(batch: dict[str, Any]) -> str:
    from densitywatch.batches.over_time import percent

    share = f"{batch['flagged']:,} flagged ({percent(batch['flagged_share'])} %)"
    return (
        f"{_when(batch['time'])}  {batch['batch'][:40]}: {batch['files']:,} files, {share},"
        f" {batch['quarantined']:,} quarantined; drift: {batch['drift']}"
    )


def age(seconds: float) -> str:
    """A time span in the unit that fits: 40 s, 12 min, 3 h, 5 days."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _time(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC).timestamp()


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--json"]):
        print("usage: python -m pipelines status [--json]", file=sys.stderr)
        return 2
    try:
        environment.settle(os.environ)
        found = status(Path.cwd())
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=2) if arguments else text(found, time.time()))
    return 0
