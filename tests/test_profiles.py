from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from densitywatch.errors import ParamsError
from densitywatch.profiles import apply_profile


@pytest.fixture
def root(tmp_path: Path, project_root: Path) -> Path:
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (tmp_path / "profiles").mkdir()
    return tmp_path


def test_the_keys_whose_value_changed_are_told_and_no_others(root: Path) -> None:
    before = yaml.safe_load((root / "params.yaml").read_text())
    (root / "profiles" / "mine.yaml").write_text(f"seed: {before['seed']}\ndevice: {{threads: 3}}\n")
    assert apply_profile("mine", root) == ["device.threads"]
    before["device"]["threads"] = 3
    assert yaml.safe_load((root / "params.yaml").read_text()) == before
    assert apply_profile("mine", root) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("seed: [", "mine.yaml: not YAML: "), ("- seed", "mine.yaml: expected a mapping of blocks")],
)
def test_a_profile_that_cannot_be_read_is_one_sentence(root: Path, text: str, sentence: str) -> None:
    (root / "profiles" / "mine.yaml").write_text(text)
    with pytest.raises(ParamsError, match=sentence):
        apply_profile("mine", root)


def test_outside_of_a_project_the_sentence_says_where_to_run_it(root: Path) -> None:
    (root / "profiles" / "mine.yaml").write_text("seed: 2\n")
    (root / "params.yaml").unlink()
    with pytest.raises(ParamsError, match="run from the project's top folder"):
        apply_profile("mine", root)
