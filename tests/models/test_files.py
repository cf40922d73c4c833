"""A model's folder: written whole, the same bytes each time, and read back with what the header says."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import densitywatch
from densitywatch.errors import ModelError
from densitywatch.models import build_model, find_models, load_model_folder, read_header, save_model
from densitywatch.params import ModelBlock, TrainingParams

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
    import json

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


def test_the_dict_of_models_finds_every_file_that_names_a_model() -> None:
    assert densitywatch.MODELS.keys() == find_models().keys() >= {"vae", "pixelcnn"}
    assert "layers" not in densitywatch.MODELS
