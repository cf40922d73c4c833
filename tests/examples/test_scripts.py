"""Every script of examples/ runs in a project that `make run` has left, and says what it did."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "01_load_and_sample": ("100 test images take", "16 new images are in var/examples/samples.png"),
    "02_score_a_folder": ("147 files: 145 scored, 2 unreadable", "truncated.png: broken", "demo/report.html"),
    "03_own_model": ("every pixel by itself: ", "PixelCNN: "),
    "04_label_or_reject": ("test images: ", "the label is right for", "MNIST digits: "),
    "05_latent_arithmetic": ("upper - mean(upper) + mean(lower): ", "var/examples/latent_arithmetic.png"),
    "06_code_length": ("16 test images in var/examples/images.dwcode", "decoded elsewhere, byte for byte"),
    "07_guarantee": ("at most 5% promised", "at most 10% promised", "at most 20% promised"),
}
"""Something that each prints in the project of bars."""
LEAVES = {
    "01_load_and_sample": "samples.png",
    "02_score_a_folder": "scored/demo/report.html",
    "05_latent_arithmetic": "latent_arithmetic.png",
    "06_code_length": "images.dwcode",
}


def test_the_scripts_are_numbered_from_one_without_a_gap_and_each_is_tried_here() -> None:
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert [name[:3] for name in names] == [f"{i:02}_" for i in range(1, len(names) + 1)]
    assert names == sorted(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_script_runs_and_says_what_it_did(
    name: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = EXAMPLES / f"{name}.py"
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in said
    if name in LEAVES:
        assert (finished / "var" / "examples" / LEAVES[name]).stat().st_size > 0


@pytest.mark.parametrize("name", SAYS)
def test_a_script_is_short_and_opens_with_what_it_shows(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith('"""')
