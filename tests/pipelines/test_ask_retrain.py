"""Asking a Prefect server for a run: what it says when the server, or the run, does not do what was asked.

A stand-in answers in place of the server; test_services.py asks a real one.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from pipelines import ask_retrain, retrain_result
from pipelines.ask_retrain import AskFailed, NoAnswer, Server
from tests.pipelines.test_retrain_result import result

PROJECT = Path(__file__).parents[2]
DEPLOYMENT = {"id": "d1", "parameter_openapi_schema": {"properties": {"ref": {}}}}


class StandIn(Server):
    """Answers by a path's first part; an answer that is an exception is raised, a list is given one by one."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("http://127.0.0.1:1/api", "")
        self.answers = {"deployments": [DEPLOYMENT, {"id": "r1"}], "set_state": {}} | answers
        self.asked: list[tuple[str, str, Any]] = []

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self.asked.append((method, path, body))
        key = "set_state" if path.endswith("set_state") else path.split("/")[0]
        answer = self.answers[key]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def state(kind: str, name: str = "", message: str = "") -> dict[str, Any]:
    return {"state": {"type": kind, "name": name or kind.capitalize(), "message": message}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ask_retrain, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, server: StandIn, *arguments: str) -> int:
    monkeypatch.setattr(ask_retrain, "_server", lambda: server)
    return ask_retrain.main([*arguments, "abc1234"])


def test_it_prints_each_state_once_then_verdicts_and_figures_and_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    states = [state("SCHEDULED"), state("RUNNING"), state("RUNNING"), NoAnswer("gone for a moment"), state("COMPLETED")]
    server = StandIn(flow_runs=states, artifacts=[[{"data": json.dumps(result())}]])
    assert run(monkeypatch, server, "--summary", "summary.md") == 0
    said = capsys.readouterr().out
    assert [line.split(" (")[0] for line in said.splitlines()[:5]] == [
        "asked for a run of abc1234",
        "http://127.0.0.1:1/runs/flow-run/r1",
        "Scheduled",
        "Running",
        "Completed",
    ]
    assert "  vae       promoted   3.20 is better than 3.26\n" in said
    assert "  | metrics/vae.json | x | 1 | 2 | 1 |\n" in said
    assert "files that changed: dvc.lock, metrics/gan.json, metrics/vae.json\n" in said
    assert len(said.splitlines()) < 20
    assert json.loads((tmp_path / ask_retrain.RESULT).read_text()) == result()
    assert (tmp_path / "summary.md").read_text() == retrain_result.page(result())
    (create,) = [body for method, path, body in server.asked if path == "deployments/d1/create_flow_run"]
    assert create["parameters"] == {"ref": "abc1234"}


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"deployments": NoAnswer("no answer from x; is it up?")}, "no answer from x; is it up?"),
        (
            {"deployments": AskFailed("x: 404 Not Found")},
            "has no deployment retrain/retrain; run `make up` where it is",
        ),
        ({"deployments": [{"id": "d", "parameter_openapi_schema": {}}]}, "takes no commit; run `make up` there again"),
        (
            {"flow_runs": state("FAILED", message="Flow run encountered an exception: StageFailed: stage x: no disk")},
            "the run ended Failed: stage x: no disk",
        ),
        ({"flow_runs": state("CANCELLED")}, "the run ended Cancelled: no reason given"),
        ({"flow_runs": state("CRASHED", message="its process is gone")}, "the run ended Crashed: its process is gone"),
        ({"flow_runs": state("COMPLETED"), "artifacts": [[]]}, "the run left no result"),
        ({"flow_runs": state("COMPLETED"), "artifacts": [[{"data": "[]"}]]}, "another form"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: dict[str, Any], sentence: str
) -> None:
    ask_retrain.RESULT.parent.mkdir(parents=True)
    ask_retrain.RESULT.write_text("of an earlier run")
    assert run(monkeypatch, StandIn(**answers)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert line.startswith("pipelines: ")
    assert not ask_retrain.RESULT.exists(), "an old result is not taken for this run's"


def test_a_run_that_takes_too_long_goes_on_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = StandIn(flow_runs=state("RUNNING"))
    assert run(monkeypatch, server, "--minutes", "0.001") == 1
    assert "it goes on: http://127.0.0.1:1/runs/flow-run/r1" in capsys.readouterr().err
    assert not [path for _, path, _ in server.asked if path.endswith("set_state")]


def test_a_run_without_a_worker_is_said_to_wait_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask_retrain, "IDLE_SECONDS", 0.0)
    server = StandIn(flow_runs=[state("SCHEDULED")] * 4 + [state("FAILED")])
    assert run(monkeypatch, server) == 1
    assert capsys.readouterr().out.count("or for a worker") == 1


def test_a_server_that_is_gone_for_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask_retrain, "GONE_SECONDS", 0.05)
    assert run(monkeypatch, StandIn(flow_runs=NoAnswer("no answer from x"))) == 1
    assert "no answer from x; the run may go on: http://" in capsys.readouterr().err


def test_stopping_the_one_who_waits_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = StandIn(flow_runs=KeyboardInterrupt())
    assert run(monkeypatch, server) == 130
    assert "the run is stopped too" in capsys.readouterr().err
    ((_, path, body),) = [call for call in server.asked if call[1].endswith("set_state")]
    assert path == "flow_runs/r1/set_state"
    assert body["state"]["type"] == "CANCELLING"


def test_addresses_that_are_none_are_refused() -> None:
    for api in ("file:///etc/passwd", "here", "ftp://x/api", "http:///api"):
        with pytest.raises(AskFailed, match="is no address"):
            Server(api, "")


def test_without_a_server_and_without_any_package_it_says_what_to_do(tmp_path: Path) -> None:
    """As on a runner of CI: a bare Python, which must not import anything that is installed."""
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}"}
    for module, message in (
        ("ask_retrain", "no Prefect server to ask; set PREFECT_API_URL, or start one with `make up`"),
        ("propose_retrain", "no var/retrain/result.json here"),
    ):
        done = subprocess.run(
            [sys.executable, "-S", "-m", f"pipelines.{module}", "main"],
            cwd=tmp_path,
            env=bare,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer, match=r"no answer from http://127\.0\.0\.1:1/api \(.*refused.*\); is it up\?"):
        Server("http://127.0.0.1:1/api", "a:b").call("GET", "health")


def test_a_branch_becomes_a_full_commit_name_where_git_knows_it() -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    assert ask_retrain._full_name("nowhere") == "nowhere"
    assert ask_retrain._full_name("--all") == "--all"
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    assert len(ask_retrain._full_name("HEAD")) == 40


@pytest.mark.parametrize(
    "answers",
    [
        {"deployments": [DEPLOYMENT, {}]},
        {"deployments": [DEPLOYMENT, {"id": "../admin\nx"}]},
        {"deployments": [{**DEPLOYMENT, "id": 7}]},
        {"flow_runs": [[]]},
        {"flow_runs": {"state": "COMPLETED"}},
        {"flow_runs": {"state": {"type": "COMPLETED"}}},
        {"artifacts": {"a": 1}},
        {"artifacts": [[{"data": "{"}]]},
        {"artifacts": [["x"]]},
    ],
)
def test_an_answer_of_another_form_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: dict[str, Any]
) -> None:
    whole = {"flow_runs": state("COMPLETED"), "artifacts": [[{"data": json.dumps(result())}]]}
    assert run(monkeypatch, StandIn(**{**whole, **answers})) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["pipelines: http://127.0.0.1:1/api: " + ask_retrain.OTHER_FORM]


@pytest.mark.parametrize("deployment", [None, 3, [], {"parameter_openapi_schema": None}])
def test_a_deployment_that_names_no_parameters_takes_no_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], deployment: Any
) -> None:
    assert run(monkeypatch, StandIn(deployments=[deployment])) == 1
    assert "takes no commit" in capsys.readouterr().err


class Opener:
    """In the place of the network: answers with these codes, one by one, and then with an id."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.bodies = list(codes), list[Any]()

    def open(self, request: Request, timeout: float) -> io.BytesIO:
        self.bodies.append(request.data)
        if self.codes:
            raise HTTPError(request.full_url, self.codes.pop(0), "busy", Message(), io.BytesIO())
        return io.BytesIO(b'{"id": "r1"}')


def test_a_busy_server_is_asked_again_and_makes_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_retrain, "BUSY_POLL_SECONDS", 0.0)
    server, opener = Server("http://127.0.0.1:1/api", ""), Opener(503, 503)
    monkeypatch.setattr(server, "_opener", opener)
    assert server.call("POST", "deployments/d1/create_flow_run", {"idempotency_key": "k"}) == {"id": "r1"}
    assert opener.bodies == [b'{"idempotency_key": "k"}'] * 3
    asked = StandIn(flow_runs=state("COMPLETED"))
    ask_retrain.ask(asked, "abc1234")
    assert len(asked.asked[-1][2]["idempotency_key"]) == 36, "so the server makes one run of many askings"


@pytest.mark.parametrize(("codes", "seconds"), [((503, 503, 503), 0.0), ((500, 503), 60.0), ((502, 503), 60.0)])
def test_a_server_that_stays_busy_or_has_failed_is_named_with_its_code(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], seconds: float
) -> None:
    monkeypatch.setattr(ask_retrain, "BUSY_SECONDS", seconds)
    monkeypatch.setattr(ask_retrain, "BUSY_POLL_SECONDS", 0.01)
    server, opener = Server("http://127.0.0.1:1/api", ""), Opener(*codes)
    monkeypatch.setattr(server, "_opener", opener)
    with pytest.raises(NoAnswer, match=f"answers with {codes[0]}"):
        server.call("GET", "flow_runs/r1")
