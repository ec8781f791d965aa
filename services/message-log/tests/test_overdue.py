"""Messages that should have an outcome by now: found whoever lost them, and however many wait rightly."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from message_log import store
from message_log.decide import tells
from message_log.freshness import Freshness
from message_log.overdue import GRACE, Overdue, Pass
from message_log_builders import T0, after, consented, held, rejected, requested, status
from sendwhy.events import Origin, OriginKind, Scope, Status, Wire
from sendwhy.metrics import Metric, Metrics
from sendwhy.reasons import ReasonCode, Service

pytestmark = pytest.mark.postgres
LIFE = timedelta(minutes=15)
INBOX = Origin(kind=OriginKind.INBOX, thread_id="t")
DUE = T0 + LIFE + GRACE


async def tell(connection: asyncpg.Connection, workspace: str, name: str, *events: Wire) -> None:
    for event in events:
        state = tells(event, T0)
        assert state is not None
        await store.fold_messages(connection, {(workspace, name): state})


async def found_at(connection: asyncpg.Connection, now: datetime, at_once: int = 2000) -> tuple[int, datetime | None]:
    walk = Pass()
    while not walk.is_over:
        await walk.step(connection, now, at_once)
    return walk.found.messages, walk.found.oldest


def asked(name: str, **more: Any) -> Wire:
    return requested(message_id=name, origin=INBOX, **more)


async def test_who_has_no_outcome_after_its_expiry_is_overdue_wherever_it_was_lost(
    connection: asyncpg.Connection,
) -> None:
    hour = after(3600)
    await tell(connection, "acme", "never-read-by-consent", asked("never-read-by-consent"))
    own = asked("own-expiry", expires_at=hour)
    await tell(connection, "acme", "own-expiry", own, consented(message_id="own-expiry", expires_at=hour))
    taken = status(Status.ACCEPTED, 1, message_id="taken")
    await tell(connection, "acme", "taken", asked("taken"), taken)
    no = rejected(ReasonCode.INSUFFICIENT_CREDITS, 2, Service.BILLING, message_id="refused")
    await tell(connection, "acme", "refused", asked("refused"), no)
    assert await found_at(connection, DUE - timedelta(seconds=1)) == (0, None)
    assert await found_at(connection, DUE + timedelta(seconds=1)) == (1, T0 + LIFE)
    assert await found_at(connection, hour + GRACE + timedelta(seconds=1)) == (2, T0 + LIFE)


async def test_what_says_for_what_it_waits_is_not_overdue_while_it_waits(connection: asyncpg.Connection) -> None:
    waits = held(ReasonCode.RATE_LIMIT_EXCEEDED, 1, 7200, message_id="m", scope=Scope(kind="message", id="m"))
    await tell(connection, "acme", "m", asked("m"), waits)
    assert await found_at(connection, DUE + timedelta(seconds=1)) == (0, None)
    assert await found_at(connection, after(7201) + GRACE) == (1, T0 + LIFE)


@pytest.mark.parametrize("at_once", [1, 3, 2000])
async def test_steps_of_any_size_find_all_of_all_workspaces(connection: asyncpg.Connection, at_once: int) -> None:
    for number in range(12):
        await tell(connection, f"w{number % 3}", f"m{number}", asked(f"m{number}"))
    assert await found_at(connection, DUE + timedelta(seconds=1), at_once) == (12, T0 + LIFE)


async def test_the_gauge_goes_by_what_the_log_has_read(connection: asyncpg.Connection) -> None:
    await tell(connection, "acme", "lost", asked("lost"))
    metrics, clock = Metrics(Service.MESSAGE_LOG), [DUE]
    freshness = Freshness(metrics, now=lambda: clock[0])

    @asynccontextmanager
    async def connect() -> AsyncIterator[asyncpg.Connection]:
        yield connection

    overdue = Overdue(metrics, freshness, connect)
    clock[0] = DUE + timedelta(seconds=60)
    metrics.set(Metric.CONSUMER_LAG, 1, stage="send.rejected")
    await overdue.measure()
    value = metrics.registry.get_sample_value
    assert value(Metric.OUTCOMES_OVERDUE) == 0, "its outcome may be among what waits to be read"
    metrics.set(Metric.CONSUMER_LAG, 0, stage="send.rejected")
    await overdue.measure()
    assert value(Metric.OUTCOMES_OVERDUE) == 1
    assert value(Metric.OUTCOME_OVERDUE_SECONDS) == 60 + GRACE.total_seconds()
