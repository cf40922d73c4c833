"""A model's folder: written whole, the same bytes each time, and read back with what the header says."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch

import densitywatch
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.feature_network import FeatureNetwork, load_classifier
from densitywatch.models.storage import build_model, find_models, load_model_folder, read_header, save_model
from densitywatch.params import ClassifierSettings, ModelBlock, TrainingParams
from densitywatch.training.checkpoint import STATE, Progress, load_state, save_state

TRAINING = TrainingParams(steps=1, batch_size=1, learning_rate=1e-3)


def saved(folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    block = ModelBlock(kind="pixelcnn", settings={"channels": 4, "dilations": [1]}, training=TRAINING)
    model = build_model(block, channels=3, size=8, classes=2).eval()
    save_model(model, folder, kind="pixelcnn", class_names=("cat", "<b>dog</b>"), about={"best_step": 1})
    return model


def test_a_loaded_model_says_the_same_of_an_image(tmp_path: Path) -> None:
    model = saved(tmp_path)
    loaded = densitywatch.load_model(str(tmp_path))
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert loaded.class_names == ("cat", "<b>dog</b>")
    assert loaded.header["best_step"] == 1
    assert not loaded.training


def test_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.safetensors"]


def test_a_folder_without_a_model_says_how_to_train_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model; train it with `dvc repro train@vae`"):
        load_model_folder(tmp_path / "vae")


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_named_and_not_loaded(keep: int, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model_folder(tmp_path)


def test_a_foreign_safetensors_file_is_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="has no densitywatch header"):
        load_model_folder(tmp_path)


def rewrite(folder: Path, **changes: object) -> None:
    """The same weights under a header with other entries."""
    header = read_header(folder) | changes
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    metadata = {"densitywatch": json.dumps(header)}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "99"}, "format '99' is not"),
        ({"kind": "no_such_kind"}, "kind 'no_such_kind' is not among"),
        ({"kind": "../vae"}, "is no model kind"),
        ({"kind": "os.path"}, "is no model kind"),
        ({"settings": {"channels": "many"}}, "settings.channels"),
        ({"settings": {"channels": 8, "dilations": [1]}}, "weights and settings do not fit"),
        ({"kind": "layers"}, "'layers' is not among"),
    ],
)
def test_a_header_that_does_not_fit_is_one_sentence(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ModelError) as caught:
        load_model_folder(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"channels": "8"}}, "settings.channels: input should be a valid integer (given: '8')"),
        ({"settings": {"channels": None}}, "settings.channels: input should be a valid integer (given: None)"),
        ({"settings": {"channels": 1.5}}, "settings.channels: input should be a valid integer"),
        ({"settings": {"channels": True}}, "settings.channels: input should be a valid integer"),
        ({"settings": {"channels": 0}}, "settings.channels: input should be greater than or equal to 2"),
        ({"settings": {"label_weight": math.nan}}, "header: a value that JSON cannot hold"),
        ({"settings": {"dilations": [0]}}, "settings.dilations.0: input should be greater than or equal to 1"),
        ({"settings": {"dilations": [1] * 100_000}}, "settings.dilations: tuple should have at most"),
        ({"settings": {"channels": 10_000, "dilations": [1]}}, "settings.channels: input should be less than"),
        ({"settings": {"label_layers": 10**9, "conditional": True}}, "settings.label_layers"),
        ({"settings": {"x\n\x1b[31m": 1}}, "settings.x ?[31m: unknown key"),
        ({"settings": []}, "settings: input should be an object"),
        ({"settings": None}, "settings: input should be an object"),
        ({"channels": "1"}, "channels: input should be a valid integer"),
        ({"channels": None}, "channels: input should be a valid integer"),
        ({"channels": 1.5}, "channels: input should be a valid integer"),
        ({"channels": True}, "channels: input should be a valid integer"),
        ({"channels": 0}, "channels: must be 1 or 3"),
        ({"channels": 1}, "weights and settings do not fit"),
        ({"size": "8"}, "size: input should be a valid integer"),
        ({"size": 0}, "size: input should be greater than or equal to 1"),
        ({"size": 10**9}, "size: input should be less than or equal to"),
        ({"size": 9}, "position has the shape [1, 4, 8, 8] in the file and [1, 4, 9, 9] by the settings"),
        ({"class_names": 5}, "class_names: input should be a valid array"),
        ({"class_names": [1]}, "class_names.0: input should be a valid string"),
        ({"class_names": "cat"}, "class_names: input should be a valid array"),
        ({"kind": 5}, "kind: input should be a valid string"),
        ({"kind": None}, "kind: input should be a valid string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_entry_of_a_wrong_type_or_size_is_one_sentence(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ModelError) as caught:
        load_model_folder(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[1]", "5", "null", "{", "[" * 100_000, '{"format": ' + "[" * 100_000])
def test_a_header_that_is_no_object_is_one_sentence(text: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"densitywatch": text})
    with pytest.raises(ModelError, match="has no densitywatch header"):
        read_header(tmp_path)


@pytest.mark.parametrize("kind", sorted(find_models()))
def test_a_header_that_asks_for_a_large_network_is_refused_before_any_memory_is_taken(
    kind: str, tmp_path: Path
) -> None:
    large = {
        "pixelcnn": {"channels": 4096, "dilations": [1] * 8},
        "pixelcnn_pyramid": {"channels": 4096, "context_channels": 4096},
        "pixelrnn": {"channels": 4096},
        "autoencoder": {"channels": 4096, "code": 4096},
        "vae": {"channels": 4096},
        "gan": {"generator": [65536, 65536], "discriminator": [65536]},
        "dcgan": {"generator_channels": 4096, "discriminator_channels": 4096},
        "conditional_gan": {"generator_channels": 4096, "discriminator_channels": 4096},
    }
    header = {"format": "1", "kind": kind, "settings": large[kind], "channels": 3, "size": 256, "class_names": ["a"]}
    metadata = {"densitywatch": json.dumps(header)}
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata=metadata)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="weights and settings do not fit"):
        load_model_folder(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_tensors_of_another_kind_of_number_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    header = json.dumps(read_header(tmp_path))
    tensors = {k: v.int() for k, v in safetensors.torch.load_file(tmp_path / "model.safetensors").items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"densitywatch": header})
    with pytest.raises(ModelError, match="numbers of another kind"):
        load_model_folder(tmp_path)


def test_a_feature_networks_header_is_checked_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FeatureNetwork(ClassifierSettings(channels=4), channels=1, size=8, classes=2)
    save_model(network, tmp_path, kind="classifier", class_names=("a", "b"), about={})
    assert load_classifier(tmp_path).classes == 2
    good = read_header(tmp_path)["settings"]
    for settings in ({"channels": "8"}, good | {"channels": None}, good | {"channels": 2048, "features": 60_000}):
        rewrite(tmp_path, settings=settings)
        with pytest.raises(ModelError, match="settings"):
            load_classifier(tmp_path)


@pytest.mark.parametrize(
    "progress",
    [
        "[1]",
        "{",
        '{"step": "8"}',
        '{"step": null}',
        '{"step": 1.5}',
        '{"step": 1, "history": 5}',
        '{"step": 1, "history": [5]}',
        '{"step": 1, "nothing": 5}',
        "[" * 100_000,
        None,
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_checkpoint_whose_progress_is_of_a_wrong_type_counts_as_none(progress: str | None, tmp_path: Path) -> None:
    save_state(tmp_path, "me", {"x": torch.zeros(1)}, Progress(step=3, history=[{"step": 3, "loss": 1.0}]))
    tensors, found = load_state(tmp_path, "me") or ({}, Progress())
    assert (list(tensors), found.step, found.history) == (["x"], 3, [{"step": 3, "loss": 1.0}])
    assert isinstance(found.history[0]["step"], int)
    metadata = {"identity": "me"} | ({} if progress is None else {"progress": progress})
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / STATE, metadata=metadata)
    assert load_state(tmp_path, "me") is None


def test_the_dict_of_models_finds_every_file_that_names_a_model() -> None:
    assert densitywatch.MODELS.keys() == find_models().keys() >= {"vae", "pixelcnn"}
    assert "layers" not in densitywatch.MODELS
