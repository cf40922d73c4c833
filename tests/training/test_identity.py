"""What a resumed run must have in common with the one that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from densitywatch.models.storage import build_model
from densitywatch.params import ModelBlock, Params, load_params
from densitywatch.training import identity, loop
from densitywatch.training.identity import identity_of, source_digest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def made(kind: str) -> Any:
    settings = {"channels": 4, "dilations": [1]} if kind == "pixelcnn" else {"channels": 4}
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1.0}
    block = ModelBlock.model_validate({"kind": kind, "settings": settings, "training": training})
    return build_model(block, channels=1, size=8, classes=0)


def of(params: Params, kind: str = "pixelcnn", **changes: Any) -> str:
    usual = {"data_digest": "0" * 64, "precision": "32-true", "compiled": False}
    fabric = SimpleNamespace(world_size=changes.pop("devices", 1), device=torch.device(changes.pop("on", "cpu")))
    return identity_of(changes.pop("block", {}), params, made(kind), fabric, **usual | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16-mixed"},
        {"compiled": True},
        {"data_digest": "1" * 64},
        {"devices": 2},
        {"on": "cuda"},
        {"block": {"kind": "vae"}},
        {"kind": "vae"},
    ],
)
def test_each_thing_that_decides_the_weights_is_part_of_the_identity(params: Params, change: dict[str, Any]) -> None:
    assert of(params) == of(params)
    assert of(params, **change) != of(params)


def test_so_are_the_threads_in_effect_and_the_seed_but_not_the_number_of_slots(params: Params) -> None:
    before, threads = of(params), torch.get_num_threads()
    other = params.model_copy(update={"device": params.device.model_copy(update={"slots": 7})})
    assert of(other) == before, "how many stages run at once changes no figure unless the threads follow"
    assert of(params.model_copy(update={"seed": params.seed + 1})) != before
    torch.set_num_threads(threads + 1)
    try:
        assert of(params) != before
    finally:
        torch.set_num_threads(threads)


def test_so_is_what_a_cpu_can_do_where_it_is_the_cpu_that_trains(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        found[capability] = of(params), of(params, on="cuda")
    assert found["AVX2"][0] != found["AVX512"][0]
    assert found["AVX2"][1] == found["AVX512"][1]


def test_an_edit_of_the_source_is_another_run_and_of_an_unrelated_file_is_not(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(module: str) -> str:
        copy = tmp_path / f"{module}.py"
        file = sys.modules[module].__file__
        assert file is not None
        copy.write_bytes(Path(file).read_bytes() + b"# an edit\n")
        stand_in = ModuleType(module)
        stand_in.__file__ = str(copy)
        with monkeypatch.context() as patched:
            patched.setitem(identity.sys.modules, module, stand_in)
            return source_digest(loop.__name__, "densitywatch.models.pixelcnn")

    made("pixelcnn"), made("vae")
    before = source_digest(loop.__name__, "densitywatch.models.pixelcnn")
    used = ("training.optimizers", "training.steps", "training.loop", "models.pixelcnn", "models.common.pixel_head")
    for module in used:
        assert edited(f"densitywatch.{module}") != before, module
    for module in ("models.vae", "cli"):
        __import__(f"densitywatch.{module}")
        assert edited(f"densitywatch.{module}") == before, module
