"""Versions, the gate, champion and challenger, on a real sqlite store with tiny real models."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import densitywatch
from densitywatch.detector import detector
from densitywatch.errors import DensitywatchError, ModelError, RegistryError
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.gate import Decision, Measurement, cut_and_paste, gate, judge
from densitywatch.registry.version_files import content_digest
from densitywatch.tracking import runs as tracking
from densitywatch.training.bookkeeping import note_training
from tests.registry.registry_project import images, tiny_params, write_data, write_model


@pytest.fixture(scope="module")
def params() -> Params:
    return tiny_params()


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project and store for the tests of this file, each of which uses a model name of its own."""
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    return root


def aliases(params: Params, root: Path, name: str) -> dict[str, str]:
    client = tracking.open_client(tracking.tracking_uri(params, root))
    found = client.get_registered_model(f"densitywatch-{name}").aliases
    return {alias: str(version) for alias, version in found.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_candidate_without_a_finite_figure_is_rejected(value: float) -> None:
    assert not judge(Measurement("bits/dim", value), None, 0.0).passed
    assert not judge(Measurement("bits/dim", value), Measurement("bits/dim", 3.0), 1e9).passed


def test_a_champion_without_a_finite_figure_rejects_every_candidate() -> None:
    verdict = judge(Measurement("bits/dim", 2.0), Measurement("bits/dim", math.nan), 0.0)
    assert not verdict.passed
    assert "promote --afresh" in verdict.reason


def test_as_good_passes_and_worse_passes_within_the_tolerance_only() -> None:
    champion = Measurement("bits/dim", 3.0)
    assert judge(Measurement("bits/dim", 3.0), champion, 0.0).passed
    assert not judge(Measurement("bits/dim", 3.0001), champion, 0.0).passed
    assert judge(Measurement("bits/dim", 3.02), champion, 0.01).passed
    assert not judge(Measurement("bits/dim", 3.04), champion, 0.01).passed
    # the tolerance of a negative figure lies above it as well
    assert judge(Measurement("kid", -0.09), Measurement("kid", -0.1), 0.2).passed


def test_figures_of_different_measures_are_not_compared() -> None:
    assert not judge(Measurement("ELBO bits/dim", 2.0), Measurement("bits/dim", 3.0), 0.0).passed


def test_the_gate_measures_both_now_and_rejects_what_cannot_be_measured(params: Params, root: Path) -> None:
    good = write_model(root, "gate_good", steps=40)
    raw = write_model(root, "gate_raw")
    broken = write_model(root, "gate_nan", spoil=math.nan)
    gone = root / "models" / "gate_gone"
    better = gate("x", good, raw, params, root)
    assert better.passed
    assert better.candidate is not None
    assert better.champion is not None
    assert better.candidate.value < better.champion.value
    worse = gate("x", raw, good, params, root)
    assert not worse.passed
    assert "worse than the champion's" in worse.reason
    assert "no finite number" in gate("x", broken, good, params, root).reason
    assert "cannot be measured" in gate("x", gone, good, params, root).reason
    assert not gate("x", good, gone, params, root).passed


def test_each_kind_of_model_has_its_measure(params: Params, root: Path) -> None:
    vae = gate("x", write_model(root, "gate_vae", kind="vae"), None, params, root)
    autoencoder = gate("x", write_model(root, "gate_ae", kind="autoencoder"), None, params, root)
    assert vae.candidate is not None
    assert vae.candidate.measure == "ELBO bits/dim"
    assert autoencoder.candidate is not None
    assert autoencoder.candidate.measure == "reconstruction error"
    assert 0 < autoencoder.candidate.value < 1


def test_a_model_that_only_draws_samples_needs_the_feature_network_to_be_judged(params: Params, root: Path) -> None:
    verdict = gate("x", write_model(root, "gate_gan", kind="gan"), None, params, root)
    assert not verdict.passed
    assert "models/classifier" in verdict.reason


def test_a_model_that_only_draws_samples_is_judged_by_their_distance(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densitywatch.evaluation.measures import sample_quality as quality

    monkeypatch.setattr(quality, "quality_figure", lambda model, params, root: 12.5)
    verdict = gate("x", write_model(root, "gate_gan", kind="gan"), None, params, root)
    assert verdict.candidate == Measurement("FID of samples", 12.5)


def test_a_bound_is_measured_with_the_same_draws_each_time(params: Params, root: Path) -> None:
    folder = write_model(root, "gate_vae", kind="vae")
    verdict = gate("x", folder, folder, params, root)
    assert verdict.passed
    assert verdict.candidate == verdict.champion


def test_a_model_of_another_image_size_is_rejected_with_both_sizes(params: Params, root: Path, tmp_path: Path) -> None:
    folder = write_model(root, "gate_size")
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    np.save(prepared / "validation.npy", np.zeros((64, 1, 16, 16), dtype=np.uint8))
    reason = gate("x", folder, None, params, tmp_path).reason
    assert "8 x 8 pixels in grey and the prepared dataset has 16 x 16" in reason


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
    verdict = registry.promote(name, params, root)
    assert verdict.passed
    assert verdict.reason.startswith("version 2 passed: bits/dim")
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
        verdict = registry.promote(name, params, root)
        assert not verdict.passed
        assert str(verdict).startswith(f"version {number} rejected")
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


def test_an_address_gives_the_folder_and_the_loaded_model(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(root, "fetched", steps=1)
    registry.register("fetched", params, root)
    registry.promote("fetched", params, root)
    for address in ("models:/densitywatch-fetched@champion", "models:/densitywatch-fetched/1"):
        found = registry.download_model(address, params, root)
        assert (found / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(params, root))
    model = densitywatch.load_model("models:/densitywatch-fetched@champion")
    assert torch.isfinite(model.log_prob(torch.from_numpy(images(2, 9)))).all()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "models:/densitywatch-nothing@champion",
            "no version with the alias champion; run `densitywatch promote nothing`",
        ),
        ("models:/densitywatch-nothing/3", "no version 3"),
        ("models:/densitywatch-nothing", "is no registry address"),
        ("models:/../../etc@x", "is no registry address"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(params: Params, root: Path, address: str, sentence: str) -> None:
    tracking.prepare_store(params, root)
    with pytest.raises(RegistryError, match=sentence.replace("`", ".")):
        registry.download_model(address, params, root)


def test_a_project_without_a_store_is_one_sentence_and_gets_none(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DensitywatchError, match="cannot be opened"):
        registry.download_model("models:/densitywatch-vae@champion", params, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_altered_files_of_a_version_are_refused(params: Params, root: Path) -> None:
    write_model(root, "altered")
    registry.register("altered", params, root)
    folder = registry.download_model("models:/densitywatch-altered@challenger", params, root)
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(RegistryError, match="not those that were registered"):
        registry.download_model("models:/densitywatch-altered@challenger", params, root)
    with pytest.raises(RegistryError, match="not those that were registered"):
        registry.promote("altered", params, root)


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
    detector.calibrate(params, root)
    version = registry.register("detector", params, root)
    client = tracking.open_client(tracking.tracking_uri(params, root))
    tags = client.get_model_version("densitywatch-detector", str(version)).tags
    assert tags["member.pixelcnn"] == f"densitywatch-pixelcnn/{member}"
    verdict = registry.promote("detector", params, root)
    assert verdict.passed, verdict
    folder = registry.download_model("models:/densitywatch-detector@champion", params, root)
    shown = detector.load(folder).score(images(3, 7))
    assert ((shown.p_value > 0) & (shown.p_value <= 1)).all()

    again = registry.register("pixelcnn", params, root)  # the same weights, and now the scores for their p-values
    assert again == member + 1
    assert registry.register("detector", params, root) >= version

    write_model(root, "pixelcnn", steps=3)
    with pytest.raises(ModelError, match="calibrated with other weights of pixelcnn"):
        registry.register("detector", params, root)


def test_a_detector_whose_p_values_do_not_hold_is_rejected(params: Params, root: Path, tmp_path: Path) -> None:
    write_model(root, "pixelcnn", steps=40)
    folder = detector.calibrate(params, root)
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    assert gate("detector", folder, None, params, tmp_path).passed
    np.save(prepared / "validation.npy", 255 - np.load(prepared / "validation.npy"))
    verdict = gate("detector", folder, None, params, tmp_path)
    assert not verdict.passed
    assert "p-values do not hold on today's validation images" in verdict.reason


def test_cut_and_paste_takes_a_rectangle_of_the_next_image() -> None:
    plain = np.stack([np.full((1, 8, 8), value, dtype=np.uint8) for value in (10, 20)])
    pasted = cut_and_paste(plain, np.random.default_rng(0))
    assert [int((image == other).sum()) for image, other in zip(pasted, (20, 10), strict=True)] == [16, 16]
    assert plain[0].max() == 10


def test_two_promotions_at_once_happen_one_after_the_other(params: Params, root: Path) -> None:
    name = "queue"
    write_model(root, name)
    registry.register(name, params, root)
    with ThreadPoolExecutor(2) as pool:  # the lock is one of files: two threads meet it as two processes do
        answers = [str(verdict) for verdict in pool.map(lambda _: registry.promote(name, params, root), range(2))]
    first, second = sorted(answers, key=lambda answer: "already" in answer)
    assert first.startswith("version 1 passed")
    assert second == "version 1 is the champion already"


def test_the_digest_of_a_folder_knows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = content_digest(tmp_path)
    (tmp_path / "a").write_text("2")
    second = content_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, content_digest(tmp_path)}) == 3
