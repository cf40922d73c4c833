"""The flows `promote` and `rollback` on a real Prefect server, with a registry in a real store and no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from densitywatch.errors import ParamsError, RegistryError
from densitywatch.params import load_params
from densitywatch.registry import versions as registry
from pipelines import promotion, retrain
from tests.registry.shelf import Shelf, compare

pytestmark = pytest.mark.usefixtures("prefect_server")
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The working directory is a project whose vae has had two champions, and has a better challenger."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(registry, "gate", compare)
    params = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^  slots: \d+", "  slots: 1", params))
    monkeypatch.chdir(tmp_path)
    shelf = Shelf("vae", load_params(tmp_path / "params.yaml"), tmp_path)
    for figure in (3.0, 2.0):
        shelf.add(figure)
        assert shelf.promote().passed
    shelf.add(1.0)
    return shelf


def artifact(key: str) -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return list(json.loads(str(max(found, key=lambda one: one.created).data)))


def test_a_promotion_ends_with_the_history_which_says_who_asked_why_and_in_which_run(shelf: Shelf) -> None:
    state = promotion.promote("vae", reason="the *new* <b>camera</b>", asked_by="anna", return_state=True)
    assert state.is_completed()
    assert shelf.champion == 3
    newest = shelf.history[0]
    assert (newest.by, newest.through, newest.note) == ("anna", "promote", "the *new* <b>camera</b>")
    assert str(state.state_details.flow_run_id) in newest.run
    assert newest.run.startswith("http")
    rows = artifact("history-vae")
    assert [(row["outcome"], row["from"], row["to"]) for row in rows] == [
        ("promoted", "2", "3"),
        ("promoted", "1", "2"),
        ("promoted", "", "1"),
    ]
    assert rows[0]["note"] == "the ?new? ?b?camera?/b?"
    assert (rows[0]["candidate"], rows[0]["champion"]) == (1.0, 2.0)
    assert "anna, promote, http" in rows[0]["by"]


def test_a_version_that_the_gate_refuses_ends_the_run_in_a_state_of_that_name_with_the_reason(shelf: Shelf) -> None:
    shelf.add(9.0)
    state = promotion.promote("vae", return_state=True)
    assert state.is_failed()
    assert state.name == promotion.REJECTED == "Rejected"
    assert "worse than the champion's 2.0000" in str(state.message)
    assert shelf.champion == 2
    assert artifact("history-vae")[0]["outcome"] == "rejected"
    assert promotion.promote("vae", version=3, return_state=True).is_completed()
    assert shelf.champion == 3
    assert promotion.promote("vae", version=4, afresh=True, return_state=True).is_completed()
    assert shelf.champion == 4


def test_a_rollback_puts_the_previous_champion_back_and_shows_it(shelf: Shelf) -> None:
    assert promotion.rollback("vae", reason="too many flags") == 1
    assert shelf.champion == 1
    row = artifact("history-vae")[0]
    assert (row["outcome"], row["from"], row["to"], row["note"]) == ("rolled back", "2", "1", "too many flags")
    with pytest.raises(RegistryError, match="no champion before it"):
        promotion.rollback("vae")


def test_a_model_that_is_not_there_is_one_sentence(shelf: Shelf) -> None:
    with pytest.raises(ParamsError, match=r"no model 'x' in params.yaml; there is: .*vae.*detector"):
        promotion.promote("x")


def test_the_page_offers_the_models_as_choices_and_describes_every_parameter(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.utilities.callables import parameter_schema_from_entrypoint

    from pipelines.deployments import CHOOSE_A_MODEL, parameters_of

    assert set(CHOOSE_A_MODEL) == {"promote", "rollback"}
    monkeypatch.chdir(PROJECT)
    for name in CHOOSE_A_MODEL:
        schema = parameters_of(name, f"pipelines/promotion.py:{name}", shelf.params)
        fields = schema["properties"]
        assert fields["model"]["enum"] == promotion.names(shelf.params) == [*shelf.params.models, "detector"]
        assert schema["required"] == ["model"]
        assert all(len(field.get("description", "")) > 10 for field in fields.values()), fields
        assert "root" not in fields
    entrypoint = "pipelines/retrain.py:retrain"
    assert parameters_of("retrain", entrypoint, shelf.params) == (
        parameter_schema_from_entrypoint(entrypoint).model_dump()
    )


def test_the_artifact_gate_of_a_retrain_has_the_change_and_its_figures(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    monkeypatch.setattr(registry, "register", lambda *_: 3)
    monkeypatch.setattr(retrain.check_champion, "fn", lambda name, params, root: None)

    @flow(name="retrain")
    def release_twice() -> None:
        promotion.ensure_device_limit()
        verdicts = [retrain.release("vae", shelf.params, shelf.root) for _ in range(2)]
        promotion.gate_table(verdicts, shelf.params, shelf.root)

    state = release_twice(return_state=True)
    assert state.is_completed()
    promoted, unchanged = artifact("gate")
    assert (promoted["outcome"], promoted["from"], promoted["to"]) == ("promoted", "2", "3")
    assert (promoted["candidate"], promoted["champion"], promoted["measure"]) == (1.0, 2.0, "bits")
    assert "bits 1.0000, better than the champion's 2.0000" in promoted["gate"]
    assert (unchanged["outcome"], unchanged["from"]) == ("unchanged", "")
    newest = shelf.history[0]
    assert newest.through == "retrain"
    assert str(state.state_details.flow_run_id) in newest.run


def test_a_champion_that_a_retrain_could_not_use_goes_back_and_the_history_says_so(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    def broken(name: str, params: Any, root: Path) -> None:
        raise RegistryError("densitywatch-vae: no finite number")

    monkeypatch.setattr(registry, "register", lambda *_: 3)
    monkeypatch.setattr(retrain.check_champion, "fn", broken)

    @flow(name="retrain")
    def release_alone() -> Any:
        promotion.ensure_device_limit()
        return retrain.release("vae", shelf.params, shelf.root)

    with pytest.raises(RegistryError, match="no finite number"):
        release_alone()
    assert shelf.champion == 2
    back, made = shelf.history[:2]
    assert (back.outcome, back.before, back.after) == ("rolled back", "3", "2")
    assert (made.outcome, made.before, made.after) == ("promoted", "2", "3")
    assert back.reason == "the new champion could not be used"
    assert back.through == "retrain"
