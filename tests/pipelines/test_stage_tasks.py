"""The graph as Prefect runs it, on a server of the tests' own."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from densitywatch.registry.gate import Decision
from densitywatch.registry.resampling import Measurement
from pipelines import device_slots, dvc_commands, dvc_graph, retrain, server, stage_tasks
from pipelines.run_times import Step

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(root: Path, graph: list[dvc_graph.Stage], stale: set[str], **options: Any) -> tuple[list[Step], dict[str, str]]:
    """The steps of one run of the graph, and the name of each task run's last state in Prefect."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.runtime import flow_run

    found: dict[str, Any] = {}

    @flow
    def graph_alone() -> list[Step]:
        found["id"] = flow_run.get_id()
        device_slots.ensure_device_limit()
        return stage_tasks.run_graph(root, graph, stale, **options)

    try:
        steps = graph_alone()
    except dvc_commands.StageFailed as error:
        steps, found["error"] = [], str(error)
    until = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:  # the server hears of the last states a little later
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [found["id"]]}))
            if time.monotonic() > until or not any(task.state_name in ("Running", "Pending") for task in runs):
                break
            time.sleep(0.2)
    states = {task.name: str(task.state_name) for task in runs}
    if "error" in found:
        states["error"] = found["error"]
    return steps, states


GRAPH = [
    dvc_graph.Stage("fetch", (), False),
    dvc_graph.Stage("train@a", ("fetch",), True),
    dvc_graph.Stage("train@b", ("fetch",), True),
    dvc_graph.Stage("evaluate@a", ("train@a",), True),
    dvc_graph.Stage("evaluate@b", ("train@b",), True),
]


def test_one_task_a_stage_named_after_it_and_only_what_is_stale_or_after_it_asks_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        asked.append(name)
        return "ran"

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    steps, states = run(tmp_path, GRAPH, {"train@a"})
    assert asked == ["train@a", "evaluate@a"]
    assert [step.name for step in steps] == [stage.name for stage in GRAPH]
    assert states == {
        "fetch": "Skipped",
        "train@a": "Completed",
        "train@b": "Skipped",
        "evaluate@a": "Completed",
        "evaluate@b": "Skipped",
    }


def test_a_look_is_taken_every_time_and_the_fetch_after_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fails_once = ["fetch"]

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        asked.append(name)
        if name in fails_once:
            fails_once.remove(name)
            raise dvc_commands.StageFailed(f"stage {name}: no answer")
        return "ran" if name == "look" else "skipped"

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    graph = [
        dvc_graph.Stage("look", (), False, always=True),
        dvc_graph.Stage("fetch", ("look",), False),
        dvc_graph.Stage("train@a", ("fetch",), True),
    ]
    steps, _ = run(tmp_path, graph, set())
    assert asked == ["look", "fetch", "fetch"]
    assert [step.outcome for step in steps] == ["ran", "skipped", "skipped"]

    asked.clear()
    fails_once.append("look")
    _, states = run(tmp_path, graph, set())
    assert states["error"] == "stage look: no answer"
    assert asked == ["look"], "an address that is wrong is wrong the next time"


def lasting(seconds: float) -> Any:
    """A stage that does nothing for so long."""

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        time.sleep(seconds)
        return "ran"

    return run_stage


def test_two_stages_that_use_the_device_never_run_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_commands, "run_stage", lasting(0.3))
    steps, _ = run(tmp_path, GRAPH, {"train@a", "train@b"})
    using = sorted((step for step in steps if step.name != "fetch"), key=lambda step: step.started)
    assert all(first.ended <= second.started + 0.05 for first, second in itertools.pairwise(using))


def test_with_two_slots_two_stages_run_beside_each_other_and_no_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    def set_slots(slots: int) -> None:
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit(device_slots.DEVICE_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots))

    monkeypatch.setattr(dvc_commands, "run_stage", lasting(1.5))
    device_slots.ensure_device_limit()
    set_slots(2)
    try:
        steps, _ = run(
            tmp_path,
            [dvc_graph.Stage(f"train@{name}", (), True) for name in "abcd"],
            set(map("train@{}".format, "abcd")),
        )
    finally:
        set_slots(1)
    at_once = [sum(other.started <= step.started < other.ended for other in steps) for step in steps]
    assert max(at_once) == 2


def test_what_is_wanted_first_runs_before_all_else_and_is_put_to_use_while_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_commands, "run_stage", lasting(0.3))
    used: list[float] = []

    def then() -> None:
        used.append(time.time())
        time.sleep(0.5)
        used.append(time.time())

    # b's training is ready as soon as a's, and would keep a's evaluation waiting
    first = dvc_graph.with_ancestors(GRAPH, {"evaluate@b"})
    assert first == {"fetch", "train@b", "evaluate@b"}
    steps, _ = run(tmp_path, GRAPH, {stage.name for stage in GRAPH}, first=first, then=then)
    ended = {step.name: step.ended for step in steps}
    started = {step.name: step.started for step in steps}
    assert ended["evaluate@b"] <= used[0] < used[1] <= started["train@a"]


def test_what_fails_when_the_first_are_put_to_use_is_raised_when_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        asked.append(name)
        return "ran"

    def then() -> None:
        raise dvc_commands.StageFailed("the gate cannot be asked")

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    _, states = run(tmp_path, GRAPH, {stage.name for stage in GRAPH}, first={"fetch"}, then=then)
    assert states["error"] == "the gate cannot be asked"
    assert len(asked) == len(GRAPH)


def test_a_failed_stage_stops_what_depends_on_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        if name == "train@a":
            raise dvc_commands.StageFailed("stage train@a: the loss is NaN at step 3")
        return "ran"

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    _, states = run(tmp_path, GRAPH, {"train@a", "train@b"})
    assert states["error"] == "stage train@a: the loss is NaN at step 3"
    assert states["train@a"] == "Failed"
    assert states["evaluate@b"] == "Completed"
    assert "Completed" not in (states.get("evaluate@a"),)


def test_a_source_that_fails_once_is_tried_again_and_the_flow_goes_on(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_tasks, "AGAIN_AFTER", [0.1, 0.1])
    text = (toy / "dvc.yaml").read_text()
    (toy / "dvc.yaml").write_text(text.replace("cmd: mkdir", "cmd: test -e tried || ! touch tried && mkdir", 1))
    graph = [stage for stage in dvc_graph.read_graph(toy) if stage.name in ("fetch", "train@a")]
    steps, states = run(toy, graph, {"fetch", "train@a"})
    assert (toy / "tried").is_file()
    assert [(step.name, step.outcome) for step in steps] == [("fetch", "ran"), ("train@a", "ran")], states
    assert (toy / "models" / "a").read_text() == "a 1\n"


def test_a_source_that_fails_for_good_is_asked_three_times_and_a_training_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_tasks, "AGAIN_AFTER", [0.1, 0.1])
    asked: list[str] = []

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        asked.append(name)
        if name in ("fetch", "train@a"):
            raise dvc_commands.StageFailed(f"stage {name}: it failed")
        return "ran"

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    graph = [
        dvc_graph.Stage("fetch", (), False),
        dvc_graph.Stage("prepare", (), False),
        dvc_graph.Stage("train@a", ("prepare",), True),
    ]
    _, states = run(tmp_path, graph, {stage.name for stage in graph})
    assert states["error"] == "stage fetch: it failed"
    assert sorted(asked) == ["fetch"] * 3 + ["prepare", "train@a"]


def test_a_push_that_fails_once_is_tried_again_and_another_checkout_takes_all_from_there(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    monkeypatch.setattr(retrain.push, "retry_delay_seconds", [0.1, 0.1])
    store = tmp_path / "store"
    store.write_text("a disk that is not there yet")
    run_dvc = dvc_commands.run_dvc
    run_dvc(toy, "remote", "add", "-d", "there", str(store))
    run_dvc(toy, "repro", "-q", "fetch")
    failures: list[str] = []

    def run_and_mend(root: Path, *arguments: str) -> str:
        try:
            return run_dvc(root, *arguments)
        except dvc_commands.StageFailed as error:
            failures.append(str(error))
            store.unlink()
            raise

    monkeypatch.setattr(dvc_commands, "run_dvc", run_and_mend)

    @flow
    def there_and_back() -> list[str]:
        pushed = retrain.push(toy)
        shutil.rmtree(toy / "data")
        shutil.rmtree(toy / ".dvc" / "cache")
        return [pushed.outcome, retrain.pull(toy).outcome]

    assert there_and_back() == ["done", "done"]
    assert len(failures) == 1
    assert failures[0].startswith("dvc push: ")
    assert (toy / "data" / "raw").read_text() == "raw\n"
    assert "fetch" not in dvc_commands.stale_stages(toy)


class Registry:
    """Stands in for the registry: one verdict, and what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, verdict: Decision, *, healthy: bool = True) -> None:
        from densitywatch.errors import RegistryError
        from densitywatch.registry import read_history
        from densitywatch.registry import versions as registry

        self.calls: list[str] = []

        def call(name: str, answer: Any) -> Any:
            def recorded(*_: Any, **__: Any) -> Any:
                self.calls.append(name)
                if isinstance(answer, Exception):
                    raise answer
                return answer

            return recorded

        monkeypatch.setattr(registry, "register", call("register", 3))
        monkeypatch.setattr(read_history, "is_champion", lambda *_: False)
        monkeypatch.setattr(registry, "promote", call("promote", verdict))
        monkeypatch.setattr(registry, "rollback", call("rollback", 2))
        broken = RegistryError("densitywatch-vae: the files are not those that were registered")
        monkeypatch.setattr(registry, "download_model", call("load", Path() if healthy else broken))


def release(verdict: Decision, monkeypatch: pytest.MonkeyPatch, *, healthy: bool = True) -> tuple[Any, list[str]]:
    from prefect import flow

    registry = Registry(monkeypatch, verdict, healthy=healthy)

    @flow
    def release_alone() -> Any:
        device_slots.ensure_device_limit()
        return retrain.release("vae", None, Path())  # type: ignore[arg-type]  # only the registry looks at params

    try:
        return release_alone(), registry.calls
    except Exception as error:
        return error, registry.calls


PASSED = Decision(True, "version 3 passed: bits/dim 2.9", Measurement("bits/dim", 2.9))


def test_a_rejected_candidate_is_shown_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, calls = release(Decision(False, "version 3 rejected: its bits/dim is nan"), monkeypatch)
    assert (shown["outcome"], shown["gate"]) == ("rejected", "version 3 rejected: its bits/dim is nan")
    assert calls == ["register", "promote"]


def test_a_version_that_is_champion_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, calls = release(Decision(True, "version 3 is the champion already"), monkeypatch)
    assert shown["outcome"] == "unchanged"
    assert calls == ["register", "promote"]


def test_a_new_champion_that_cannot_be_loaded_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    error, calls = release(PASSED, monkeypatch, healthy=False)
    assert "not those that were registered" in str(error)
    assert calls == ["register", "promote", "load", "rollback"]


def test_what_comes_later_is_called_as_soon_as_its_own_stages_are_done_and_not_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    released = threading.Event()

    def release(name: str) -> None:
        called.append(name)
        released.set()

    def run_stage(name: str, root: Path, say: Any) -> dvc_commands.Outcome:
        if name == "train@a":
            raise dvc_commands.StageFailed("stage train@a: the loss is NaN at step 3")
        if name == "train@c" and not released.wait(240):  # a lease that was not given back lasts 90 s
            raise dvc_commands.StageFailed("what came later was not called while a stage computed")
        return "ran"

    monkeypatch.setattr(dvc_commands, "run_stage", run_stage)
    graph = [*GRAPH, dvc_graph.Stage("train@c", (), False)]
    later = [({f"evaluate@{name}"}, partial(release, name)) for name in "ab"]
    _, states = run(tmp_path, graph, {stage.name for stage in graph}, later=later)
    assert states["error"] == "stage train@a: the loss is NaN at step 3"
    assert states["train@c"] == "Completed"
    assert called == ["b"]


def test_stages_that_wait_together_start_in_the_order_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_commands, "run_stage", lasting(0.2))
    graph = [
        dvc_graph.Stage("prepare", (), False),
        *(dvc_graph.Stage(f"train@{name}", ("prepare",), True) for name in "abcd"),
    ]
    order = [f"train@{name}" for name in "dbca"]
    steps, _ = run(tmp_path, graph, {stage.name for stage in graph}, order=order)
    started = sorted((step.started, step.name) for step in steps if step.name != "prepare")
    assert [name for _, name in started] == order


def test_a_flow_within_another_leaves_the_slots_that_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    def in_use() -> int:
        with get_client(sync_client=True) as client:
            return int(client.read_global_concurrency_limit_by_name(device_slots.DEVICE_LIMIT).active_slots)

    monkeypatch.setattr(server, "is_temporary", lambda: True)  # its slots are set free when a run starts
    device_slots.ensure_device_limit()
    with device_slots.device_slot():
        assert in_use() == 1
        device_slots.ensure_device_limit()
        assert in_use() == 1
    device_slots.ensure_device_limit()
    assert in_use() == 0
