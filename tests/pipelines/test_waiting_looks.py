"""Runs that wait behind one that goes on; that one is left of them on a real server is in test_services.py."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from pipelines import waiting_looks


def test_while_a_look_goes_on_those_that_wait_are_thinned_out_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked = uuid4(), threading.Event()
    seen: list[UUID] = []

    def leave_one_waiting(client: object, deployment_id: UUID) -> int:
        seen.append(deployment_id)
        if len(seen) == 1:
            raise OSError("the server is down")
        asked.set()
        return 0

    monkeypatch.setattr(waiting_looks, "EVERY", 0.01)
    monkeypatch.setattr(waiting_looks, "deployment", SimpleNamespace(id=str(own)))
    monkeypatch.setattr(waiting_looks, "get_client", lambda **_: nullcontext())
    monkeypatch.setattr(waiting_looks, "leave_one_waiting", leave_one_waiting)
    with waiting_looks.one_waits():
        assert asked.wait(60)
    count = len(seen)
    assert set(seen) == {own}
    assert count >= 2
    time.sleep(0.1)
    assert len(seen) == count, "it ended with the look"
