from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from densitywatch import cli, environment
from densitywatch.errors import DataError
from densitywatch.registry.gate import Decision

HEAVY = ("torch", "mlflow", "great_expectations", "numpy", "pandas", "prefect", "dvc")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `densitywatch <arguments>`, in this process."""
    monkeypatch.setattr(sys, "argv", ["densitywatch", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def project(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with params.yaml and profiles, as the folder in which commands are typed."""
    for file in ("params.yaml", *(f"profiles/{path.name}" for path in (project_root / "profiles").glob("*.yaml"))):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((project_root / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_imports_nothing_heavy_and_lists_every_verb_of_the_graph(project_root: Path) -> None:
    code = (
        "import sys; from densitywatch import cli\n"
        "sys.argv = ['densitywatch', '--help']\n"
        "try: cli.main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    stages = yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"].values()
    commands = [stage.get("do", stage)["cmd"].split() for stage in stages]
    verbs = {command[1] for command in commands if command[0] == "densitywatch"}
    assert len(verbs) > 8
    for verb in verbs | {"register", "promote", "rollback", "score", "sample", "profile", "doctor"}:
        assert f"\n  {verb} " in done.stdout, verb


def test_the_module_runs_like_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "densitywatch", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("densitywatch 0.")


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["fetch", "--what"], ["sample", "vae", "-n", "many"]])
def test_wrong_usage_exits_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_an_unknown_key_in_params_is_one_line_with_exit_code_2_before_any_work(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("seed: 1", "sead: 1"))
    assert run(monkeypatch, "fetch") == 2
    assert capsys.readouterr().err == "densitywatch: params.yaml: seed: missing; add it\n"
    assert not (project / "data").exists()


def test_a_model_that_is_not_in_params_is_named_with_those_that_are(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "pixelnet") == 2
    said = capsys.readouterr().err
    assert said.startswith("densitywatch: no model 'pixelnet' in params.yaml; there is: ")
    assert "pixelcnn" in said


def test_outside_the_project_the_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "prepare") == 2
    assert "run from the project's top folder" in capsys.readouterr().err


def test_an_error_of_several_lines_is_printed_as_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise DataError("data/raw: altered;\n  run `dvc repro fetch`")

    monkeypatch.setattr("densitywatch.data.prepare.prepare", fail)
    assert run(monkeypatch, "prepare") == 1
    assert capsys.readouterr().err == "densitywatch: data/raw: altered; run `dvc repro fetch`\n"


def test_a_full_disk_is_one_line_with_advice(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/prepared/train.npy")

    monkeypatch.setattr("densitywatch.data.prepare.prepare", fail)
    assert run(monkeypatch, "prepare") == 1
    said = capsys.readouterr().err
    assert said == (
        "densitywatch: data/prepared/train.npy: No space left on device; "
        "free some space and run the same command again\n"
    )


def test_a_rejected_promotion_exits_with_1_and_says_why(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "densitywatch.registry.versions.promote", lambda *_, **__: Decision(False, "rejected: its bits/dim is nan")
    )
    assert run(monkeypatch, "promote", "vae") == 1
    assert capsys.readouterr().err == "densitywatch: vae: rejected: its bits/dim is nan\n"


def test_register_wants_one_model_or_all(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "register") == 2
    assert run(monkeypatch, "register", "vae", "--all") == 2
    assert "--all" in capsys.readouterr().err


def test_no_verb_sends_telemetry_or_loads_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"DO_NOT_TRACK": "no, by my own wish"}
    environment.settle(found)
    assert found["DO_NOT_TRACK"] == "no, by my own wish"
    assert found["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    monkeypatch.delenv("GX_ANALYTICS_ENABLED", raising=False)
    run(monkeypatch, "--version")
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_a_profile_changes_its_keys_keeps_the_comments_and_is_idempotent(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    assert run(monkeypatch, "profile", "tiny") == 0
    after = (project / "params.yaml").read_text()
    assert (
        yaml.safe_load(after)["data"]["limit"]
        == yaml.safe_load((project / "profiles/tiny.yaml").read_text())["data"]["limit"]
    )
    assert [line for line in after.splitlines() if line.startswith("#")] == [
        line for line in before if line.startswith("#")
    ]
    assert run(monkeypatch, "profile", "tiny") == 0
    assert "already as profile tiny says" in capsys.readouterr().out
    assert (project / "params.yaml").read_text() == after


@pytest.mark.parametrize("name", ["../params", "nothing", "Tiny", ""])
def test_an_unknown_profile_is_named_with_those_that_exist(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "profile", name) == 2
    assert "there is: " in capsys.readouterr().err


def test_a_profile_that_does_not_fit_leaves_params_as_they_were(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "profiles/odd.yaml").write_text("gate: {images: many}\n")
    assert run(monkeypatch, "profile", "odd") == 2
    assert "odd.yaml: does not fit: gate.images: " in capsys.readouterr().err
    assert (project / "params.yaml").read_bytes() == before
    assert not list(project.glob(".params*"))


def test_the_doctor_names_what_is_there_and_fails_on_params_that_cannot_be_used(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "doctor")
    said = capsys.readouterr().out
    assert "ok    python: 3." in said
    assert "ok    torch: " in said
    (project / "params.yaml").write_text("seed: [")
    assert run(monkeypatch, "doctor") == 1
    assert "LACK  params.yaml: " in capsys.readouterr().out
