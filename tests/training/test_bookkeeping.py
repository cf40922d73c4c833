"""Seconds and run ids stand beside the outputs of DVC and belong to the weights that they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.training.bookkeeping import FOLDER, KEPT, note_training, training_of


def weights(root: Path, content: bytes) -> Path:
    path = root / "models" / "vae" / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_weights_that_come_back_find_the_figures_of_their_own_training(tmp_path: Path) -> None:
    note_training(weights(tmp_path, b"first"), "vae", tmp_path, {"train_seconds": 1.0})
    note_training(weights(tmp_path, b"second"), "vae", tmp_path, {"train_seconds": 2.0})
    assert training_of(weights(tmp_path, b"first"), "vae", tmp_path) == {"train_seconds": 1.0}
    assert training_of(weights(tmp_path, b"second"), "vae", tmp_path) == {"train_seconds": 2.0}
    note_training(weights(tmp_path, b"first"), "vae", tmp_path, {"train_seconds": 3.0})
    assert training_of(weights(tmp_path, b"first"), "vae", tmp_path) == {"train_seconds": 3.0}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}'])
def test_weights_that_came_from_elsewhere_have_none_and_a_damaged_file_is_no_loss(damage: str, tmp_path: Path) -> None:
    path = weights(tmp_path, b"pulled")
    assert training_of(path, "vae", tmp_path) == {}
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "vae.json").write_text(damage)
    assert training_of(path, "vae", tmp_path) == {}
    note_training(path, "vae", tmp_path, {"train_seconds": 1.0})
    assert training_of(path, "vae", tmp_path) == {"train_seconds": 1.0}


def test_the_oldest_entries_go_when_there_are_many(tmp_path: Path) -> None:
    for i in range(KEPT + 2):
        note_training(weights(tmp_path, f"{i}".encode()), "vae", tmp_path, {"train_seconds": float(i)})
    assert training_of(weights(tmp_path, b"1"), "vae", tmp_path) == {}
    assert training_of(weights(tmp_path, b"2"), "vae", tmp_path) == {"train_seconds": 2.0}
