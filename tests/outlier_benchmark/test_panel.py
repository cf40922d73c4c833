"""The panel: what it is, and that nothing but the benchmark sees it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import yaml

from densitywatch.data.dataset import DatasetInfo
from densitywatch.data.defects import DEFECTS
from densitywatch.errors import DataError
from densitywatch.outlier_benchmark.kinds import KINDS
from densitywatch.outlier_benchmark.panel import (
    MOST_KINDS,
    NAMES,
    fitted_to,
    foreign_digits,
    make_panel,
    own_sets,
    panel_sets,
)
from densitywatch.params import load_params
from tests.small_project import SIZE, bars, with_detector

ROOT = Path(__file__).parents[2]
PANEL = {"mnist", "hflip", "vflip", "rot90", "invert", "uniform_noise", "constant"}


def test_the_panel_is_what_it_says() -> None:
    test, _ = bars(5, 0)
    sets = panel_sets(test, test[:3], seed=0)
    assert set(sets) == PANEL
    assert (sets["hflip"] == test[..., ::-1]).all()
    assert (sets["vflip"] == test[..., ::-1, :]).all()
    assert (sets["rot90"][:, 0] == np.rot90(test[:, 0], 1, (1, 2))).all()
    assert (sets["invert"].astype(int) + test == 255).all()
    assert (np.ptp(sets["constant"], axis=(1, 2, 3)) == 0).all()
    assert len(np.unique(sets["uniform_noise"])) > 200


@pytest.mark.parametrize(
    ("asked", "source", "own"),
    [
        ("auto", "fashion_mnist", False),
        ("auto", "mnist", False),
        ("auto", "folder", True),
        ("auto", "photos", True),
        ("own", "fashion_mnist", True),
        ("foreign", "folder", False),
    ],
)
def test_the_panel_follows_the_source_unless_params_name_one(
    asked: str, source: str, own: bool, tmp_path: Path
) -> None:
    """`detector.panel`: no foreign image is read for a panel of the dataset's own."""
    params = load_params(ROOT / "params.yaml")
    params = with_detector(params, panel=asked)
    params = params.model_copy(update={"data": params.data.model_copy(update={"source": source})})
    info = DatasetInfo(name=source, size=SIZE, channels=1, class_names=(), digest="0" * 64, counts={}, groups={})
    test, _ = bars(12, 0)
    assert params.own_panel == own
    if own:
        panel = make_panel(params, tmp_path, info, test)
        assert set(panel) == set(DEFECTS)
        assert all((images[:, None] != test).any((2, 3, 4)).all() for images in panel.values())
    elif source == "mnist":
        assert set(make_panel(params, tmp_path, info, test)) == PANEL - {"mnist"}
    else:
        with pytest.raises(DataError, match="dvc repro fetch_panel"):
            make_panel(params, tmp_path, info, test)


def test_a_transformation_that_is_declared_is_a_kind_of_the_own_panel() -> None:
    test, _ = bars(6, 0)
    panel = own_sets(test, ("flip", "rotate"), seed=0)
    assert set(panel) == set(DEFECTS) | {"hflip", "vflip", "rot90", "rot180", "rot270"}
    assert (panel["hflip"] == test[..., ::-1]).all()
    assert (panel["rot180"] == test[..., ::-1, ::-1]).all()
    every = own_sets(test, tuple(NAMES), seed=0)
    assert len(every) == MOST_KINDS
    assert set(every) | PANEL <= set(KINDS), "every kind has words"


def test_images_in_which_no_defect_shows_are_one_sentence(tmp_path: Path) -> None:
    params = with_detector(load_params(ROOT / "params.yaml"), panel="own")
    info = DatasetInfo(name="flat", size=SIZE, channels=1, class_names=(), digest="0" * 64, counts={}, groups={})
    with pytest.raises(DataError, match=r"no defect shows in the test images.*detector\.panel"):
        make_panel(params, tmp_path, info, np.full((4, 1, SIZE, SIZE), 7, np.uint8))


def test_digits_are_brought_to_the_size_and_the_colours_of_the_dataset() -> None:
    digits = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    assert fitted_to(digits, 32, 3).shape == (2, 3, 32, 32)
    assert fitted_to(fitted_to(digits, 28, 3), 28, 1).shape == (2, 1, 28, 28)
    assert (fitted_to(digits, 28, 1) == digits).all()


def test_missing_digits_are_one_sentence(tmp_path: Path) -> None:
    info = DatasetInfo(name="bars", size=14, channels=1, class_names=(), digest="0" * 64, counts={}, groups={})
    with pytest.raises(DataError, match="dvc repro fetch_panel"):
        foreign_digits(tmp_path, info, 5)
    (tmp_path / "data" / "panel").mkdir(parents=True)
    (tmp_path / "data" / "panel" / "mnist.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="not a whole array"):
        foreign_digits(tmp_path, info, 5)


def test_only_the_benchmark_and_the_demonstration_batch_depend_on_the_panel() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    reads = {
        name
        for name, stage in stages.items()
        if any(str(dep).startswith("data/panel") for dep in stage.get("do", stage).get("deps", []))
    }
    assert reads == {"benchmark", "demo_batch"}
    assert "data/panel" in stages["fetch_panel"]["outs"]
    made_of_it = [out for name in ("benchmark", "demo_batch") for out in stages[name]["outs"]]
    for name, stage in stages.items():
        if name not in {"report"}:  # the page shows the benchmark's figures; nothing is fitted on a page
            assert not set(made_of_it) & set(map(str, stage.get("do", stage).get("deps", []))), name


def test_no_other_code_names_the_panels_folder_or_imports_the_panel() -> None:
    allowed = {"data/fetch.py", "data/demo_batch.py", "outlier_benchmark/panel.py"}
    source = ROOT / "src" / "densitywatch"
    for file in source.rglob("*.py"):
        name = file.relative_to(source).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if _has_docstring(node)}
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if name not in allowed:
            assert not {text for text in texts - docstrings if text == "panel" or "data/panel" in text}, name
            assert "mnist.npy" not in texts, name
        imports = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if name != "outlier_benchmark/benchmark.py":
            assert not {
                i for i in imports if i.endswith("outlier_benchmark.panel") or i in {"panel_sets", "foreign_digits"}
            }, name


def _has_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
