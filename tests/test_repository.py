"""What the files around the code say of each other: lint, version, and the templates for people who write here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
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


def test_make_test_fast_leaves_out_every_marker_and_make_test_the_faults_alone() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = [line.partition(":")[0] for line in settings["markers"]]
    left_out = " and ".join(f"not {marker}" for marker in markers)
    assert commands("test-fast")[0].startswith(f'python -m pytest -m "{left_out}"')
    (whole,), faults = commands("test"), commands("faults")[-1]
    assert whole.startswith('python -m pytest -m "not faults" ')
    assert faults == "python -m pytest -m faults tests/faults"
    assert "-m" not in settings["addopts"].split()


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
    """Each folder of tests has one of src, or is that of pipelines, docs, examples or faults."""
    package = ROOT / "src" / "densitywatch"
    folders = [path.parent for path in (ROOT / "tests").rglob("__init__.py") if path.parent != ROOT / "tests"]
    names = sorted(str(folder.relative_to(ROOT / "tests")) for folder in folders)
    elsewhere = {"pipelines", "docs", "examples", "benchmarks", "faults"}
    assert [name for name in names if not (package / name).is_dir() and name.split("/")[0] not in elsewhere] == []
    wings = {path.parent.name for path in package.glob("*/__init__.py")}
    assert wings <= {name.split("/")[0] for name in names}


WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def steps(name: str) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(WORKFLOWS[name])["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


TARGETS_THAT_TESTS_RUN = {
    "ask-retrain": "pipelines/test_services.py",
    "propose-retrain": "pipelines/test_services.py",
    "fresh": "pipelines/test_fresh.py",
    "compare": "pipelines/test_fresh.py",
    "audit": "pipelines/test_audit.py",
}
"""The targets that workflows name, and the tests that run what is behind them."""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_runs_nothing_but_a_target_of_make_or_what_guards_main(name: str) -> None:
    lines = [step["run"] for step in steps(name) if "run" in step]
    assert lines
    for line in lines:
        if line == ".ci/run":
            continue
        summary = r'( SUMMARY="\$GITHUB_STEP_SUMMARY"| >> "\$GITHUB_STEP_SUMMARY")?'
        found = re.fullmatch(rf"make (?:--silent )?([a-z-]+){summary}", line)
        assert found, line
        (command,) = commands(found[1])
        program = re.search(r"-m pipelines(?: |\.)(\w+)", command)
        assert program, command
        tests = (ROOT / "tests" / TARGETS_THAT_TESTS_RUN[found[1]]).read_text(encoding="utf-8")
        verb = program[1].partition("_")[0]
        assert f'main(["{verb}"' in tests or f'step("{verb}"' in tests, f"no test runs {found[1]}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_takes_others_actions_by_their_digest_and_keeps_no_credentials(name: str) -> None:
    used = re.findall(r"uses: (.*)", WORKFLOWS[name])
    assert used
    for line in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # an expression inside a command would be code of whoever names a branch
        assert "${{" not in step.get("run", "")


def test_a_workflow_may_do_no_more_than_it_must() -> None:
    allowed = {
        name: {"": flow.get("permissions")} | {key: job.get("permissions") for key, job in flow["jobs"].items()}
        for name, flow in ((name, yaml.safe_load(text)) for name, text in WORKFLOWS.items())
    }
    assert allowed == {
        "audit.yml": {"": {"contents": "read"}, "audit": None},
        "ci.yml": {"": {"contents": "read"}, "check": None, "fresh": None},
        "retrain.yml": {
            "": {},
            "ask": {"contents": "read"},
            "propose": {"contents": "write", "pull-requests": "write"},
        },
    }
    secrets = {
        job: set(re.findall(r"secrets\.(\w+)", str(body)))
        for job, body in yaml.safe_load(WORKFLOWS["retrain.yml"])["jobs"].items()
    }
    assert secrets == {"ask": {"PREFECT_API_AUTH_STRING"}, "propose": {"RETRAIN_TOKEN"}}


def test_retraining_cannot_start_itself_and_a_fork_sees_a_skip() -> None:
    from pipelines.retrain_result import FILE

    flow = yaml.safe_load(WORKFLOWS["retrain.yml"])
    triggers = flow[True]  # YAML 1.1 reads the key `on` as a boolean
    assert set(triggers) == {"workflow_dispatch", "repository_dispatch", "schedule", "push"}
    assert triggers["push"] == {"branches": ["main"], "paths": ["params.yaml", "dvc.yaml", "src/**"]}
    for name in ("params.yaml", "dvc.yaml", "src/densitywatch/cli.py"):
        assert FILE.fullmatch(name) is None, "what its pull request changes is not what starts it"
    assert flow["jobs"]["ask"]["if"] == "vars.PREFECT_API_URL != ''"
    assert "PREFECT_API_URL" in flow["jobs"]["ask"]["name"], "the name says why it is skipped"
    assert flow["jobs"]["propose"]["needs"] == "ask"
    assert flow["concurrency"]["cancel-in-progress"] is False


BAD = """
on: pull_request_target
jobs:
  x:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@v4
        with: {ref: "${{ github.event.pull_request.head.sha }}"}
      - run: echo ${{ github.event.pull_request.title }}
  y:
    needs: z
    runs-on: ubuntu-24.04
    steps: [{run: "true"}]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "options", "finding"),
    [
        ("actionlint", ["-shellcheck=", "-pyflakes="], "needs job"),
        ("zizmor", ["--offline", "--quiet", "--no-progress"], "dangerous-triggers"),
    ],
)
def test_the_linters_of_workflows_find_what_is_wrong_and_nothing_here(
    tmp_path: Path, program: str, options: list[str], finding: str
) -> None:
    (line,) = [line for line in commands("lint") if line.startswith(program)]
    assert line.split()[1 : 1 + len(options)] == options
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(BAD)

    def lint(*files: str) -> subprocess.CompletedProcess[str]:
        where = str(Path(sys.executable).parent / program)
        offline = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        command = [where, *options, *files]
        return subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)

    found = lint(str(bad))
    assert found.returncode != 0
    assert finding in found.stdout + found.stderr
    good = lint(*([] if program == "actionlint" else [".github"]))
    assert good.returncode == 0, good.stdout + good.stderr
