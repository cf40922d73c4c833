"""A store that many open at once, and what a training run leaves in it."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.store.db import utils

from densitywatch.errors import DensitywatchError
from densitywatch.params import Params
from densitywatch.tracking import runs as tracking
from densitywatch.tracking.store import FLOW_RUN, FLOW_RUN_VARIABLE, REPORT
from tests.tracking.conftest import PARAMS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose store the tests of this file share: making one takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def start(params: Params, root: Path):
    def start(**more: str):
        return tracking.training_run(
            "pixelcnn",
            params,
            root,
            dataset_name="fashion_mnist",
            dataset_digest="d" * 64,
            stage="train@pixelcnn",
            **more,
        )

    return start


def read_run(params: Params, root: Path, run_id: str):
    return tracking.open_client(tracking.tracking_uri(params, root)).get_run(run_id)


@pytest.mark.slow
def test_a_disk_that_is_full_while_the_tables_are_made_leaves_no_store_that_cannot_be_opened(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    whole = utils._upgrade_db

    def fail(engine: object) -> None:  # after the first tables
        raise OSError("No space left on device")

    monkeypatch.setattr(utils, "_upgrade_db", fail)
    with pytest.raises(DensitywatchError, match="No space left on device"):
        tracking.prepare_store(params, tmp_path)
    monkeypatch.setattr(utils, "_upgrade_db", whole)
    assert tracking.prepare_store(params, tmp_path) == tracking.prepare_store(params, tmp_path)


@pytest.mark.slow
def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from densitywatch.tracking.runs import prepare_store;"
        "from densitywatch.params import load_params;"
        f"params = load_params({str(PARAMS)!r}); root = Path({str(tmp_path)!r});"
        "print(prepare_store(params, root))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(4)
    ]
    answers = [(starter.communicate(timeout=120), starter.returncode) for starter in starters]
    assert [code for _, code in answers] == [0] * 4, answers
    assert len({out for (out, _), _ in answers}) == 1


def test_a_run_notes_params_commit_stage_and_dataset(start, params: Params, root: Path) -> None:
    repository = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*repository, "init", "-q"], check=True)
    subprocess.run([*repository, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run(
        [*repository, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with start() as run:
        run.set_tags({"best_step": "4"})
    noted = read_run(params, root, run.run_id)
    assert noted.info.status == "FINISHED"
    assert noted.data.params["training.learning_rate"] == "0.003"
    assert noted.data.params["settings.channels"] == "32"  # a default, not written in params.yaml
    assert noted.data.tags["mlflow.source.git.commit"] == commit
    assert noted.data.tags["dvc_stage"] == "train@pixelcnn"
    assert noted.data.tags["dataset_digest"] == "d" * 64
    assert noted.data.tags["best_step"] == "4"
    dataset = noted.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("fashion_mnist", "d" * 36)


def test_a_run_links_back_to_the_flow_run_that_started_it(
    start, params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "http://127.0.0.1:4200/runs/flow-run/0b8f"
    monkeypatch.setenv(FLOW_RUN_VARIABLE, page)
    with start() as run:
        pass
    tags = read_run(params, root, run.run_id).data.tags
    assert tags[FLOW_RUN] == page
    assert tags["mlflow.note.content"] == f"[the flow run in Prefect]({page})"
    for nothing in ("", "javascript:alert(1)", "http://a b", "http://a)[x](javascript:y"):
        monkeypatch.setenv(FLOW_RUN_VARIABLE, nothing)
        with start() as run:
            pass
        assert not {FLOW_RUN, "mlflow.note.content"} & read_run(params, root, run.run_id).data.tags.keys()


def test_the_run_of_a_batch_links_to_its_report_and_its_flow_run(params: Params, root: Path, tmp_path: Path) -> None:
    for file in ("report.html", "summary.json"):
        (tmp_path / file).write_text("x")
    summary = {"batch": "a", "content": "c", "false_discovery_rate": 0.1, "folder": str(tmp_path)}
    summary["identity"] = {"detector": "d"}
    links = {FLOW_RUN: "http://127.0.0.1:4200/runs/flow-run/1", REPORT: "http://127.0.0.1:4400/we%20ird/report.html"}
    tags = read_run(params, root, tracking.log_batch(summary, params, root, links)).data.tags
    assert {key: tags[key] for key in links} == links
    assert tags["mlflow.note.content"] == (
        f"[the flow run in Prefect]({links[FLOW_RUN]}), [the report of the batch]({links[REPORT]})"
    )


def test_every_value_arrives_by_step_in_few_requests(
    start, params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tracking.open_client(tracking.tracking_uri(params, root))
    sizes = []
    with start() as run:
        send = run._client.log_batch
        monkeypatch.setattr(
            run._client,
            "log_batch",
            lambda run_id, metrics: (sizes.append(len(metrics)), send(run_id, metrics=metrics)),
        )
        for step in range(700):
            run.log(step, {"train_bits_per_dim": 8.0 - step / 100, "gradient_norm": math.nan if step == 3 else 1.0})
    history = sorted(client.get_metric_history(run.run_id, "train_bits_per_dim"), key=lambda value: value.step)
    assert [value.step for value in history] == list(range(700))
    assert history[100].value == 7.0
    assert sum(sizes) == 1400
    assert len(sizes) <= 6


def test_a_body_that_raises_leaves_a_failed_run_with_its_values(start, params: Params, root: Path) -> None:
    with pytest.raises(ZeroDivisionError), start() as run:  # noqa: PT012 the body is what is tested
        run.log(0, {"loss": 1.0})
        _ = 1 / 0
    failed = read_run(params, root, run.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.metrics == {"loss": 1.0}
    with pytest.raises(KeyboardInterrupt), start() as run:
        raise KeyboardInterrupt
    assert read_run(params, root, run.run_id).info.status == "KILLED"


def test_a_resumed_training_continues_its_run_and_an_unknown_run_starts_anew(start, params: Params, root: Path) -> None:
    with pytest.raises(RuntimeError), start() as first:  # noqa: PT012 the body is what is tested
        first.log(0, {"loss": 2.0})
        raise RuntimeError
    with start(resume_run_id=first.run_id) as second:
        assert read_run(params, root, second.run_id).info.status == "RUNNING"
        second.log(1, {"loss": 1.0})
    assert second.run_id == first.run_id
    assert read_run(params, root, first.run_id).info.status == "FINISHED"
    with start(resume_run_id="0" * 32) as other:
        pass
    assert other.run_id != first.run_id


KILLED = """
import os, signal, sys
from pathlib import Path
from densitywatch.params import load_params
from densitywatch.tracking import runs
asked = {"dataset_name": "fashion_mnist", "dataset_digest": "d" * 64, "stage": "train@pixelcnn"}
with runs.training_run("pixelcnn", load_params(Path(sys.argv[1])), Path(sys.argv[2]), **asked) as run:
    for step in range(3):
        run.log(step, {"loss": float(step)})
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_values_that_a_killed_training_had_not_sent_are_sent_by_the_next_one_which_goes_on_with_its_run_or_ends_it(
    start, params: Params, root: Path
) -> None:
    def killed() -> str:
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        command = [sys.executable, "-c", KILLED, str(PARAMS), str(root)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == -9
        return done.stdout.strip()

    client = tracking.open_client(tracking.tracking_uri(params, root))
    known = killed()
    assert client.get_metric_history(known, "loss") == []
    with start(resume_run_id=known) as run:
        assert run.run_id == known
        run.log(3, {"loss": 3.0})
    assert [(point.step, point.value) for point in client.get_metric_history(known, "loss")] == [
        (step, float(step)) for step in range(4)
    ]
    unknown = killed()
    with start() as run:
        assert run.run_id != unknown
    assert len(client.get_metric_history(unknown, "loss")) == 3
    assert read_run(params, root, unknown).info.status == "KILLED"
    assert not list(root.glob("var/runs/*.unsent"))


def test_a_run_that_a_server_made_twice_because_its_answer_was_lost_is_there_once(
    start, params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_run
    made: list[str] = []

    def twice(self: MlflowClient, *given: object, **named: object) -> object:
        first, second = create(self, *given, **named), create(self, *given, **named)  # type: ignore[arg-type]
        made.extend([first.info.run_id, second.info.run_id])
        return second

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    with start() as run:
        pass
    assert run.run_id == made[1]
    assert read_run(params, root, made[0]).info.lifecycle_stage == "deleted"


def test_a_store_that_fails_in_the_middle_loses_no_value(
    start, params: Params, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_VALUES", 2)
    with caplog.at_level(logging.WARNING), start() as run:
        send = run._client.log_batch
        monkeypatch.setattr(run._client, "log_batch", refuse)
        for step in range(5):
            run.log(step, {"loss": 1.0})
        monkeypatch.setattr(run._client, "log_batch", send)
    assert read_run(params, root, run.run_id).data.metrics == {"loss": 1.0}
    assert len(run._client.get_metric_history(run.run_id, "loss")) == 5
    assert len([record for record in caplog.records if "the run goes on" in record.message]) == 1


def refuse(*_: object, **__: object) -> None:
    raise ConnectionError("gone")


def test_a_store_that_never_comes_back_is_heard_of_at_the_end(start, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DensitywatchError, match="gone"), start() as run:  # noqa: PT012 the body is what is tested
        monkeypatch.setattr(run._client, "log_batch", refuse)
        run.log(0, {"loss": 1.0})


def test_an_evaluation_joins_the_run_that_trained_the_model(start, params: Params, root: Path, tmp_path: Path) -> None:
    with start() as run:
        pass
    (tmp_path / "samples.png").write_bytes(b"picture")
    assert tracking.log_evaluation(run.run_id, {"bits_per_dim": 2.9}, tmp_path, params, root)
    noted = read_run(params, root, run.run_id)
    assert noted.info.status == "FINISHED"
    assert noted.data.metrics == {"bits_per_dim": 2.9}
    assert (root / "mlartifacts" / run.run_id / "artifacts" / "evaluation" / "samples.png").read_bytes() == b"picture"


def test_the_evaluation_of_a_run_from_another_machine_is_left_out(params: Params, root: Path) -> None:
    assert not tracking.log_evaluation("f" * 32, {"bits_per_dim": 2.9}, None, params, root)


def test_a_deleted_experiment_is_named(params: Params, root: Path) -> None:
    gone = params.model_copy(update={"mlflow": params.mlflow.model_copy(update={"experiment": "gone"})})
    identity = tracking.prepare_store(gone, root)
    tracking.open_client(tracking.tracking_uri(gone, root)).delete_experiment(identity)
    with pytest.raises(DensitywatchError, match="'gone' was deleted"):
        tracking.prepare_store(gone, root)
