"""The result of a run comes from a server: only the files of a run are taken from it, and its words stay words."""

from __future__ import annotations

from typing import Any

import pytest

from densitywatch.errors import DataError
from pipelines import retrain_result

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def result(**changes: Any) -> dict[str, Any]:
    made = {
        "version": retrain_result.VERSION,
        "ref": "main",
        "commit": COMMIT,
        "seconds": 90.0,
        "verdicts": [
            {"model": "vae", "version": 2, "outcome": "promoted", "gate": "3.20 is better than 3.26"},
            {"model": "detector", "version": 1, "outcome": "unchanged", "gate": "version 1 is the champion already"},
        ],
        "files": {"dvc.lock": "stages: {}\n", "metrics/vae.json": '{"loss": 1}\n'},
        "removed": ["metrics/gan.json"],
        "other_changes": [],
        "metrics": "| Path | Metric | HEAD | workspace | Change |\n|---|---|---|---|---|\n"
        "| metrics/vae.json | x | 1 | 2 | 1 |",
        "curves": {"vae": {"steps": [0.0, 10.0], "train": [3.0, 2.0], "validation": [3.5, 2.5]}},
    }
    return made | changes


def test_a_result_is_taken_as_it_was_made() -> None:
    assert retrain_result.check(result()) == result()
    assert retrain_result.changed(result()) == ["dvc.lock", "metrics/gan.json", "metrics/vae.json"]
    assert retrain_result.title(result()) == "Retrain 0123456789ab: vae promoted"


@pytest.mark.parametrize(
    "name",
    [
        "../dvc.lock",
        "/etc/passwd",
        ".github/workflows/ci.yml",
        "metrics/../src/x.json",
        "metrics/.hidden.json",
        "metrics/deep/x.json",
        "metrics/x.json\n",
        "metrics/x.yaml",
        "src/densitywatch/cli.py",
        "dvc.lock/x",
        "",
    ],
)
def test_a_file_that_no_run_changes_is_refused(name: str) -> None:
    for changes in ({"files": {name: "x"}}, {"removed": [name]}):
        with pytest.raises(DataError, match="a file that no run changes"):
            retrain_result.check(result(**changes))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "another form"),
        ({}, "another form"),
        (result(version=2), "another form"),
        (result(files=None), "lists no files"),
        (result(removed="dvc.lock"), "lists no files"),
        (result(commit="main"), "names no commit"),
        (result(commit="--all"), "names no commit"),
        (result(files={"dvc.lock": 3}), "no text"),
        (result(files={"dvc.lock": "x" * (9 << 20)}), "larger than 8 MiB"),
    ],
)
def test_a_damaged_result_is_one_sentence(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        retrain_result.check(value)


def test_the_page_has_verdicts_figures_files_and_curves() -> None:
    page = retrain_result.page(result())
    assert "Commit `0123456789abcdef" in page
    assert "1.5 minutes" in page
    assert "vae       promoted   3.20 is better than 3.26" in page
    assert "| metrics/vae.json | x | 1 | 2 | 1 |" in page
    assert '```mermaid\nxychart-beta\n    title "vae"\n    x-axis "step" 0 --> 10\n' in page
    assert "    line [3, 2]\n    line [3.5, 2.5]\n```" in page


def test_words_from_outside_are_text_on_the_page() -> None:
    evil = '```\n<img src=x onerror=alert(1)> [click](http://x) @everyone `rm` "]\n\x1b[31m'
    page = retrain_result.page(
        result(
            verdicts=[{"model": evil, "outcome": evil, "gate": evil}],
            metrics=f"| {evil} |\n|---|\nnot a row <b>\n| <script> [x](y) `z` @all |",
            curves={
                evil: {"steps": [0, 1], "train": [1, 2]},
                "b": {"steps": "x"},
                "c": {"steps": [0, 1], "train": ["x"]},
            },
        )
    )
    fenced = page.split("## Verdicts")[1].split("## Figures")[0].strip()
    lines = fenced.splitlines()
    fence = lines[0].removesuffix("text")
    assert lines[-1] == fence
    assert len(fence) > 3, "longer than the fence inside"
    assert all(not line.startswith(fence) for line in lines[1:-1])
    figures = page.split("## Figures that changed")[1].split("## Files")[0]
    assert "<" not in figures
    assert "[" not in figures
    assert "`" not in figures
    assert "@" not in figures
    assert "not a row" not in page
    assert "\x1b" not in page
    assert page.count("```mermaid") == 1
    title = next(line for line in page.splitlines() if line.strip().startswith("title "))
    assert title.count('"') == 2
    assert "\n" not in retrain_result.title(result(verdicts=[{"model": evil, "outcome": "promoted"}]))


def test_a_run_that_changed_nothing_says_so() -> None:
    page = retrain_result.page(result(files={}, removed=[], metrics="| Path |\n|---|\n", verdicts=[], curves={}))
    assert "no candidate" in page
    assert "None." in page


@pytest.mark.parametrize("seconds", ["../x", [1], True, None, float("nan"), 10**400])
def test_figures_that_cannot_be_drawn_are_left_out(seconds: Any) -> None:
    curves = {"vae": {"train": [seconds, 1.0], "steps": [1, 2]}, "gan": {"train": [1.0], "steps": [1, seconds]}}
    page = retrain_result.page(retrain_result.check(result(seconds=seconds, curves=curves)))
    assert page.startswith(f"Commit `{result()['commit']}`.")
    assert "xychart" not in page


def test_a_file_with_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="its files are no text"):
        retrain_result.check(result(files={"dvc.lock": "\ud800"}))
