"""What the cells tell of messages is what the messages tell: counts, charts, and which stand in a list."""

from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log import cells, queries, store, volume
from message_log.decide import erased, tells
from message_log.queries import Filters
from message_log_builders import T0, after, consented, held, rejected, requested, status
from sendwhy.events import Origin, OriginKind, Scope, Status, To, Wire
from sendwhy.reasons import ReasonCode, Service

R, S = ReasonCode, Status
WEEK = 7 * 24 * 3600
FILTERS = [
    Filters(),
    Filters(status="failed"),
    Filters(status="read"),
    Filters(status="waiting"),
    Filters(status="sending"),
    Filters(reason=R.INSUFFICIENT_CREDITS),
    Filters.model_validate({"reason!": R.INSUFFICIENT_CREDITS}),
    Filters(service=Service.BILLING),
    Filters(campaign="black-friday"),
    Filters(automation="welcome"),
    Filters(origin=OriginKind.API),
    Filters(template="autumn_sale", country="MX"),
    Filters(country="US", status="failed"),
    Filters(contact="c3"),
    Filters(reason=R.MEDIA_FAILED),
]


def events_of(chance: Random, number: int) -> list[Wire]:
    name, phone = f"m{number}", chance.choice(["+525512345678", "+12125550100"])
    origin = chance.choice(
        [
            Origin(kind=OriginKind.CAMPAIGN, id="black-friday"),
            Origin(kind=OriginKind.AUTOMATION, id="welcome", node_id="n1"),
            Origin(kind=OriginKind.API, id=f"call-{number}"),
        ]
    )
    to = To(contact_id=f"c{number % 5}", phone=phone)
    told: list[Wire] = [
        requested(message_id=name, to=to, origin=origin, send_at=chance.choice([None, after(3 * WEEK)])),
        rejected(chance.choice([R.INSUFFICIENT_CREDITS, R.CANCELLED]), 2, Service.BILLING, message_id=name, to=to),
        held(R.RATE_LIMIT_EXCEEDED, 1, 10 * WEEK, message_id=name, scope=Scope(kind="message", id=name)),
        *(status(word, 3, message_id=name) for word in (S.ACCEPTED, S.SENT, S.DELIVERED, S.READ)),
        consented(message_id=name, to=to, origin=origin),
    ]
    return [told[0], *chance.sample(told[1:], chance.randint(0, 4))]


async def fill(connection: asyncpg.Connection, seed: int) -> None:
    """Sixty messages over a week, told event by event; now and then the changes are added up, or a person erased."""
    chance = Random(seed)
    for number in range(60):
        at = T0 + timedelta(seconds=chance.randint(0, WEEK))
        for event in events_of(chance, number):
            state = tells(event, at)
            assert state is not None
            await store.fold_messages(connection, {("acme", f"m{number}"): state})
        if number % 9 == 0:
            await store.fold_messages(connection, {("acme", f"m{number}"): erased(after(2 * WEEK))})
        if number % 20 == 0:
            await cells.add_up(connection)


async def expected(connection: asyncpg.Connection, filters: Filters) -> list[asyncpg.Record]:
    where = queries.Where("acme", filters)
    return await connection.fetch(
        f"select * from message_now m where {where} order by m.at desc, m.message_id desc",
        *where.values,
    )


def spans() -> list[tuple[datetime | None, datetime | None]]:
    whole = datetime.fromisoformat("2026-11-24T07:00:00Z")
    return [(None, None), (after(90_001), None), (after(90_001), after(400_123)), (None, whole), (whole, after(WEEK))]


@pytest.mark.postgres
async def test_lists_counts_and_charts_by_cells_are_those_of_the_messages(connection: asyncpg.Connection) -> None:
    await fill(connection, 1)
    for filters in FILTERS:
        for since, until in spans():
            asked = filters.model_copy(update={"since": since, "until": until})
            rows = await expected(connection, asked)
            assert await cells.total(connection, "acme", asked) == len(rows), asked
            reasons = {(row["reason"], row["service"]) for row in rows if row["reason"] is not None}
            counted = await cells.by_reason(connection, "acme", asked)
            assert {(row.reason, row.service) for row in counted} == reasons
            assert sum(row.count for row in counted) == sum(row["reason"] is not None for row in rows)
            measured = await volume.measure(connection, "acme", asked, after(WEEK))
            assert sum(bar.total for bar in measured.bars) == len(rows), asked
            assert measured.by_status == {word: sum(row["status"] == word for row in rows) for word in queries.STATUSES}
            assert await listed(connection, asked) == [row["message_id"] for row in rows], asked


async def listed(connection: asyncpg.Connection, filters: Filters) -> list[str]:
    """All pages of a list."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await queries.list_messages(connection, "acme", filters, cursor=cursor, limit=7)
        found += [row["message_id"] for row in page.rows]
        if (cursor := page.next_cursor) is None:
            return found


@pytest.mark.postgres
async def test_what_is_added_up_stands_once_and_nothing_empty_stays(connection: asyncpg.Connection) -> None:
    await fill(connection, 2)
    while await cells.add_up(connection):
        pass
    assert await connection.fetchval("select count(*) from message_cell_change") == 0
    kept = await kept_cells(connection)
    assert all(kept.values())
    assert min(row["count"] for rows in kept.values() for row in rows) > 0
    await connection.execute("select count_cells()")
    assert await kept_cells(connection) == kept
    await connection.execute("delete from message")
    assert await cells.total(connection, "acme", Filters()) == 0


@pytest.mark.postgres
async def test_messages_that_come_together_are_one_change_of_their_cell(connection: asyncpg.Connection) -> None:
    told = {("acme", f"m{number}"): tells(requested(message_id=f"m{number}"), T0) for number in range(20)}
    await store.fold_messages(connection, {key: state for key, state in told.items() if state is not None})
    rows = await connection.fetch("select outcome, count from message_cell_change")
    assert [(row["outcome"], row["count"]) for row in rows] == [("open", 20)]


async def kept_cells(connection: asyncpg.Connection) -> dict[str, list[asyncpg.Record]]:
    tables = ("message_cell", "message_hour")
    return {table: sorted(await connection.fetch(f"select * from {table}"), key=repr) for table in tables}


@given(st.one_of(st.none(), st.datetimes()), st.one_of(st.none(), st.datetimes()))
def test_a_span_is_cut_at_whole_hours_and_nothing_is_told_twice(since: datetime | None, until: datetime | None) -> None:
    zone = T0.tzinfo
    asked = Filters.model_construct(
        since=since and since.replace(year=2026, tzinfo=zone, day=1),
        until=until and until.replace(year=2026, tzinfo=zone, day=2),
    )
    span = cells.span_of(asked)
    pieces = sorted(
        ((one.since or asked.since, one.until or asked.until) for one in (*span.edges, span.whole) if one is not None),
        key=lambda piece: piece[0] or datetime.min.replace(tzinfo=zone),
    )
    assert (pieces[0][0], pieces[-1][1]) == (asked.since, asked.until)
    assert all(end == begin for (_, end), (begin, _) in pairwise(pieces))
    if span.whole is not None:
        assert all(
            one is None or cells.hour_of(one) == one for one in (span.whole.since, span.whole.until) if one is not None
        )
