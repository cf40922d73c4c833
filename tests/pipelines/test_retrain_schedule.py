"""The schedule of `retrain` as params set it, on a server that only notes what it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from densitywatch.errors import ParamsError
from pipelines.retrain_schedule import SLUG, keep_schedule


class Noting:
    """Stands in for Prefect's client, with one deployment."""

    def __init__(self) -> None:
        self.deployment: Any = SimpleNamespace(id=uuid4(), schedules=[])

    def keep(self, cron: str | None, before: object) -> dict[str, str | None]:
        return keep_schedule(self, self.deployment, cron, before)  # type: ignore[arg-type]

    @property
    def crons(self) -> list[str]:
        return [one.schedule.cron for one in self.deployment.schedules]

    def create_deployment_schedules(self, _: UUID, made: list[Any]) -> None:
        for one in made:
            self.deployment.schedules.append(SimpleNamespace(id=uuid4(), schedule=one.schedule, slug=one.slug))

    def update_deployment_schedule(self, _: UUID, schedule_id: UUID, *, schedule: Any) -> None:
        next(one for one in self.deployment.schedules if one.id == schedule_id).schedule = schedule

    def delete_deployment_schedule(self, _: UUID, schedule_id: UUID) -> None:
        self.deployment.schedules = [one for one in self.deployment.schedules if one.id != schedule_id]


def test_the_schedule_follows_params_and_what_a_person_deleted_or_made_stays() -> None:
    server = Noting()
    noted = server.keep(None, None)
    assert server.crons == []
    noted = server.keep("0 3 * * 0", noted)
    assert [(one.schedule.cron, one.slug) for one in server.deployment.schedules] == [("0 3 * * 0", SLUG)]
    by_hand = SimpleNamespace(id=uuid4(), slug=None, schedule=SimpleNamespace(cron="5 5 5 5 *"))
    server.deployment.schedules.append(by_hand)
    noted = server.keep("30 2 * * 6", noted)
    assert server.crons == ["30 2 * * 6", "5 5 5 5 *"]
    server.deployment.schedules = [by_hand]
    noted = server.keep("30 2 * * 6", noted)
    assert server.crons == ["5 5 5 5 *"]
    noted = server.keep("0 1 * * 1", noted)
    assert server.keep(None, noted)["cron"] is None
    assert server.crons == ["5 5 5 5 *"]


def test_a_server_that_lost_its_database_gets_the_schedule_again() -> None:
    noted = Noting().keep("0 3 * * 0", None)
    anew = Noting()
    anew.keep("0 3 * * 0", noted)
    assert anew.crons == ["0 3 * * 0"]


def test_what_is_no_time_of_cron_is_refused_in_one_sentence() -> None:
    with pytest.raises(ParamsError, match=r"^retrain\.cron: 99 3 \* \* 0: not a time of cron; give one such as "):
        Noting().keep("99 3 * * 0", None)
