"""`make audit`: licences of what is installed, and what the service of known vulnerabilities says or does not say.

A stand-in takes the place of pip-audit here: what it finds changes from day to day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from densitywatch.errors import DataError
from pipelines import __main__ as pipelines
from pipelines import audit
from pipelines.audit import Rules

ROOT = Path(__file__).parents[2]
RULES = Rules(
    allowed=["MIT", "Apache-2.0", "BSD-3-Clause"],
    names={"MIT License": "MIT", "Apache Software License": "Apache-2.0"},
    stated={"silent": "MIT"},
    exceptions={"odd-*": "a reason"},
)


def about(**lines: str | list[str]) -> Message:
    """A package's metadata."""
    found = Message()
    for name, value in lines.items():
        for each in [value] if isinstance(value, str) else value:
            found[name.replace("_", "-")] = each
    return found


@pytest.mark.parametrize(
    ("metadata", "allowed"),
    [
        ({"License_Expression": "MIT"}, True),
        ({"License_Expression": "MIT AND GPL-3.0-only"}, False),
        ({"License_Expression": "MIT OR GPL-3.0-only"}, True),
        ({"License_Expression": "MIT AND (GPL-2.0-only OR Apache-2.0)"}, True),
        ({"License_Expression": "Apache-2.0 WITH LLVM-exception"}, False),
        ({"Classifier": ["License :: OSI Approved :: MIT License"]}, True),
        ({"Classifier": ["License :: OSI Approved"], "License": "BSD-3-Clause"}, True),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: Other/Proprietary License"]}, False),
        ({"License": "MIT"}, True),
        ({"License": "Do as you like"}, False),
        ({"License": ""}, False),
        ({}, False),
    ],
)
def test_a_licence_is_allowed_where_allowed_ones_are_enough(metadata: dict[str, Any], allowed: bool) -> None:
    found = audit.unfit_licences({"a": about(**metadata)}, RULES)
    assert [each.package for each in found] == ([] if allowed else ["a"])


def test_what_metadata_do_not_say_can_be_stated_and_an_exception_needs_no_licence() -> None:
    assert audit.unfit_licences({"silent": about(), "odd-one": about(License="GPL")}, RULES) == []


def test_an_entry_that_no_package_needs_any_more_is_named() -> None:
    packages = {"silent": about(), "odd-one": about(License="MIT")}
    assert audit.unused(packages, RULES, ["silent", "odd-one"]) == ["odd-*"]
    assert audit.unused({}, RULES, ["silent", "odd-windows"]) == [], "a package of another system stays"
    assert audit.unused({}, RULES, ["other"]) == ["odd-*", "silent"]


def test_every_package_that_is_installed_here_has_an_allowed_licence() -> None:
    rules = audit.read_rules(ROOT / audit.RULES)
    names = sorted({name for lock in audit.LOCKS for name in audit.locked(ROOT / lock)})
    assert len(names) > 300
    packages = audit._installed(names)
    assert len(packages) > 0.9 * len(names)
    assert audit.unfit_licences(packages, rules) == []
    assert audit.unused(packages, rules, names) == []
    assert all(len(reason) > 10 for reason in rules.exceptions.values())


@pytest.mark.parametrize("text", ["allowed = 3", "allowed = [", 'more = "x"'])
def test_rules_that_cannot_be_read_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "licences.toml").write_text(text)
    with pytest.raises(DataError, match=r"licences\.toml: "):
        audit.read_rules(tmp_path / "licences.toml")


class PipAudit:
    """What pip-audit would print."""

    def __init__(self, said: str, errors: str = "", code: int = 0) -> None:
        self.said, self.errors, self.code = said, errors, code
        self.asked: list[str] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.asked = command
        return subprocess.CompletedProcess(command, self.code, self.said, self.errors)


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: PipAudit) -> int:
    """`make audit` in a project of two packages with nothing to say about licences."""
    for lock in audit.LOCKS:
        (tmp_path / lock).write_text("some-package==1.0 \\\n    --hash=sha256:0\n")
    (tmp_path / audit.RULES).write_text('allowed = []\n[names]\n[vulnerabilities]\n"CVE-1" = "not used here"\n')
    monkeypatch.setattr(audit.subprocess, "run", said)
    monkeypatch.chdir(tmp_path)
    return pipelines.main(["audit"])


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [], **more}


def test_nothing_known_about_every_package_is_a_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = PipAudit(json.dumps({"dependencies": [package("a"), package("b")]}))
    assert run(monkeypatch, tmp_path, said) == 0
    assert "known vulnerabilities of 2 packages: 0\n" in capsys.readouterr().out
    assert said.asked[said.asked.index("--ignore-vuln") + 1] == "CVE-1"
    assert [name for name in said.asked if name.endswith(".lock")] == [str(tmp_path / lock) for lock in audit.LOCKS]


def test_a_known_vulnerability_is_named_with_the_version_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}, {"id": "PYSEC-2\x1b", "fix_versions": []}]
    said = PipAudit(json.dumps({"dependencies": [package("Some_Package", vulns=known)]}), code=1)
    assert run(monkeypatch, tmp_path, said) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "known vulnerability: some-package 1.0: PYSEC-1, mended in 1.1, 2.0" in lines
    assert "known vulnerability: some-package 1.0: PYSEC-2\\x1b, mended in no version yet" in lines


def test_packages_that_the_service_does_not_know_are_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1.0)"}
    assert run(monkeypatch, tmp_path, PipAudit(json.dumps({"dependencies": [package("a"), skipped]}))) == 3
    said = capsys.readouterr()
    assert "the service does not know 1 of 2 packages, such as b, so nothing is known about them" in said.err
    assert "known vulnerabilities of 1 packages: 0" in said.out


@pytest.mark.parametrize("said", ["", "[]", '{"dependencies": 3}', '{"dependencies": [1]}', "<html>"])
def test_a_service_that_cannot_be_asked_is_one_plain_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    errors = "Traceback (most recent call last):\n  deep inside\nConnectionError: no route\n"
    assert run(monkeypatch, tmp_path, PipAudit(said, errors, 1)) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "pipelines: the service of known vulnerabilities cannot be asked (ConnectionError: no route)"
    )


@pytest.mark.slow
def test_the_real_pip_audit_without_a_network_is_one_plain_sentence(tmp_path: Path) -> None:
    for lock in audit.LOCKS:
        (tmp_path / lock).write_text("pip==25.0 --hash=sha256:" + "0" * 64 + "\n")
    (tmp_path / audit.RULES).write_text('allowed = ["MIT"]\n[names]\n')
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "https_proxy")}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.audit"],
        cwd=tmp_path,
        env={**os.environ, **nowhere, "PYTHONPATH": str(ROOT), "NO_PROXY": "", "no_proxy": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("pipelines: the service of known vulnerabilities cannot be asked (")
