"""db.serving.alerts: kept, claimed by one process at a time, tried again, bounded."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from manybeam.db.database import Database, now
from manybeam.db.serving import alerts as module
from manybeam.db.serving.alerts import Alert, Alerts
from manybeam.db.serving.sessions import Sessions
from manybeam.db.tables import AlertRow
from manybeam.db.tokens import Instruments
from manybeam.errors import InvalidInput

CONTENT = {"session": 1, "frames": {"now": {"png": "aGk="}}}


@pytest.fixture
def alerts(database: Database) -> Alerts:
    Instruments(database).add("STEM-1", who="ada")
    return Alerts(database)


def add(alerts: Alerts, kind: str = "drifted", **more: Any) -> Alert:
    given = {"text": "it drifted", "content": CONTENT, "instrument": "STEM-1", "is_sent": True}
    return alerts.add(kind, **{**given, **more})


def make_older(database: Database, days: float) -> None:
    with database.writing() as connection:
        at = now(connection) - timedelta(days=days)
        connection.execute(update(AlertRow).values(at=at))


def test_an_alert_reads_back_as_it_was_added(alerts: Alerts, database: Database) -> None:
    session = Sessions(database).put("STEM-1", policy="auto", ref="auto", who="ada")
    made = add(alerts, session_id=session.id)
    add(alerts, "back in control", instrument="")
    assert alerts.recent("STEM-1") == [made]
    assert [one.kind for one in alerts.recent()] == ["back in control", "drifted"]
    assert (made.session_id, made.content, made.delivered, made.tries) == (
        session.id, CONTENT, None, 0,
    )  # fmt: skip
    assert len(alerts.recent(limit=1)) == 1


def test_an_alert_is_due_until_it_is_delivered(alerts: Alerts) -> None:
    first, second = add(alerts), add(alerts)
    claimed = alerts.claim(hold_s=60, limit=9)
    assert [one.id for one in claimed] == [first.id, second.id]
    assert alerts.claim(hold_s=60) == []
    alerts.delivered(first.id)
    alerts.failed(second.id, "refused", pause_s=0)
    (left,) = alerts.claim(hold_s=60, limit=9)
    assert (left.id, left.tries, left.last_error) == (second.id, 1, "refused")
    assert alerts.recent()[1].delivered is not None


def test_an_alert_of_a_process_that_ended_is_due_again(alerts: Alerts) -> None:
    made = add(alerts)
    alerts.claim(hold_s=0)
    assert [one.id for one in alerts.claim(hold_s=60)] == [made.id]


@pytest.mark.parametrize("pause_s", [None, 90_000], ids=["given up", "too late"])
def test_an_alert_that_is_given_up_is_not_due(alerts: Alerts, pause_s: float | None) -> None:
    alerts.failed(add(alerts).id, "gone", pause_s=pause_s)
    assert alerts.recent()[0].next_try is None
    assert alerts.claim(hold_s=0) == []


def test_an_alert_that_is_not_to_be_sent_or_is_old_is_not_due(
    alerts: Alerts, database: Database
) -> None:
    add(alerts, is_sent=False)
    assert alerts.claim(hold_s=0) == []
    add(alerts)
    make_older(database, 1.01)
    assert alerts.claim(hold_s=0) == []


def test_of_many_who_claim_at_once_each_gets_others(alerts: Alerts) -> None:
    made = {add(alerts).id for _ in range(12)}
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda _: alerts.claim(hold_s=60, limit=2), range(12)))
    claimed = [one.id for some in got for one in some]
    assert len(claimed) == len(set(claimed))
    claimed += [one.id for one in alerts.claim(hold_s=60, limit=12)]
    assert set(claimed) == made


def test_one_that_was_delivered_meanwhile_stays_delivered(alerts: Alerts) -> None:
    made = add(alerts)
    alerts.delivered(made.id)
    alerts.failed(made.id, "timed out", pause_s=0)
    (found,) = alerts.recent()
    assert (found.tries, found.next_try, found.last_error) == (0, None, "")


def test_the_alerts_that_are_kept_are_bounded(
    alerts: Alerts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    made = [add(alerts).id for _ in range(5)]
    assert [one.id for one in alerts.recent()] == made[:1:-1]
    make_older(database, module.KEPT_DAYS + 1)
    assert alerts.recent() != []
    last = add(alerts)
    assert alerts.recent() == [last]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"score": float("nan")}, id="NaN"),
        pytest.param({"frames": b"png"}, id="bytes"),
        pytest.param({"png": "a" * module.MOST_BYTES}, id="large"),
    ],
)
def test_content_that_cannot_be_sent_is_refused(alerts: Alerts, content: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="content of the alert"):
        add(alerts, content=content)
    assert alerts.recent() == []
