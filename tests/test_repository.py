"""What the files around the code say of each other: lint, version, and the templates for people who write here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import densitywatch

ROOT = Path(__file__).resolve().parent.parent


def commands(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the folder of the environment."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (block,) = re.findall(rf"(?m)^{target}:.*\n((?:\t.*\n)+)", text)
    return [line.strip().removeprefix("$(BIN)/") for line in block.splitlines()]


def test_pre_commit_runs_what_make_lint_runs_and_downloads_nothing() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]] == commands("lint")
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_make_test_fast_leaves_out_every_marker_and_make_test_none() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = [line.partition(":")[0] for line in settings["markers"]]
    left_out = " and ".join(f"not {marker}" for marker in markers)
    assert commands("test-fast")[0].startswith(f'python -m pytest -m "{left_out}"')
    (whole,) = commands("test")
    assert "-m" not in whole.removeprefix("python -m").split() + settings["addopts"].split()


def test_the_citation_names_the_version_and_the_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == project["version"] == densitywatch.__version__
    assert citation["license"] == project["license"]


def test_paths_that_contributors_are_sent_to_exist() -> None:
    placeholder = re.compile(r"NAME|WING")
    for page in ("CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"`((?:src|tests|docs|pipelines|\.ci)/[\w./-]+|[\w-]+\.(?:md|yaml|toml))`", text)
        linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert [path for path in named + linked if not placeholder.search(path) and not (ROOT / path).exists()] == [], (
            page
        )


def test_the_tests_mirror_the_source() -> None:
    """Each folder of tests has one of src, or is that of pipelines, docs or examples."""
    package = ROOT / "src" / "densitywatch"
    folders = [path.parent for path in (ROOT / "tests").rglob("__init__.py") if path.parent != ROOT / "tests"]
    names = sorted(str(folder.relative_to(ROOT / "tests")) for folder in folders)
    elsewhere = {"pipelines", "docs", "examples", "benchmarks"}
    assert [name for name in names if not (package / name).is_dir() and name.split("/")[0] not in elsewhere] == []
    wings = {path.parent.name for path in package.glob("*/__init__.py")}
    assert wings <= {name.split("/")[0] for name in names}
