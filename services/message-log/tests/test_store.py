"""Partitions, on a real PostgreSQL with a database of each test's own."""

import asyncio
import json
import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from message_log import cells, queries, store
from message_log.decide import tells
from message_log.deliveries import Part
from message_log.queries import Filters
from message_log.store import EventRow, HoldRow, SenderRow, WebhookRow
from message_log_builders import T0, WORKSPACE, event_id, held, rejected, requested
from sendwhy.events import Origin, OriginKind, Scope, To
from sendwhy.reasons import ReasonCode
from sendwhy.tenancy import within

pytestmark = pytest.mark.postgres
TODAY = date(2026, 11, 22)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAYS = {"event": 90, "webhook": 14, "webhook_part": 14}


def row(name: str, at: datetime) -> EventRow:
    return EventRow(event_id(name), at, "acme", "m-1", None, "consent", "rejected", b"{}")


async def where(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch("select event_id::text as id, tableoid::regclass::text as place from event")
    return {each["id"]: each["place"] for each in rows}


async def test_coming_days_have_a_partition_and_doing_it_twice_changes_nothing(connection: asyncpg.Connection) -> None:
    made = await store.keep_partitions(connection, DAYS, TODAY)
    assert [name for name in made if name.startswith("event_")] == [
        f"event_202611{day}" for day in (21, 22, 23, 24, 25)
    ]
    assert await store.keep_partitions(connection, DAYS, TODAY) == []


async def test_what_came_before_its_partition_moves_into_it(connection: asyncpg.Connection) -> None:
    late = NOON - timedelta(days=9)
    await store.add_events(connection, [row("now", NOON), row("late", late)])
    assert set((await where(connection)).values()) == {"event_default"}
    await store.keep_partitions(connection, DAYS, TODAY)
    await store.add_events(connection, [row("now", NOON), row("late", late)])
    assert await where(connection) == {
        str(event_id("now")): "event_20261122",
        str(event_id("late")): "event_20261113",
    }


async def test_what_is_read_again_with_what_is_new_stands_once(connection: asyncpg.Connection) -> None:
    parts = (Part("status sent", "acme", "1", None, "wamid.1", "m-1"),)
    first, second = (WebhookRow(event_id(name), NOON, "meta", None, None, 2, b"{}", parts) for name in ("a", "b"))
    async with connection.transaction():
        await store.add_events(connection, [row("a", NOON)])
        await store.add_webhooks(connection, [first])
    async with connection.transaction():
        await store.add_events(connection, [row("b", NOON), row("a", NOON), row("b", NOON)])
        await store.add_webhooks(connection, [second, first])
    ids = sorted([event_id("a"), event_id("b")])
    for asked in (
        "select event_id from event order by 1",
        "select webhook_id from webhook order by 1",
        "select webhook_id from webhook_part order by 1",
    ):
        assert [each[0] for each in await connection.fetch(asked)] == ids


async def test_what_two_replicas_add_at_once_stands_once(
    migrated_database: str, connection: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(migrated_database)
    first = other.transaction()
    await first.start()
    await store.add_events(other, [row("a", NOON)])

    async def add() -> None:
        async with connection.transaction():
            await store.add_events(connection, [row("a", NOON), row("b", NOON)])

    adding = asyncio.create_task(add())
    async with asyncio.timeout(10):
        while not await other.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    await first.commit()
    await adding
    await other.close()
    assert (await where(connection)).keys() == {str(event_id("a")), str(event_id("b"))}
    assert await connection.fetchval("select count(*) from event") == 2


async def test_a_row_that_comes_while_its_partition_is_made_is_in_it(
    migrated_database: str, connection: asyncpg.Connection
) -> None:
    stage = await asyncpg.connect(migrated_database)
    coming = stage.transaction()
    await coming.start()
    await store.add_events(stage, [row("now", NOON - timedelta(days=1))])
    making = asyncio.create_task(store.keep_partitions(connection, DAYS, TODAY))
    async with asyncio.timeout(10):
        while not await stage.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    await coming.commit()
    await making
    await stage.close()
    assert await where(connection) == {str(event_id("now")): "event_20261121"}


async def test_a_clock_far_ahead_makes_no_tables_until_its_day_comes(connection: asyncpg.Connection) -> None:
    ahead = NOON + timedelta(days=40)
    await store.add_events(connection, [row("ahead", ahead)])
    await store.keep_partitions(connection, DAYS, TODAY)
    assert set((await where(connection)).values()) == {"event_default"}
    await store.keep_partitions(connection, DAYS, ahead.date())
    assert set((await where(connection)).values()) == {"event_20270101"}


async def test_past_retention_goes(connection: asyncpg.Connection) -> None:
    old = NOON - timedelta(days=100)
    await store.keep_partitions(connection, DAYS, old.date())
    await store.add_events(connection, [row("old", old), row("older", old - timedelta(days=50)), row("now", NOON)])
    dropped = await store.keep_partitions(connection, DAYS, TODAY)
    assert f"event_{old:%Y%m%d}" in dropped
    assert set(await where(connection)) == {str(event_id("now"))}
    await store.prune(connection, NOON)


async def test_what_one_answer_reads_is_of_one_moment(migrated_database: str, connection: asyncpg.Connection) -> None:
    await store.keep_partitions(connection, DAYS, TODAY)
    async with (
        asyncpg.create_pool(migrated_database, min_size=1, max_size=1) as pool,
        within(pool, None, None, snapshot=True) as reading,
    ):
        assert await queries.read_message(reading, "acme", "m-1") is None
        await store.add_events(connection, [row("meanwhile", NOON)])
        assert await queries.events_of(reading, "acme", "m-1", None) == []
    assert len(await queries.events_of(connection, "acme", "m-1", None)) == 1


async def test_a_timeline_has_no_event_of_another_number_or_workspace(connection: asyncpg.Connection) -> None:
    """Whoever has an app's secret may speak of any id of Meta's, as long as nobody has registered the number."""
    await store.keep_partitions(connection, DAYS, TODAY)
    ours, theirs = "100000000000001", "100000000000002"
    told = [("ours", None, ours), ("forged", None, theirs), ("another's", "other", ours), ("joined", "acme", ours)]
    for name, workspace, sender_id in told:
        await connection.execute(
            "insert into event (event_id, occurred_at, workspace_id, wamid, service, kind, body)"
            " values ($1, $2, $3, 'wamid.A', 'webhook-ingest', 'failed', $4)",
            event_id(name),
            NOON,
            workspace,
            json.dumps({"sender_id": sender_id}).encode(),
        )
    shown = await queries.events_of(connection, "acme", "m-1", "wamid.A", ours)
    assert {row["event_id"] for row in shown} == {event_id("ours"), event_id("joined")}
    for number, (name, workspace, sender_id) in enumerate(told):
        key = event_id(name)
        await connection.execute(
            "insert into webhook (webhook_id, received_at, source, size) values ($1, $2, 'meta', 0)", key, NOON
        )
        await connection.execute(
            "insert into webhook_part (webhook_id, received_at, position, kind, workspace_id, sender_id, wamid)"
            " values ($1, $2, $3, 'status failed', $4, $5, 'wamid.A')",
            key,
            NOON,
            number,
            workspace,
            sender_id,
        )
    seen = await queries.webhooks_of(connection, "acme", "m-1", "wamid.A", ours)
    assert {row["webhook_id"] for row in seen} == {event_id("ours"), event_id("joined")}


@pytest.mark.parametrize(
    ("sent_to", "asked"),
    [
        ("+525512345678", "5215512345678"),
        ("+551187654321", "+55 11 98765-4321"),
        ("+541123456789", "+54 9 11 2345-6789"),
    ],
)
async def test_messages_are_found_by_any_spelling_of_their_number(
    connection: asyncpg.Connection, sent_to: str, asked: str
) -> None:
    """Meta's webhooks spell some numbers in another way than they were sent to."""
    for name, phone in (("m-1", sent_to), ("m-2", "+12125550100")):
        state = tells(requested(message_id=name, to=To(phone=phone)), T0)
        assert state is not None
        await store.fold_messages(connection, {(WORKSPACE, name): state})
    page = await queries.list_messages(connection, WORKSPACE, Filters(phone=asked))
    assert [one["message_id"] for one in page.rows] == ["m-1"]
    assert await cells.total(connection, WORKSPACE, Filters(phone=asked)) == 1


def wide(letters: int, seed: int) -> str:
    """So many letters of four bytes each, which nothing compresses."""
    drawn = random.Random(seed)
    return "".join(chr(drawn.randrange(0x20000, 0x2A6D0)) for _ in range(letters))


async def test_what_the_widest_request_tells_has_room_in_every_index(connection: asyncpg.Connection) -> None:
    """Else PostgreSQL refuses the row, and with it all that stands in the same transaction."""
    names: dict[str, Any] = {"workspace_id": "w" * 64, "message_id": "m" * 128}
    origin = Origin(kind=OriginKind.CAMPAIGN, id=wide(256, 1), node_id=wide(256, 2))
    template = {"type": "template", "template": {"name": wide(512, 3), "language": {"code": wide(16, 4)}}}
    whom = To(contact_id=wide(128, 5), phone="1" * 64)
    request = requested(**names, origin=origin, content=template, to=whom, sender_id="9" * 20, resend_of="r" * 128)
    scope = Scope(kind="message", id="m" * 128)
    waits = held(ReasonCode.SENDER_CREDENTIALS_REJECTED, **names, scope=scope, until=3600)
    failed = rejected(ReasonCode.SENDER_CREDENTIALS_REJECTED, **names, origin=origin, to=whom)
    for event in (request, waits, failed):
        state = tells(event, NOON)
        assert state is not None
        await store.fold_messages(connection, {("w" * 64, "m" * 128): state})
        await cells.add_up(connection)
    row = await connection.fetchrow("select origin_id, template from message where outcome = 'failed'")
    assert row is not None
    assert row["origin_id"] == origin.id
    assert wide(512, 3).startswith(row["template"])


async def test_a_free_sender_ends_holds_of_its_own_workspace_only(connection: asyncpg.Connection) -> None:
    """One account may have numbers in two workspaces."""
    held = [
        HoldRow(workspace, "account", "waba-1", event_id(workspace), NOON, "META_PAYMENT_ISSUE", NOON, None)
        for workspace in ("acme", "other")
    ]
    await store.set_holds(connection, held)
    later = NOON + timedelta(minutes=1)
    senders = [
        SenderRow("1001", "acme", "waba-1", 1, True, later),
        SenderRow("1002", "other", "waba-1", 1, True, None),
    ]
    await store.set_senders(connection, senders, [])
    assert [row[0] for row in await connection.fetch("select workspace_id from hold_now")] == ["other"]


@pytest.mark.parametrize("first", ["webhook", "sender"])
async def test_a_webhook_that_comes_beside_its_sender_gets_its_workspace(
    migrated_database: str, connection: asyncpg.Connection, first: str
) -> None:
    other = await asyncpg.connect(migrated_database)
    part = Part("status sent", None, "1001", "waba-1", "wamid.A", None)
    webhook = WebhookRow(event_id("raw"), NOON, "meta", None, None, 2, b"{}", (part,))

    async def add(place: asyncpg.Connection, what: str) -> None:
        if what == "webhook":
            await store.add_webhooks(place, [webhook])
        else:
            await store.set_senders(place, [SenderRow("1001", "acme", "waba-1", 1, True, None)], [])

    coming = connection.transaction()
    await coming.start()
    await add(connection, first)
    beside = asyncio.create_task(add(other, "sender" if first == "webhook" else "webhook"))
    async with asyncio.timeout(10):
        while not await connection.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    await coming.commit()
    await beside
    await other.close()
    assert await connection.fetchval("select workspace_id from webhook_part") == "acme"
