"""What the status says of the gate, read from a store with models that have several versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError
from densitywatch.params import Params
from densitywatch.registry.last_verdicts import last_verdicts
from densitywatch.tracking import runs as tracking


def test_each_model_has_its_newest_verdict_and_its_champion_and_nothing_is_made(params: Params, tmp_path: Path) -> None:
    assert last_verdicts(params, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    tracking.prepare_store(params, tmp_path)
    client = tracking.open_client(tracking.tracking_uri(params, tmp_path))
    for name, gates in (("vae", ["passed", "rejected", None]), ("gan", ["passed"]), ("dcgan", [None])):
        client.create_registered_model(f"densitywatch-{name}")
        for number, gate in enumerate(gates, start=1):
            client.create_model_version(f"densitywatch-{name}", "file:///nowhere")
            if gate is not None:
                client.set_model_version_tag(f"densitywatch-{name}", str(number), "gate", f"version {number} {gate}")
    client.set_registered_model_alias("densitywatch-vae", "champion", "1")
    client.create_registered_model("somebody-elses")
    client.create_model_version("somebody-elses", "file:///nowhere", tags={"gate": "passed"})
    found = {verdict.model: verdict for verdict in last_verdicts(params, tmp_path)}
    assert set(found) == {"vae", "gan"}
    assert (found["vae"].champion, found["vae"].version, found["vae"].reason) == ("1", "2", "version 2 rejected")
    assert (found["gan"].champion, found["gan"].reason) == (None, "version 1 passed")
    times = [verdict.time for verdict in last_verdicts(params, tmp_path)]
    assert times == sorted(times, reverse=True)


def test_a_store_that_does_not_answer_is_one_sentence(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(DensitywatchError, match=r"MLflow's store http://127\.0\.0\.1:9 cannot be opened \(no answer\)"):
        last_verdicts(params, tmp_path)
