"""Ask a Prefect server for a run of one commit, wait, and say how it ended: `python -m pipelines ask REF`.

Standard library alone, so that CI installs nothing to ask: `make ask-retrain` runs it with any Python. The server is
PREFECT_API_URL's, with PREFECT_API_AUTH_STRING (user:password); without the variable it is that of `make up`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from densitywatch.errors import DensitywatchError
from densitywatch.text import as_text, visible
from pipelines import retrain_result

DEPLOYMENT = "retrain/retrain"
RESULT = Path("var") / "retrain" / "result.json"
OTHER_FORM = "its answer has not the form of Prefect's API; check PREFECT_API_URL"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
POLL_SECONDS = 5.0
BUSY_SECONDS, BUSY_POLL_SECONDS = 60.0, 2.0
"""How long a busy server is asked again, and how often."""
GONE_SECONDS = 300.0
"""How long a server that answered once may be gone: long enough for a restart."""
IDLE_SECONDS = 120.0
"""After this time without a worker the run is said to wait for one."""


class AskFailed(DensitywatchError):
    """The server did not do what was asked, or the run ended badly."""


class Server:
    """A Prefect server's API, as far as asking for a run needs it."""

    def __init__(self, api: str, login: str) -> None:
        if urlsplit(api).scheme not in ("http", "https") or not urlsplit(api).hostname:
            raise AskFailed(f"PREFECT_API_URL: '{as_text(api[:100])}' is no address; it looks like https://host/api")
        self.api, self._login = api.rstrip("/"), login
        local = urlsplit(api).hostname in ("127.0.0.1", "localhost", "::1")
        self._opener = build_opener(ProxyHandler({})) if local else build_opener()

    def page(self, run_id: str) -> str:
        """The address of a run's page."""
        return f"{self.api.removesuffix('/api')}/runs/flow-run/{run_id}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What the server answers; one that is busy (503) is asked again for BUSY_SECONDS.

        Raises AskFailed with one sentence, NoAnswer where the server cannot be reached.
        """
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self._call(method, path, body)
            except Busy:
                if time.monotonic() > until:
                    raise
            time.sleep(BUSY_POLL_SECONDS)

    def _call(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._login:
            headers["Authorization"] = f"Basic {base64.b64encode(self._login.encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.api}/{path}", data=data, headers=headers, method=method)  # noqa: S310 checked above
        try:
            with self._opener.open(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except HTTPError as error:
            with error:  # it holds the connection
                if error.code == 401:
                    raise AskFailed(
                        f"{self.api} refuses the login; set PREFECT_API_AUTH_STRING to the user:password of its"
                        " var/prefect.login"
                    ) from None
                if error.code >= 500:
                    raise (Busy if error.code == 503 else NoAnswer)(f"{self.api} answers with {error.code}") from None
                raise AskFailed(f"{self.api}/{path}: {error.code} {_said(error)}") from None
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NoAnswer(f"no answer from {self.api} ({as_text(str(reason))[:200]}); is it up?") from None


class NoAnswer(AskFailed):
    """The server cannot be reached at this moment."""


class Busy(NoAnswer):
    """The server is busy (503). Prefect's says so while another one holds its database."""


def _said(error: HTTPError) -> str:
    try:
        return as_text(" ".join(str(json.loads(error.read())["detail"]).split())[:300])
    except (ValueError, KeyError, TypeError, OSError):
        return as_text(str(error.reason))


def ask(server: Server, ref: str) -> str:
    """Ask for a run of `ref` and return its id; raises AskFailed."""
    try:
        deployment = server.call("GET", f"deployments/name/{DEPLOYMENT}")
    except NoAnswer:
        raise
    except AskFailed as error:
        if ": 404 " in str(error):
            raise AskFailed(f"{server.api} has no deployment {DEPLOYMENT}; run `make up` where it is") from None
        raise
    schema = deployment.get("parameter_openapi_schema") if isinstance(deployment, dict) else None
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or "ref" not in properties:
        raise AskFailed(f"the deployment {DEPLOYMENT} of {server.api} takes no commit; run `make up` there again")
    path = f"deployments/{_id(deployment, server)}/create_flow_run"
    # with a key, asking again makes no second run
    asked = {"parameters": {"ref": ref}, "tags": ["ci"], "idempotency_key": str(uuid.uuid4())}
    return _id(server.call("POST", path, asked), server)


def _id(answer: Any, server: Server) -> str:
    """The id in an answer, which becomes a part of an address. Raises AskFailed where it is none."""
    found = answer.get("id") if isinstance(answer, dict) else None
    if not isinstance(found, str) or re.fullmatch(r"[A-Za-z0-9-]{1,100}", found) is None:
        raise AskFailed(f"{server.api}: {OTHER_FORM}")
    return found


def _state(answer: Any, server: Server) -> dict[str, Any]:
    """The state in an answer about a run; empty where it has none yet. Raises AskFailed where it is none."""
    state = answer.get("state") if isinstance(answer, dict) else answer
    if isinstance(answer, dict) and state is None:
        return {}
    if not isinstance(state, dict) or not all(isinstance(state.get(key), str) for key in ("name", "type")):
        raise AskFailed(f"{server.api}: {OTHER_FORM}")
    return state


def wait(server: Server, run_id: str, minutes: float) -> Any:
    """Print each new state of the run until it has ended; return the last one.

    Raises AskFailed when it has not ended after `minutes`, or when the server is gone for too long; the run goes on.
    """
    started = seen = time.monotonic()
    shown, told = "", False
    while True:
        try:
            state = _state(server.call("GET", f"flow_runs/{run_id}"), server)
            seen = time.monotonic()
        except NoAnswer as error:
            if time.monotonic() - seen > GONE_SECONDS:
                raise AskFailed(f"{error}; the run may go on: {server.page(run_id)}") from None
            state = {}
        if state and state["name"] != shown:
            shown = state["name"]
            print(visible(f"{shown} ({_minutes(time.monotonic() - started)})"), flush=True)
        if state.get("type") in ENDED:
            return state
        if not told and state.get("type") in ("SCHEDULED", "PENDING") and time.monotonic() - started > IDLE_SECONDS:
            told = True
            print("it waits: for another run to end, or for a worker (`make up` starts one)", flush=True)
        if time.monotonic() - started > minutes * 60:
            raise AskFailed(f"not ended after {minutes:g} minutes; it goes on: {server.page(run_id)}")
        time.sleep(POLL_SECONDS)


def result_of(server: Server, run_id: str) -> dict[str, Any]:
    """What the run gave back; raises AskFailed where there is nothing, DataError where it cannot be used."""
    wanted = {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [retrain_result.KEY]}}
    found = server.call("POST", "artifacts/filter", {"artifacts": wanted, "limit": 1, "sort": "CREATED_DESC"})
    if not found:
        raise AskFailed(f"the run left no result: {server.page(run_id)}")
    try:
        data = found[0]["data"]
        return retrain_result.check(json.loads(data) if isinstance(data, str) else data)
    except (LookupError, TypeError, ValueError, RecursionError):
        raise AskFailed(f"{server.api}: {OTHER_FORM}") from None


def cancel(server: Server, run_id: str) -> None:
    """Ask the server to stop the run."""
    state = {"type": "CANCELLING", "name": "Cancelling", "message": "The one who asked for it was stopped."}
    server.call("POST", f"flow_runs/{run_id}/set_state", {"state": state, "force": False})


def _minutes(seconds: float) -> str:
    return f"after {seconds / 60:.1f} min"


def _server() -> Server:
    api = os.environ.get("PREFECT_API_URL", "")
    login = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("DENSITYWATCH_LOGIN", "")
    if not api:
        note, secret = Path("var") / "prefect.address", Path("var") / "prefect.login"
        if not note.is_file():
            raise AskFailed("no Prefect server to ask; set PREFECT_API_URL, or start one with `make up`")
        api = note.read_text(encoding="utf-8").strip()
        if "DENSITYWATCH_LOGIN" not in os.environ:
            login = secret.read_text(encoding="ascii").strip() if secret.is_file() else ""
    return Server(api, login)


def _full_name(ref: str) -> str:
    """The commit that `ref` names here, so that the server cannot take it for another; as given where unknown."""
    if re.fullmatch(r"[A-Za-z0-9_][\w./+@~^-]*", ref) is None:
        return ref  # the server refuses it with its sentence
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else ref


def _report(result: dict[str, Any], summary: str | None) -> None:
    print("\nverdicts")
    print("\n".join(f"  {line}" for line in retrain_result.verdict_lines(result)) or "  no candidate")
    print("\nfigures that changed")
    print("\n".join(f"  {line}" for line in retrain_result.figure_lines(result)) or "  none")
    print(f"\nfiles that changed: {', '.join(retrain_result.changed(result)) or 'none'}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(retrain_result.page(result))


def main(arguments: list[str]) -> int:
    """Exit code 0: the run ended well and its result is in var/retrain/result.json; 1: one sentence says why not."""
    parser = argparse.ArgumentParser(prog="python -m pipelines ask", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("ref", help="a commit, branch or tag; here it is made a full commit name, if git knows it")
    parser.add_argument("--minutes", type=float, default=340.0, help="how long to wait (default: %(default)g)")
    parser.add_argument("--summary", help="append the result to this Markdown file, such as $GITHUB_STEP_SUMMARY")
    given = parser.parse_args(arguments)
    run_id = ""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled workflow
    RESULT.unlink(missing_ok=True)
    try:
        server = _server()
        try:
            ref = _full_name(given.ref)
            run_id = ask(server, ref)
            print(f"asked for a run of {visible(ref)}\n{server.page(run_id)}", flush=True)
            state = wait(server, run_id, given.minutes)
            if state["type"] != "COMPLETED":
                raise AskFailed(f"the run ended {state['name']}: {_reason(state)}")
            _report(result_of(server, run_id), given.summary)
        except KeyboardInterrupt:
            if run_id:
                cancel(server, run_id)
            print("stopped; the run is stopped too" if run_id else "stopped", file=sys.stderr)
            return 130
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return 1
    return 0


def _reason(state: Any) -> str:
    """A state's message without Prefect's own words around it."""
    said = " ".join(str(state.get("message") or "no reason given").split())
    return as_text(re.sub(r"^Flow run encountered an exception: (?:\w+: )?", "", said))[:500]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
