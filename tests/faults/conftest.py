"""`make faults`: every test of this folder has the marker `faults`, and the session ends with a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.tally import Tally

FOLDER = Path(__file__).parent
TALLY = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    """The table of this session: a test counts in it what it breaks."""
    return TALLY


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("faults")
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if TALLY.faults:
        terminalreporter.section("faults")
        terminalreporter.write(TALLY.write(config.rootpath))
