from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from densitywatch import stopping


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    # under nohup, or in the background of a script, some are ignored from the start
    at_start = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    before = {number: signal.SIG_DFL for number in stopping.SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    for number, handler in before.items():
        signal.signal(number, handler)
    yield
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before
    with stopping.listening(lambda number: None):
        pass  # forgets what it was asked in the test
    for number, handler in at_start.items():
        signal.signal(number, handler)


def stopped_by(number: signal.Signals) -> None:
    """Send the signal to this process; the exception comes while it waits."""
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_each_signal_stops_the_main_thread_and_a_thread_hears_of_it(number: signal.Signals, code: int) -> None:
    heard = threading.Event()
    told: list[int] = []

    def at_once(found: int) -> None:
        told.append(found)
        heard.set()

    with pytest.raises(stopping.Stopped) as caught, stopping.listening(at_once):
        stopped_by(number)
    assert heard.wait(60)
    assert told == [number]
    assert stopping.asked() == caught.value.number == number
    assert stopping.exit_code(number) == code
    with pytest.raises(stopping.Stopped):
        stopping.stop_if_asked()


def test_work_on_one_item_is_done_before_the_stop() -> None:
    done = []

    def work() -> None:
        for item in stopping.between([1, 2, 3]):
            if item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            done.append(item)

    with pytest.raises(stopping.Stopped), stopping.listening(lambda number: None):
        work()
    assert done == [1, 2]


def test_a_second_signal_does_not_cut_what_the_first_one_started() -> None:
    with stopping.listening(lambda number: None):
        with pytest.raises(stopping.Stopped):
            stopped_by(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening(lambda number: None):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.2)
        assert stopping.asked() is None
        stopping.stop_if_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_changed() -> None:
    seen = []

    def listen() -> None:
        with stopping.listening(lambda number: None):
            seen.append({number: signal.getsignal(number) for number in stopping.SIGNALS})

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join(60)
    assert seen == [{number: signal.getsignal(number) for number in stopping.SIGNALS}]


def test_what_comes_first_is_called_in_the_main_thread_and_has_been_when_the_exception_is_seen() -> None:
    threads: list[threading.Thread] = []

    def first() -> None:
        threads.append(threading.current_thread())

    with pytest.raises(stopping.Stopped), stopping.listening(lambda number: None, first=first):
        stopped_by(signal.SIGTERM)
    assert threads == [threading.main_thread()]


def test_what_a_block_hears_late_is_not_the_signal_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    late, hear = threading.Event(), stopping._hear
    heard = threading.Event()

    def hear_late(reader: int, awaited: set[signal.Signals], at_once: Callable[[int], None], block: object) -> None:
        late.wait(60)
        hear(reader, awaited, at_once, block)

    monkeypatch.setattr(stopping, "_hear", hear_late)
    with pytest.raises(stopping.Stopped), stopping.listening(lambda number: heard.set()):
        stopped_by(signal.SIGTERM)
    monkeypatch.undo()
    with stopping.listening(lambda number: None):
        late.set()
        assert heard.wait(60)
        assert stopping.asked() is None
    stopping.stop_if_asked()
