"""Registering, promoting and rolling back, on a real sqlite store with tiny real models."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.errors import ModelError, RegistryError
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.gate import Decision
from densitywatch.tracking import runs as tracking
from densitywatch.training.bookkeeping import note_training
from tests.registry.registry_project import aliases, images, write_model


def test_registering_the_same_bytes_again_returns_the_version_that_has_them(params: Params, root: Path) -> None:
    write_model(root, "twice")
    first = registry.register("twice", params, root)
    assert registry.register("twice", params, root) == first == 1
    write_model(root, "twice", steps=1)
    assert registry.register("twice", params, root) == 2
    assert aliases(params, root, "twice") == {"challenger": "2"}
    write_model(root, "twice")
    assert registry.register("twice", params, root) == 1
    assert aliases(params, root, "twice") == {"challenger": "1"}


def test_a_version_that_a_server_made_twice_because_its_answer_was_lost_is_there_once(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def twice(self: MlflowClient, *given: Any, **named: Any) -> Any:
        create(self, *given, **named)
        return create(self, *given, **named)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    write_model(root, "lost_answer")
    assert registry.register("lost_answer", params, root) == 1
    client = tracking.open_client(tracking.tracking_uri(params, root))
    found = client.search_model_versions("name = 'densitywatch-lost_answer'")
    assert [int(version.version) for version in found] == [1]
    assert aliases(params, root, "lost_answer") == {"challenger": "1"}
    assert registry.register("lost_answer", params, root) == 1


def test_a_version_names_the_run_that_trained_it(params: Params, root: Path) -> None:
    folder = write_model(root, "pixelcnn", steps=2)
    with tracking.training_run(
        "pixelcnn", params, root, dataset_name="slopes", dataset_digest="0" * 64, stage="train@pixelcnn"
    ) as run:
        pass
    note_training(folder / WEIGHTS, "pixelcnn", root, {"mlflow_run_id": run.run_id})
    version = registry.register("pixelcnn", params, root)
    client = tracking.open_client(tracking.tracking_uri(params, root))
    found = client.get_model_version("densitywatch-pixelcnn", str(version))
    assert found.run_id == run.run_id
    assert found.tags["kind"] == "pixelcnn"
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1


def test_what_is_not_whole_is_not_registered(params: Params, root: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        registry.register("never_trained", params, root)
    (write_model(root, "cut") / WEIGHTS).write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        registry.register("cut", params, root)


def test_promote_moves_the_champion_and_rollback_moves_it_back_for_good(params: Params, root: Path) -> None:
    name = "spine"
    write_model(root, name)
    registry.register(name, params, root)
    assert registry.promote(name, params, root).passed
    assert aliases(params, root, name)["champion"] == "1"
    write_model(root, name, steps=40)
    registry.register(name, params, root)
    decision = registry.promote(name, params, root)
    assert decision.passed
    assert decision.reason.startswith("version 2 passed: bits/dim")
    client = tracking.open_client(tracking.tracking_uri(params, root))
    tags = client.get_model_version(f"densitywatch-{name}", "2").tags
    assert tags["gate"] == decision.reason
    assert json.loads(tags["gate_figures"]) == decision.figures
    assert {"candidate", "champion", "difference", "at_most", "margin", "confidence"} <= decision.figures.keys()
    assert aliases(params, root, name) == {"champion": "2", "challenger": "2"}
    assert "already" in registry.promote(name, params, root).reason

    assert registry.rollback(name, params, root) == 1
    assert aliases(params, root, name)["champion"] == "1"
    refused = registry.promote(name, params, root)  # nothing changed since, as in a second `make run`
    assert not refused.passed
    assert "rolled back" in refused.reason
    with pytest.raises(RegistryError, match="no champion before it"):
        registry.rollback(name, params, root)
    assert registry.promote(name, params, root, version=2).passed
    assert aliases(params, root, name)["champion"] == "2"
    assert registry.rollback(name, params, root) == 1


def test_a_worse_or_broken_candidate_does_not_become_champion(params: Params, root: Path) -> None:
    name = "guarded"
    write_model(root, name, steps=40)
    registry.register(name, params, root)
    registry.promote(name, params, root)
    for number, spoil in ((2, None), (3, math.nan)):
        write_model(root, name, spoil=spoil)
        assert registry.register(name, params, root) == number
        decision = registry.promote(name, params, root)
        assert not decision.passed
        assert str(decision).startswith(f"version {number} rejected")
        assert aliases(params, root, name) == {"champion": "1", "challenger": str(number)}


def test_a_first_champion_that_is_taken_back_leaves_none(params: Params, root: Path) -> None:
    write_model(root, "withdrawn")
    registry.register("withdrawn", params, root)
    assert registry.promote("withdrawn", params, root).passed
    assert registry.rollback("withdrawn", params, root, to_none=True) is None
    assert "champion" not in aliases(params, root, "withdrawn")
    assert not registry.promote("withdrawn", params, root).passed


def test_a_first_version_with_a_broken_figure_does_not_become_champion(params: Params, root: Path) -> None:
    write_model(root, "first_nan", spoil=math.nan)
    registry.register("first_nan", params, root)
    assert not registry.promote("first_nan", params, root).passed
    assert "champion" not in aliases(params, root, "first_nan")


def test_a_champion_that_changed_behind_the_gate_is_left_alone(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "raced"
    for steps in (0, 1):
        write_model(root, name, steps=steps)
        registry.register(name, params, root)
    client = tracking.open_client(tracking.tracking_uri(params, root))

    def slow_gate(*_: object) -> Decision:
        client.set_registered_model_alias("densitywatch-raced", "champion", "1")
        return Decision(True, "passed")

    monkeypatch.setattr(registry, "gate", slow_gate)
    with pytest.raises(RegistryError, match="the champion changed"):
        registry.promote(name, params, root)
    assert aliases(params, root, name)["champion"] == "1"


def test_the_environment_is_as_before_after_registering(params: Params, root: Path) -> None:
    write_model(root, "quiet")
    before = dict(os.environ)
    registry.register("quiet", params, root)
    changed = {key for key in {*before, *os.environ} if before.get(key) != os.environ.get(key)}
    assert "MLFLOW_TRACKING_URI" not in changed
    assert "MLFLOW_REGISTRY_URI" not in changed


def test_nothing_registered_holds_a_pickle(params: Params, root: Path) -> None:
    write_model(root, "plain")
    registry.register("plain", params, root)
    folder = registry.download_model("models:/densitywatch-plain@challenger", params, root).parents[1]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"serving.py", "artifacts/model/model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


class Planted:
    """What runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_pickle_that_was_put_in_the_place_of_a_versions_code_is_not_run(
    params: Params, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    write_model(root, "planted")
    registry.register("planted", params, root)
    folder = registry.download_model("models:/densitywatch-planted@challenger", params, root).parents[1]
    shutil.copytree(folder, tmp_path / "version")
    facts = yaml.safe_load((tmp_path / "version" / "MLmodel").read_text())
    loaded = facts["flavors"]["python_function"]
    del loaded["model_code_path"]
    loaded |= {"python_model": "python_model.pkl", "cloudpickle_version": "3"}
    (tmp_path / "version" / "MLmodel").write_text(yaml.safe_dump(facts))
    (tmp_path / "version" / "python_model.pkl").write_bytes(pickle.dumps(Planted(tmp_path / "mark")))

    def load() -> None:
        with warnings.catch_warnings(), suppress(Exception):  # whatever MLflow makes of it
            warnings.simplefilter("ignore")
            mlflow.pyfunc.load_model(str(tmp_path / "version"))

    load()
    assert not (tmp_path / "mark").exists()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    load()
    assert (tmp_path / "mark").exists(), "the test plants what MLflow would run"


def test_the_detector_goes_with_its_models_and_is_gated(params: Params, root: Path) -> None:
    write_model(root, "pixelcnn", steps=40)
    member = registry.register("pixelcnn", params, root)
    calibrate(params, root)
    version = registry.register("detector", params, root)
    client = tracking.open_client(tracking.tracking_uri(params, root))
    tags = client.get_model_version("densitywatch-detector", str(version)).tags
    assert tags["member.pixelcnn"] == f"densitywatch-pixelcnn/{member}"
    decision = registry.promote("detector", params, root)
    assert decision.passed, decision
    folder = registry.download_model("models:/densitywatch-detector@champion", params, root)
    shown = detector.load(folder).score(images(3, 7))
    assert ((shown.p_value > 0) & (shown.p_value <= 1)).all()

    again = registry.register("pixelcnn", params, root)  # the same weights, and now the scores for their p-values
    assert again == member + 1
    assert registry.register("detector", params, root) >= version

    write_model(root, "pixelcnn", steps=3)
    with pytest.raises(ModelError, match="calibrated with other weights of pixelcnn"):
        registry.register("detector", params, root)


def test_two_promotions_at_once_happen_one_after_the_other(params: Params, root: Path) -> None:
    name = "queue"
    write_model(root, name)
    registry.register(name, params, root)
    with ThreadPoolExecutor(2) as pool:  # the lock is one of files: two threads meet it as two processes do
        answers = [str(decision) for decision in pool.map(lambda _: registry.promote(name, params, root), range(2))]
    first, second = sorted(answers, key=lambda answer: "already" in answer)
    assert first.startswith("version 1 passed")
    assert second == "version 1 is the champion already"
