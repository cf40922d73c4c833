"""The scheduled job as Prefect runs it, with a stand-in for the detector: what one batch or one kill must not spoil."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from prefect.client.orchestration import get_client

from densitywatch.batches import checks
from densitywatch.batches.inbox import find_batches
from densitywatch.data.decoding.images import decode_picture
from densitywatch.detector import conformal
from densitywatch.errors import DataError, DriftAlarm
from densitywatch.models import pixelcnn
from densitywatch.models.storage import save_model
from densitywatch.params import load_params
from densitywatch.registry.read_history import read_history
from densitywatch.registry.version_files import content_digest
from densitywatch.stopping import Stopped
from densitywatch.tracking import runs as tracking
from pipelines import detect_outliers as job
from pipelines import drift_loop
from pipelines.drift_note import standing_alarm
from tests.detector.standin import Brightness, fill
from tests.pipelines.site import until

pytestmark = pytest.mark.usefixtures("prefect_server")
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two batches in its inbox."""
    monkeypatch.setattr(job, "CHAMPION", Brightness())
    params = (PROJECT / "params.yaml").read_text()
    one_slot, several = re.subn(r"(?m)^  slots: \d+", "  slots: 1", params)  # as other tests find it on this server
    assert several == 1
    (tmp_path / "params.yaml").write_text(one_slot)
    for name in ("a", "b"):
        fill(tmp_path / "data" / "inbox" / name, 5)
        (tmp_path / "data" / "inbox" / name / "_SUCCESS").touch()
    return tmp_path


def set_inbox(root: Path, key: str, value: str) -> None:
    """Write another value for a key of the inbox into params.yaml."""
    text = (root / "params.yaml").read_text()
    block = text[text.index("\ninbox:") :]
    changed, several = re.subn(rf"(?m)^  {key}: \S+", f"  {key}: {value}", block, count=1)
    assert several == 1, key
    (root / "params.yaml").write_text(text.replace(block, changed))


def scored(root: Path, batch: str) -> pd.DataFrame:
    table = pd.read_parquet(root / "data" / "outliers" / batch / "scores.parquet")
    return table[table.status == "scored"]


def make_label_champion(root: Path, names: tuple[str, ...]) -> pixelcnn.PixelCNN:
    """A density by label with random weights, champion of `densitywatch-labeller` in the registry of `root`."""
    torch.manual_seed(0)
    settings = pixelcnn.Settings(channels=4, dilations=(1,), conditional=True)
    model = pixelcnn.PixelCNN(settings, channels=1, size=28, classes=len(names))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    home = root / "mlartifacts" / "labeller"
    folder = home / "artifacts" / "model"
    save_model(model, folder, kind="pixelcnn", class_names=names, about={})
    params = load_params(root / "params.yaml")
    tracking.prepare_store(params, root)
    client = tracking.open_client(tracking.tracking_uri(params, root))
    client.create_registered_model("densitywatch-labeller")
    made = client.create_model_version(
        "densitywatch-labeller", home.as_uri(), tags={"content_sha256": content_digest(folder)}
    )
    client.set_registered_model_alias("densitywatch-labeller", "champion", made.version)
    return model


def states(root: Path) -> dict[str, str]:
    params = load_params(root / "params.yaml")
    return {batch.name: batch.state for batch in find_batches(params, root, now=time.time())}


def logged(root: Path) -> int:
    params = load_params(root / "params.yaml")
    client = tracking.open_client(tracking.tracking_uri(params, root))
    assert client.get_experiment_by_name(params.mlflow.experiment) is None, "no batch is among the training runs"
    experiment = client.get_experiment_by_name(tracking.batches_experiment(params))
    return len(client.search_runs([experiment.experiment_id])) if experiment else 0


def test_an_empty_batch_and_one_of_broken_files_alone_keep_no_other_waiting(root: Path) -> None:
    inbox = root / "data" / "inbox"
    for name, files in (("0_empty", 0), ("1_broken", 4)):
        (inbox / name).mkdir()
        for i in range(files):
            (inbox / name / f"{i}.png").write_bytes(b"no image")
        (inbox / name / "_SUCCESS").touch()
    with pytest.raises(DataError, match="not as expected: 1_broken") as caught:
        job.detect_outliers(root)
    assert "0_empty" not in str(caught.value)
    assert states(root) == dict.fromkeys(["0_empty", "1_broken", "a", "b"], "done")
    assert logged(root) == 4


def test_a_job_killed_after_the_results_stood_is_taken_up_and_mlflow_hears_of_the_batch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "log_batch", kill)
        with pytest.raises(Killed):
            job.detect_outliers(root)
    results = root / "data" / "outliers" / "a"
    before = (results / "scores.parquet").stat().st_mtime_ns
    assert states(root) == {"a": "ready", "b": "ready"}
    assert logged(root) == 0
    assert {summary["batch"] for summary in job.detect_outliers(root)} == {"data/inbox/a", "data/inbox/b"}
    assert states(root) == {"a": "done", "b": "done"}
    assert logged(root) == 2
    assert (results / "scores.parquet").stat().st_mtime_ns == before, "the results stood and were not made again"
    assert job.detect_outliers(root) == []


@pytest.mark.parametrize("what", [Stopped(signal.SIGTERM), MemoryError()])
def test_a_batch_whose_check_was_stopped_or_failed_is_not_done_and_is_checked_by_the_next_job(
    root: Path, monkeypatch: pytest.MonkeyPatch, what: BaseException
) -> None:
    def end(*_: Any) -> None:
        raise what

    with monkeypatch.context() as patched:
        patched.setattr(checks, "validate_batch", end)
        with pytest.raises((Stopped, DataError)):
            job.detect_outliers(root)
    assert states(root) == {"a": "ready", "b": "ready"}
    job.detect_outliers(root)
    assert states(root) == {"a": "done", "b": "done"}
    assert all((root / "data" / "outliers" / name / "validation.html").is_file() for name in ("a", "b"))


def test_the_champion_that_the_inbox_names_labels_every_image_and_moves_no_verdict(root: Path) -> None:
    fill(root / "data" / "inbox" / "a", 5, bright=3)
    names = ("shirt", "bag", "boot")
    model = make_label_champion(root, names)
    job.detect_outliers(root, batches=["a"])
    without = scored(root, "a")
    assert "label" not in without

    set_inbox(root, "labels", "labeller")
    job.detect_outliers(root, batches=["a"])
    labelled = scored(root, "a")
    source = root / "data" / "inbox" / "a"
    images = [
        decode_picture((source / path).read_bytes(), size=28, channels=1, resize="crop") for path in labelled.path
    ]
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        posterior = model.log_prob_by_label(pixels).double().softmax(1)
    assert len(labelled) == 8
    assert list(labelled.label) == [names[k] for k in posterior.argmax(1)]
    assert np.allclose(labelled.label_probability, posterior.amax(1), atol=5e-3)
    assert list(labelled.outlier) == list(without.outlier)


def test_a_champion_whose_files_are_gone_loses_no_batch_and_run_artifact_results_and_mlflow_say_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    make_label_champion(root, ("shirt", "bag", "boot"))
    set_inbox(root, "labels", "labeller")
    (first,) = job.detect_outliers(root, batches=["a"])
    assert "stand_in" not in first
    shutil.rmtree(root / "mlartifacts" / "labeller")
    warned: list[str] = []

    class Log:
        info = error = staticmethod(lambda *_, **__: None)

        def warning(self, text: str, *given: Any) -> None:
            warned.append(text % given)

    monkeypatch.setattr(job, "get_run_logger", Log)
    state = job.detect_outliers(root, return_state=True)
    assert state.is_completed()
    assert states(root) == {"a": "done", "b": "done"}
    assert len(scored(root, "b").label) == 5

    said = "version 1: its files are gone"
    run = json.loads((root / "data" / "outliers" / "b" / "run.json").read_text())
    assert said in run["stand_in"]
    assert run["stand_in"].endswith("the watch keeps version 1, the last one that it had verified")
    assert json.loads((root / "data" / "outliers" / "a" / "run.json").read_text())["stand_in"] == ""
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["outlier-batch"]))
        newest = max(client.read_artifacts(artifact_filter=chosen), key=lambda one: one.created)
        assert f"**Not scored with the champion:** densitywatch-labeller {said}" in str(newest.data)
    assert [said in one for one in warned if "labeller" in one] == [True]
    params = load_params(root / "params.yaml")
    store = tracking.open_client(tracking.tracking_uri(params, root))
    experiment = store.get_experiment_by_name(tracking.batches_experiment(params))
    assert experiment is not None
    tags = [one.data.tags.get("stand_in", "") for one in store.search_runs([experiment.experiment_id])]
    assert sorted(said in tag for tag in tags) == [False, True]
    _, found = read_history("labeller", params, root)
    assert [(one.outcome, one.before, one.after) for one in found] == [("moved by hand", None, "1")]


def test_the_inbox_is_judged_as_one_stream_unless_it_says_batch_and_a_batch_keeps_its_place(root: Path) -> None:
    fill(root / "data" / "inbox" / "a", 40, bright=1)
    fill(root / "data" / "inbox" / "b", 40, bright=4)
    found = {summary["batch"]: summary for summary in job.detect_outliers(root)}
    a, b = found["data/inbox/a"], found["data/inbox/b"]
    assert [summary["control"] for summary in (a, b)] == ["stream", "stream"]
    assert [summary["stream_batch"] for summary in (a, b)] == [1, 2]
    assert [summary["outliers"] for summary in (a, b)] == [0, 4]
    assert "Over all batches of this stream together" in a["promise"]
    (again,) = job.detect_outliers(root, batches=["a"])
    assert again["stream_batch"] == 1
    set_inbox(root, "control", "batch")
    (alone,) = job.detect_outliers(root, batches=["a"])
    assert (alone["control"], alone["outliers"]) == ("batch", 1)
    set_inbox(root, "control", "stream")
    set_inbox(root, "alike", "5")
    (scenes,) = job.detect_outliers(root, batches=["a"])
    assert "at most 5 images show the same scene" in scenes["promise"]


def test_a_batch_that_raises_the_alarm_and_is_not_as_expected_says_both(root: Path) -> None:
    set_inbox(root, "drift_alarm", "0.9")
    for name, bright in (("a", 40), ("b", 41)):
        fill(root / "data" / "inbox" / name, 0, bright=bright)
    for number in range(30):  # more than inbox.max_quarantined_share of the last batch
        (root / "data" / "inbox" / "b" / f"broken{number}.png").write_bytes(b"no image")
    (root / "data" / "inbox" / "b" / "_SUCCESS").touch()
    with pytest.raises(DataError, match=r"not as expected: b .*; the stream has moved: alarm at batch b"):
        job.detect_outliers(root)


def test_a_drift_alarm_ends_the_run_in_a_state_of_its_name_and_the_results_stand(root: Path) -> None:
    set_inbox(root, "drift_alarm", "0.9")  # so that two batches of outliers are enough
    for name, bright in (("a", 40), ("b", 41)):  # a batch of the same files would not count again
        fill(root / "data" / "inbox" / name, 0, bright=bright)
    state = job.detect_outliers(root, return_state=True)
    assert state.is_failed()
    assert state.name == job.ALARM == "Drift alarm"
    assert "alarm at batch b, most likely since batch a" in str(state.message)
    assert "inbox.drift_seen" in str(state.message)
    assert len(scored(root, "b")) == 46
    assert states(root) == {"a": "done", "b": "done"}, "no batch is scored again"
    assert job.detect_outliers(root) == []
    with pytest.raises(DriftAlarm, match="alarm at batch b"):
        job.detect_outliers(root, batches=["b"])
    set_inbox(root, "drift_seen", "b")
    fill(root / "data" / "inbox" / "c", 5)
    (root / "data" / "inbox" / "c" / "_SUCCESS").touch()
    assert [summary["drift_batches"] for summary in job.detect_outliers(root)] == [1]


def in_the_server(method: str, path: str, body: dict[str, Any]) -> Any:
    with get_client(sync_client=True) as client:
        return client.request(method, path, json=body).json()  # type: ignore[arg-type]


def newest_run() -> dict[str, Any]:
    found = in_the_server("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return dict(found[0])


def test_an_alarm_is_told_and_asks_once_in_prefect_by_events_that_name_its_batches_and_the_run(root: Path) -> None:
    set_inbox(root, "drift_alarm", "0.9")
    for name, bright in (("a", 40), ("b", 41)):
        fill(root / "data" / "inbox" / name, 0, bright=bright)
    ours = []
    for _ in range(3):
        job.detect_outliers(root, batches=["a", "b"], return_state=True)
        ours.append(newest_run()["id"])
    mine = {"resource": {"id_prefix": ["densitywatch.stream."]}}

    def events() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = in_the_server("POST", "/events/filter", {"filter": mine})["events"]
        return [event for event in found if event["payload"]["scored_by"] in ours]

    until(events, 60)  # the server writes them down every few seconds
    assert sorted(event["event"] for event in events()) == ["densitywatch.drift", "densitywatch.drift-alarm"]
    for event in events():
        assert event["payload"]["scored_by"] == ours[0]
        assert (event["payload"]["batch"], event["payload"]["since"]) == ("b", "a")
        assert event["payload"]["sentence"].startswith(
            "The stream has moved: alarm at batch b, most likely since batch a"
        )


def test_a_server_that_takes_no_event_fails_no_batch_and_is_asked_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_inbox(root, "drift_alarm", "0.9")
    for name, bright in (("a", 40), ("b", 41)):
        fill(root / "data" / "inbox" / name, 0, bright=bright)

    class Refuses:
        def request(self, *_: Any, **__: Any) -> None:
            raise OSError("no events today")

    with monkeypatch.context() as patched:
        patched.setattr(drift_loop, "get_client", lambda sync_client: nullcontext(Refuses()))
        assert job.detect_outliers(root, return_state=True).name == "Drift alarm"
    assert states(root) == {"a": "done", "b": "done"}
    alarm = standing_alarm(load_params(root / "params.yaml"), root)
    assert alarm is not None
    assert (alarm.batch, alarm.asked) == ("b", None)
    assert job.detect_outliers(root) == []
    alarm = standing_alarm(load_params(root / "params.yaml"), root)
    assert alarm is not None
    assert alarm.asked is not None


def test_a_run_is_named_after_its_batches_and_one_with_outliers_ends_in_a_state_that_says_so(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(root / "data" / "inbox" / "b", 60, bright=6)
    state = job.detect_outliers(root, return_state=True)
    assert (state.is_completed(), state.name) == (True, "Outliers found")
    assert state.message == "6 images flagged in 1 batch: b (6)"
    run = newest_run()
    assert (run["name"], run["state"]["name"]) == ("detect-outliers: 2 batches, a, b", "Outliers found")
    said = [record.message for record in caplog.records]
    assert "a: 5 files, 5 scored, 0 flagged (0.0%), 0 quarantined, drift: no alarm (1 batch in the stream)" in said
    assert "b: 66 files, 66 scored, 6 flagged (9.1%), 0 quarantined, drift: no alarm (2 batches in the stream)" in said
    assert job.detect_outliers(root, return_state=True).name == "Completed"
    assert newest_run()["name"] == "detect-outliers: no new batch"


def test_a_run_with_an_alarm_and_a_broken_batch_names_both(root: Path) -> None:
    set_inbox(root, "drift_alarm", "0.9")
    for name, bright in (("a", 40), ("b", 41)):  # a batch of the same files would not count again
        fill(root / "data" / "inbox" / name, 0, bright=bright)
    (root / "data" / "inbox" / "c").mkdir()
    (root / "data" / "inbox" / "c" / "x.png").write_bytes(b"no image")
    (root / "data" / "inbox" / "c" / "_SUCCESS").touch()
    with pytest.raises(DataError, match=r"not as expected: c .*; the stream has moved: alarm at batch b"):
        job.detect_outliers(root)


def test_a_strict_inbox_flags_by_the_bound_for_this_calibration_set(root: Path) -> None:
    set_inbox(root, "control", "batch")
    fill(root / "data" / "inbox" / "a", 40, bright=1)
    job.detect_outliers(root, batches=["a"])
    plain = scored(root, "a")
    set_inbox(root, "strict", "true")
    job.detect_outliers(root, batches=["a"])
    strict = scored(root, "a")

    rate, calibration = Brightness.false_discovery_rate, len(Brightness.calibration)
    bounds = conformal.conditional_p_values(strict.p_value, calibration)
    assert list(strict.p_value) == list(plain.p_value), "the column keeps the plain p-values"
    assert list(plain.outlier) == list(conformal.benjamini_hochberg(plain.p_value, rate))
    assert list(strict.outlier) == list(conformal.benjamini_hochberg(bounds, rate))
    assert (plain.outlier.sum(), strict.outlier.sum()) == (1, 0)
