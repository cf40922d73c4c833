"""DATABASE_URL: what is read from it, what is refused, and what is made in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.tracking import database as address
from densitywatch.tracking import schemas
from densitywatch.tracking.addresses import ARTIFACTS
from densitywatch.tracking.runs import open_client, prepare_store
from densitywatch.tracking.store import is_own, plain, tracking_uri
from tests.marks import marks
from tests.registry.registry_project import tiny_params

SECRET = "p@ss/word: 50% $HOME"
"""A password that no address can hold as it is."""


def test_both_servers_get_the_address_in_their_own_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{quote(SECRET, safe='')}@host:6432/watch?sslmode=require")
    uri = tracking_uri(tiny_params(), tmp_path)
    assert is_own(uri)
    assert plain(uri) == "postgresql://host:6432/watch"
    variables = address.prefect_variables()
    prefect = variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert prefect.startswith("postgresql+asyncpg://me:")
    assert prefect.endswith("@host:6432/watch?ssl=require")
    assert variables["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH"] == "prefect, public"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert tracking_uri(tiny_params(), tmp_path) == "http://elsewhere:5000"
    monkeypatch.delenv("DATABASE_URL")
    assert address.prefect_variables() == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mysql://me:hidden-word@host/watch", "both servers know PostgreSQL alone"),
        ("sqlite:///watch.db", "both servers know PostgreSQL alone"),
        ("postgresql://me:hidden-word@more@host/watch", "write @ as %40"),
        ("postgresql://me:hidden-word/more@host/watch", "write @ as %40"),
        ("postgresql://me:hidden-word#more@host/watch", "write @ as %40"),
        ("postgresql://me:hidden-word@host:port/watch", "cannot be read"),
        ("postgresql://me:hidden-word@host", "names no host or no database"),
        ("postgresql:///watch", "names no host or no database"),
        ("postgresql://me:hidden-word@host/watch;drop", "names no host or no database"),
        ("postgresql://me@host/watch?password=hidden-word", "only sslmode is known"),
    ],
)
def test_an_address_that_cannot_serve_is_one_sentence_without_the_password(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(ParamsError, match=f"^DATABASE_URL: .*{said}") as caught:
        tracking_uri(tiny_params(), tmp_path)
    assert "hidden-word" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:a/b@host/db", "postgresql://host/db"),
        ("postgresql://me:a@b@host/db", "postgresql://host/db"),
        ("no postgresql://me:a@host/db at a@b", "no postgresql://host/db at a@b"),
        ("postgresql://host/db?user=me&password=word&x=1", "postgresql://host/db?user=me&password=&x=1"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_passwords_are_taken_out_of_texts(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.fixture
@marks("server")
def team(database: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a database that is missing yet, for a user that is no administrator and may make databases."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    engine = create_engine(database, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as admin:
        if not admin.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = 'team'").first():
            admin.exec_driver_sql("CREATE ROLE team LOGIN CREATEDB PASSWORD %s", (SECRET,))
    name = f"watch_{abs(hash(request.node.name)) % 10**8}"
    url = f"postgresql://team:{quote(SECRET, safe='')}@127.0.0.1:{urlsplit(database).port}/{name}"
    monkeypatch.setenv("DATABASE_URL", url)
    yield url
    with engine.connect() as admin:
        admin.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def tables(schema: str) -> int:
    url = address.address()
    assert url is not None
    with schemas.connected(url) as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = %s", (schema,)
        ).scalar()
    return int(found or 0)


@pytest.mark.usefixtures("team")
def test_the_database_and_its_schemas_are_made_and_a_run_is_kept_there(tmp_path: Path) -> None:
    params = tiny_params()
    experiment = prepare_store(params, tmp_path)
    uri = tracking_uri(params, tmp_path)
    run = open_client(uri).create_run(experiment)
    assert open_client(uri).get_run(run.info.run_id).info.experiment_id == experiment
    assert run.info.artifact_uri.startswith((tmp_path / ARTIFACTS).as_uri())
    assert tables("mlflow") > 10
    assert tables("public") == 0
    assert not (tmp_path / "mlflow.db").exists()
    schemas.prepare(tmp_path)  # a second time changes nothing
    assert prepare_store(params, tmp_path) == experiment


def test_a_wrong_password_and_a_host_that_does_not_answer_are_one_sentence(
    team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", team.replace(quote(SECRET, safe=""), "not-this-one"))
    with pytest.raises(DensitywatchError, match='password authentication failed for user "team"') as caught:
        prepare_store(tiny_params(), tmp_path)
    assert str(caught.value).startswith("the database 127.0.0.1:")
    assert "not-this-one" not in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:not-this-one@127.0.0.1:9/watch")
    with pytest.raises(DensitywatchError, match=r"127\.0\.0\.1:9/watch of DATABASE_URL .*refused") as caught:
        prepare_store(tiny_params(), tmp_path)
    assert "not-this-one" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("team")
def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    url = address.address()
    assert url is not None
    with schemas.connected(url, make=True) as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id int)")
    with pytest.raises(DensitywatchError, match=r"holds tables of another program \(orders\)"):
        schemas.prepare(tmp_path)
    assert tables("mlflow") == 0


@pytest.mark.usefixtures("team")
def test_a_database_belongs_to_one_checkout_and_moves_with_it(tmp_path: Path) -> None:
    first, second, later = (tmp_path / name for name in ("first", "second", "later"))
    for folder in (first, second):
        folder.mkdir()
        (folder / "params.yaml").touch()
    experiment = prepare_store(tiny_params(), first)
    with pytest.raises(DensitywatchError, match=r"belongs to the checkout .*first on .*; give this one a database of"):
        schemas.prepare(second)
    first.rename(later)
    assert prepare_store(tiny_params(), later) == experiment
    found = open_client(tracking_uri(tiny_params(), later)).get_experiment(experiment)
    assert found.artifact_location == (later / ARTIFACTS).as_uri()
