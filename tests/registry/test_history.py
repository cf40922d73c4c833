"""The history of a registered model in a real store: nothing that happened to the champion is missing or untrue."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from densitywatch import cli
from densitywatch.registry import history
from densitywatch.registry import versions as registry
from densitywatch.registry.history import Actor, Entry, as_tag, entries, entry, from_tag
from densitywatch.registry.read_history import registered_models
from tests.registry.shelf import Shelf

ANNA = Actor("anna", "command line", note="the new camera")


def told(found: list[Entry]) -> list[tuple[str, str | None, str | None]]:
    return [(one.outcome, one.before, one.after) for one in found]


def test_promotions_refusals_and_rollbacks_stand_in_the_history_with_who_when_and_figures(shelf: Shelf) -> None:
    assert told(shelf.history) == [("promoted", "2", "3"), ("promoted", "1", "2"), ("promoted", None, "1")]
    shelf.add(9.0)
    refused = registry.promote(shelf.name, shelf.params, shelf.root, actor=ANNA)
    assert not refused.passed
    registry.rollback(shelf.name, shelf.params, shelf.root, actor=Actor("otto", "rollback", "http://prefect/run"))
    back, rejected, *_ = shelf.history
    assert told([back, rejected]) == [("rolled back", "3", "2"), ("rejected", "3", "4")]
    assert (rejected.by, rejected.through, rejected.note) == ("anna", "command line", "the new camera")
    assert (back.by, back.through, back.run) == ("otto", "rollback", "http://prefect/run")
    assert rejected.reason == refused.reason
    assert dict(rejected.figures) == refused.figures
    assert rejected.figures["candidate"] == 9.0
    age = datetime.now(UTC) - datetime.strptime(back.at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert -1 <= age.total_seconds() < 120


def test_mlflows_page_shows_it_in_the_tags_of_the_model_and_of_its_versions(shelf: Shelf) -> None:
    shelf.rollback()
    tags = shelf.client.get_registered_model(shelf.model).tags
    values = [json.loads(value) for key, value in sorted(tags.items()) if key.startswith("history.")]
    assert [value["outcome"] for value in values] == ["promoted", "promoted", "promoted", "rolled back"]
    assert "rolled back: version 3 -> 2" in tags["last_change"]
    of_version = shelf.client.get_model_version(shelf.model, "2").tags["history"].splitlines()
    assert len(of_version) == 3, of_version
    assert "rolled back: version 3 -> 2" in of_version[0]
    assert "promoted: version 1 -> 2" in of_version[2]
    assert "history_announced" not in tags


def test_a_move_by_hand_is_noted_once_and_so_is_the_move_back(shelf: Shelf) -> None:
    shelf.by_hand(2)
    for _ in range(2):
        shelf.retrain()
    assert told(shelf.history)[:2] == [("moved by hand", "3", "2"), ("promoted", "2", "3")]
    assert shelf.history[0].through == "MLflow's page"
    assert "a promotion found it" in shelf.history[0].reason
    shelf.by_hand(3)
    shelf.retrain()
    assert told(shelf.history)[0] == ("moved by hand", "2", "3")
    shelf.by_hand(None)
    shelf.by_hand(2)
    assert shelf.rollback() == 1
    assert told(shelf.history)[:2] == [("rolled back", "2", "1"), ("moved by hand", "3", "2")]


def test_the_same_refusal_is_not_written_twice_in_a_row(shelf: Shelf) -> None:
    shelf.add(9.0)
    for _ in range(3):
        shelf.retrain()
    assert told(shelf.history)[:2] == [("rejected", "3", "4"), ("promoted", "2", "3")]
    assert not registry.promote(shelf.name, shelf.params, shelf.root, actor=ANNA).passed
    assert shelf.history[0].by == "anna", "that a person asked is news"
    shelf.rollback()
    shelf.retrain()
    assert [one.outcome for one in shelf.history[:2]] == ["rejected", "rolled back"]


def test_a_version_that_was_rolled_back_and_not_taken_again_stands_there_as_refused(shelf: Shelf) -> None:
    shelf.rollback()
    shelf.retrain()
    assert told(shelf.history)[0] == ("rejected", "2", "3")
    assert "was rolled back" in shelf.history[0].reason


WRITES = (
    "set_registered_model_tag",
    "set_registered_model_alias",
    "set_model_version_tag",
    "delete_registered_model_tag",
)


@pytest.mark.parametrize("step", range(12))
def test_wherever_a_promotion_is_killed_the_next_one_sets_the_history_right(
    shelf: Shelf, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    from mlflow import MlflowClient

    calls: list[str] = []

    def dying(name: str) -> Any:
        kept = getattr(MlflowClient, name)

        def call(self: Any, *arguments: Any) -> Any:
            if len(calls) == step:
                raise Killed
            calls.append(name)
            return kept(self, *arguments)

        return call

    shelf.add(0.5)
    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(MlflowClient, name, dying(name))
        try:
            shelf.promote()
            killed = False
        except Killed:
            killed = True
    assert killed == (step < 11), f"a promotion writes {len(calls)} times: {calls}"
    moved = shelf.champion == 4
    shelf.add(0.4)
    assert shelf.promote().passed
    first = [("promoted", "3", "4")] if moved else []
    assert told(shelf.history)[: len(first) + 2] == [
        ("promoted", "4" if moved else "3", "5"),
        *first,
        ("promoted", "2", "3"),
    ]
    assert "history_announced" not in shelf.client.get_registered_model(shelf.model).tags


def test_a_change_is_shown_once_the_alias_is_moved_also_before_anybody_wrote_its_entry(shelf: Shelf) -> None:
    shelf.add(0.5)
    history.announce(shelf.client, shelf.model, entry("promoted", "3", "4", ANNA))
    assert told(shelf.history)[0] == ("promoted", "2", "3"), "announced and not done"
    shelf.by_hand(4)
    assert told(shelf.history)[:2] == [("promoted", "3", "4"), ("promoted", "2", "3")]


def test_a_store_from_before_has_no_history_and_gets_one_with_the_next_change(shelf: Shelf) -> None:
    for key in shelf.client.get_registered_model(shelf.model).tags:
        if key.startswith("history."):
            shelf.client.delete_registered_model_tag(shelf.model, key)
    assert shelf.history == []
    shelf.add(0.5)
    shelf.retrain()
    assert told(shelf.history) == [("promoted", "3", "4")]


TWO = """
import sys, time
from pathlib import Path
from densitywatch.registry import versions as registry
from tests.registry.registry_project import tiny_params
from tests.registry.shelf import compare

root, both = Path(sys.argv[2]), sys.argv[3:]

def slow(*arguments):
    until = time.monotonic() + 500
    while not all((root / f"begun-{number}").exists() for number in both) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    return compare(*arguments)

registry.gate = slow
registry.prepare_store(tiny_params(), root)  # what is imported on the way takes seconds
(root / f"begun-{both[0]}").touch()
print(registry.promote(sys.argv[1], tiny_params(), root, int(both[0])).reason)
"""


@pytest.mark.timeout(900)  # two processes that import all of this; a busy machine takes its time
def test_of_two_promotions_in_two_processes_one_waits_and_both_stand_in_the_history(
    shelf: Shelf, project_root: Path
) -> None:
    numbers = [shelf.add(0.5), shelf.add(0.4)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, shelf.name, str(shelf.root), str(number), *map(str, numbers)],
            cwd=project_root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]
    try:
        said = [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    waited = [f"{shelf.name}: another promotion runs; waiting for it" in err for _, err in said]
    assert sum(waited) == 1, said
    verdicts = {
        number: "rejected" if "rejected" in out else "promoted" for number, (out, _) in zip(numbers, said, strict=True)
    }
    assert {one.after: one.outcome for one in shelf.history[:2]} == {str(k): v for k, v in verdicts.items()}
    assert str(shelf.champion) == shelf.history[0].champion


def test_what_a_tag_cannot_hold_is_cut_and_what_json_cannot_say_is_a_text() -> None:
    long = entry(
        "rejected", "1", "2", Actor("a" * 999, "retrain", note="n" * 9999), "r" * 9999, {"candidate": float("nan")}
    )
    text = as_tag(long)
    assert len(text) <= history.MOST
    back = from_tag(text)
    assert back is not None
    assert json.loads(text, parse_constant=pytest.fail)["figures"] == {"candidate": "nan"}
    assert back.reason.endswith("…")
    assert len(back.reason) > 1000
    assert len(back.note) == history.WORDS
    quotes = as_tag(
        entry("rejected", "1", "2", Actor(note='"\\' * 5000), '"\\' * 5000, {f"k{i}": 1.0 for i in range(400)})
    )
    assert len(quotes) <= history.MOST
    assert from_tag(quotes) is not None


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[1]", "{}", '{"at": 1}', "[" * 99999, as_tag(entry("promoted", "1", "2", ANNA))[:-1]]
)
def test_what_somebody_else_wrote_into_a_tag_is_passed_over(text: str) -> None:
    good = entry("promoted", "1", "2", ANNA, "r")
    assert entries({"history.0001.aa": text, "history.0002.bb": as_tag(good), "historical": "x"}) == [good]


def test_entries_are_in_the_order_of_their_numbers_also_past_ten_thousand() -> None:
    made = [entry("promoted", str(i), str(i + 1), ANNA) for i in range(3)]
    tags = {f"history.{n}.ff": as_tag(one) for n, one in zip(("9999", "10000", "10001"), made, strict=True)}
    assert entries(tags) == made[::-1]
    seen = entry("moved by hand", "3", "4", Actor(through="MLflow's page"))
    both = {"history.0001.aa": as_tag(seen), "history.0001.bb": as_tag(seen)}
    assert entries(both) == [seen], "two machines saw it"


def test_the_oldest_entries_go(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 4)
    for figure in (0.5, 0.4, 0.3):
        shelf.add(figure)
        shelf.promote()
    assert told(shelf.history) == [("promoted", str(n), str(n + 1)) for n in (5, 4, 3, 2)]


def test_the_verb_shows_it_to_people_and_to_programs(
    shelf: Shelf, project_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.rollback(
        shelf.name, shelf.params, shelf.root, actor=Actor("anna", "command line", note="a \x1b[31mred\x1b[0m herring")
    )
    (shelf.root / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    monkeypatch.chdir(shelf.root)

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["densitywatch", "history", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    lines = said(shelf.name).splitlines()
    assert lines[0] == f"{shelf.name}: version 2 is champion"
    assert len(lines) == 5
    assert "rolled back: version 3 -> 2 (anna, command line); note: a \\x1b[31mred" in lines[1]
    assert "\x1b" not in "".join(lines)
    assert len(said(shelf.name, "-n", "1").splitlines()) == 2
    found = json.loads(said(shelf.name, "--json"))
    assert [one["outcome"] for one in found] == ["rolled back", "promoted", "promoted", "promoted"]
    assert {"model", *history.KEYS} == found[0].keys()
    assert (found[0]["model"], found[0]["from"], found[0]["to"]) == (shelf.name, "3", "2")
    assert shelf.name in registered_models(shelf.params, shelf.root)
    assert {one["model"] for one in json.loads(said("--json"))} >= {shelf.name}


def test_a_model_that_is_not_registered_is_one_sentence(
    shelf: Shelf, project_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf.root / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    monkeypatch.chdir(shelf.root)
    monkeypatch.setattr(sys, "argv", ["densitywatch", "history", "nobody"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "densitywatch-nobody: the registry has no such model" in capsys.readouterr().err
