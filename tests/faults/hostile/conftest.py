"""The session of `make faults` ends with a table of the hostile inputs as well."""

from __future__ import annotations

import pytest

from tests.faults.hostile.count import Count, write

COUNTS: list[Count] = []


@pytest.fixture(scope="session")
def counts() -> list[Count]:
    """The rows of this session."""
    return COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if COUNTS:
        terminalreporter.section("hostile inputs")
        terminalreporter.write(write(COUNTS, config.rootpath))
