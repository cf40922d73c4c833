"""Who decides the champion: a person's move stays, the trail is kept, and lost files are stood in for."""

from __future__ import annotations

from typing import Any

import pytest

from densitywatch.errors import RegistryError
from densitywatch.registry import versions as registry
from densitywatch.registry.read_history import is_champion
from pipelines import detect_outliers, retrain
from tests.registry.shelf import Shelf


def test_a_champion_that_a_person_chose_stays_until_promote_is_asked_for(shelf: Shelf) -> None:
    shelf.by_hand(2)
    shelf.add(0.5)
    said = shelf.retrain()
    assert shelf.champion == 2
    assert said == (
        "version 2 was made champion by hand and stays; "
        f"`densitywatch promote {shelf.name}` lets automatic promotion go on"
    )
    shelf.retrain()
    assert shelf.champion == 2, "one run more is no decision"
    assert shelf.promote().passed
    assert shelf.champion == 4
    shelf.add(0.4)
    shelf.retrain()
    assert shelf.champion == 5, "automatic promotion goes on"


def test_a_release_of_an_unchanged_champion_waits_for_no_device(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> None:
        raise AssertionError("a device slot was asked for")

    monkeypatch.setattr(retrain, "device_slot", taken)
    assert "already" in shelf.retrain()
    shelf.add(0.5)
    with pytest.raises(AssertionError, match="was asked for"):
        shelf.retrain()
    assert not is_champion("nobody", shelf.params, shelf.root)


def test_the_next_move_by_hand_counts_as_well_and_a_move_back_hands_over(shelf: Shelf) -> None:
    shelf.by_hand(2)
    shelf.by_hand(1)
    shelf.add(0.5)
    shelf.retrain()
    assert shelf.champion == 1
    shelf.by_hand(3)
    shelf.retrain()
    assert shelf.champion == 4


def test_a_promotion_that_the_gate_rejects_lets_automatic_ones_go_on_too(shelf: Shelf) -> None:
    shelf.by_hand(2)
    shelf.add(9.0)
    rejected = shelf.promote()
    assert not rejected.passed
    assert "automatic promotion goes on" in rejected.reason
    assert shelf.champion == 2
    shelf.add(0.5)
    shelf.retrain()
    assert shelf.champion == 5


def test_promoting_the_version_that_a_person_chose_hands_over(shelf: Shelf) -> None:
    shelf.add(9.0)
    shelf.by_hand(4)
    assert "already" in shelf.promote().reason
    shelf.add(8.0)
    shelf.retrain()
    assert shelf.champion == 5
    assert shelf.rollback() == 4
    assert shelf.rollback() == 3


def test_rollback_after_a_move_by_hand_goes_further_back_and_what_was_left_does_not_return(shelf: Shelf) -> None:
    shelf.by_hand(2)
    assert shelf.rollback() == 1
    said = shelf.retrain()  # the challenger is version 3, which the person had left
    assert "rolled back" in said
    assert shelf.champion == 1


def test_without_its_alias_the_last_champion_is_what_a_candidate_is_compared_with(shelf: Shelf) -> None:
    shelf.by_hand(None)
    shelf.add(2.5)
    said = shelf.retrain()
    assert "rejected: bits 2.5000, worse than the champion's 1.0000" in said
    assert "the alias champion is gone; version 3, the newest champion that can be verified, stood in" in said
    assert shelf.champion is None
    shelf.add(0.5)
    shelf.retrain()
    assert shelf.champion == 5
    assert shelf.rollback() == 3, "the trail goes on where it was"
    assert shelf.rollback() == 2


def test_without_its_alias_the_watch_takes_the_last_champion_and_says_so(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.by_hand(None)
    assert shelf.loaded() == 1.0
    assert "the alias champion is gone; version 3, the newest champion" in capsys.readouterr().err
    assert shelf.rollback() == 3
    assert shelf.champion == 3


def test_a_champion_without_files_is_stood_in_for_and_it_is_said(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.lose(1.0)
    assert shelf.loaded() == 2.0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "version 3: its files are gone" in said
    assert "version 2, the newest champion that can be verified, stood in" in said
    shelf.add(1.5)
    verdict = shelf.promote()
    assert verdict.passed
    assert "better than the champion's 2.0000" in verdict.reason
    assert "version 3: its files are gone" in verdict.reason
    assert shelf.champion == 4
    assert registry.rollback(shelf.name, shelf.params, shelf.root, reason="too many flags") == 2
    assert "passed over: " in capsys.readouterr().err
    assert shelf.history[0].reason.startswith("too many flags; passed over: densitywatch-")


def test_the_scheduled_job_says_which_version_stands_in(shelf: Shelf) -> None:
    watch = shelf.params.model_copy(update={"inbox": shelf.params.inbox.model_copy(update={"labels": shelf.name})})
    shelf.lose(1.0)
    (said,) = detect_outliers.stand_ins(watch, shelf.root)
    assert "version 3: its files are gone" in said
    assert said.endswith("version 2, the newest champion that can be verified, stood in")
    shelf.lose(2.0)
    shelf.lose(3.0)
    assert detect_outliers.stand_ins(watch, shelf.root) == [], "scoring itself says why it cannot"


def test_a_new_champion_is_checked_itself_and_not_what_stands_in_for_it(shelf: Shelf) -> None:
    shelf.lose(1.0)
    with pytest.raises(RegistryError, match="version 3: its files are gone"):
        retrain.check_champion.fn(shelf.name, shelf.params, shelf.root)


def test_a_champion_whose_files_were_altered_or_whose_version_was_deleted_is_stood_in_for(shelf: Shelf) -> None:
    (shelf.root / "mlartifacts" / shelf.name / "1.0" / "artifacts" / "model" / "figure").write_text("0.1")
    assert shelf.loaded() == 2.0
    shelf.client.delete_model_version(shelf.model, "2")
    assert shelf.loaded() == 3.0
    assert shelf.rollback() == 1


def test_where_no_champion_can_be_verified_one_sentence_names_the_way_out(shelf: Shelf) -> None:
    for figure in (3.0, 2.0, 1.0):
        shelf.lose(figure)
    with pytest.raises(RegistryError, match=r"no champion can be verified.*densitywatch register"):
        shelf.loaded()
    with pytest.raises(RegistryError, match=r"no champion before it that can be verified; .densitywatch promote"):
        shelf.rollback()
    shelf.add(7.0)
    verdict = shelf.promote()
    assert verdict.passed
    assert "no other can be verified" in verdict.reason
    assert shelf.loaded() == 7.0


def test_afresh_compares_with_nothing_and_keeps_the_trail(shelf: Shelf) -> None:
    shelf.add(9.0)
    assert not shelf.promote().passed
    assert shelf.promote(afresh=True).passed
    assert shelf.champion == 4
    assert shelf.rollback() == 3


def test_going_back_and_forth_never_turns_in_a_circle(shelf: Shelf) -> None:
    assert shelf.promote(1, afresh=True).passed
    assert shelf.rollback() == 3
    assert shelf.rollback() == 2
    assert shelf.rollback() == 1
    with pytest.raises(RegistryError, match="no champion before it"):
        shelf.rollback()


@pytest.mark.parametrize("step", ["set_registered_model_alias", "set_registered_model_tag"])
def test_a_promotion_that_was_killed_on_the_way_is_no_move_by_hand(
    shelf: Shelf, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    calls: list[str] = []
    from mlflow import MlflowClient

    kept = getattr(MlflowClient, step)

    def die(self: Any, *arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == (1 if step.endswith("alias") else 2):
            raise Killed
        return kept(self, *arguments)

    shelf.add(0.5)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, step, die)
        with pytest.raises(Killed):
            shelf.promote()
    shelf.add(0.4)
    shelf.retrain()
    assert shelf.champion == 5
    assert shelf.rollback() in (3, 4)


def test_a_store_of_the_release_before_has_its_trail_in_the_versions(shelf: Shelf) -> None:
    shelf.client.delete_registered_model_tag(shelf.model, "champions")
    for version, before in ((1, ""), (2, "1"), (3, "2")):
        shelf.client.set_model_version_tag(shelf.model, str(version), "previous_champion", before)
    shelf.by_hand(2)
    shelf.add(0.5)
    shelf.retrain()
    assert shelf.champion == 2
    shelf.by_hand(3)
    shelf.retrain()
    assert shelf.champion == 4
    assert [shelf.rollback(), shelf.rollback(), shelf.rollback()] == [3, 2, 1]
