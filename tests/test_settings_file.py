"""The file .env of a checkout, and the login that a team sets in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densitywatch import environment
from densitywatch.errors import ParamsError


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of this process, in which what a test reads is undone after it."""
    for name in ("DATABASE_URL", "DENSITYWATCH_LOGIN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return monkeypatch


def test_the_file_fills_what_the_environment_lacks_and_takes_values_as_they_are(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables.setitem(os.environ, "PREFECT_API_URL", "http://set/api")
    (tmp_path / ".env").write_text(
        "DATABASE_URL=postgresql://me:a$HOME${PATH}@host/watch\n"
        "DENSITYWATCH_LOGIN='team:with a blank # and more'\n"
        "PREFECT_API_URL=http://file/api\n"
        "# a remark\n"
    )
    environment.read_file(tmp_path)
    assert os.environ["DATABASE_URL"] == "postgresql://me:a$HOME${PATH}@host/watch"
    assert os.environ["PREFECT_API_URL"] == "http://set/api"
    assert environment.login() == "team:with a blank # and more"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "team"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "with a blank # and more"


def test_without_a_file_or_a_login_nothing_is_set(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.read_file(tmp_path)
    assert environment.login() is None
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ


def test_an_address_that_servers_listen_on_is_reached_without_a_proxy(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("DENSITYWATCH_HOST=192.0.2.7\n")
    environment.read_file(tmp_path)
    assert "192.0.2.7" in os.environ["no_proxy"].split(",")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]


@pytest.mark.parametrize(
    "login", ["team", "team:", ":password-of-8", "team:seven77", "team:pässwörter", "team:two\nlines"]
)
def test_a_login_of_another_form_is_refused_and_not_shown(
    login: str, variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables.setitem(os.environ, "DENSITYWATCH_LOGIN", login)
    with pytest.raises(ParamsError, match=r"^DENSITYWATCH_LOGIN: not a login; give name:password") as caught:
        environment.read_file(tmp_path)
    assert login.partition(":")[2] not in str(caught.value) or not login.partition(":")[2]


def test_a_file_that_is_no_text_is_one_sentence(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00A=b")
    with pytest.raises(ParamsError, match=r"\.env: cannot be read; it has a line NAME=value"):
        environment.read_file(tmp_path)
