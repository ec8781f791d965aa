"""Which messages the log forgets, on a real PostgreSQL; and that its counts tell of those that it has."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from message_log import cells, store
from message_log.decide import fold, tells
from message_log.forgetting import KEEP_AT_LEAST, keep_since, prune_messages
from message_log.queries import Filters
from message_log_builders import T0, rejected, requested, status
from sendwhy.erasure import KEEP_ERASED
from sendwhy.events import MAX_HORIZON, Status, Wire
from sendwhy.reasons import ReasonCode
from sendwhy.topics import TOPICS

pytestmark = pytest.mark.postgres
DAY = timedelta(days=1)
KEPT = 90


async def tell(connection: asyncpg.Connection, message_id: str, *events: Wire) -> None:
    """What a batch tells of a message, all of it at T0."""
    states = [state for event in events if (state := tells(event, T0)) is not None]
    await store.fold_messages(connection, {("acme", message_id): fold(states)})


async def known(connection: asyncpg.Connection) -> set[str]:
    return {row["message_id"] for row in await connection.fetch("select message_id from message")}


def test_a_message_is_kept_with_its_events_and_for_longer_than_anything_can_be_told_of_it() -> None:
    assert keep_since(T0, 90) <= T0 - 90 * DAY < keep_since(T0, 90) + DAY
    assert keep_since(T0, 1) == keep_since(T0, 75)
    assert KEEP_AT_LEAST - MAX_HORIZON == 45 * DAY
    assert max(topic.gone_after for topic in TOPICS.values()) + 7 * DAY < KEEP_AT_LEAST


async def test_what_is_over_goes_in_steps_with_its_counts_and_what_is_awaited_stays(
    connection: asyncpg.Connection,
) -> None:
    for word in ("delivered", "read"):
        await tell(connection, word, requested(), status(Status(word)))
    await tell(connection, "failed", requested(), rejected(ReasonCode.CANCELLED))
    await tell(connection, "open", requested())
    for word in ("accepted", "sent"):
        await tell(connection, word, requested(), status(Status(word)))
    await cells.add_up(connection)
    assert await prune_messages(connection, T0 + KEPT * DAY, KEPT) == 0
    assert await prune_messages(connection, T0 + (KEPT + 1) * DAY, KEPT, at_once=2) == 3
    assert await known(connection) == {"open", "accepted", "sent"}
    assert await cells.total(connection, "acme", Filters()) == 3
    while await cells.add_up(connection):
        pass
    assert await cells.total(connection, "acme", Filters()) == 3
    assert await cells.total(connection, "acme", Filters(status="failed")) == 0
    assert await connection.fetchval("select count(*) from message_hour where count = 0") == 0


async def test_the_mark_of_an_erasure_outlives_its_message(connection: asyncpg.Connection) -> None:
    await tell(connection, "m1", requested(), status(Status.READ))
    at = T0 + (KEPT - 1) * DAY
    await connection.execute("update message set erased_at = $1", at)
    assert await prune_messages(connection, T0 + (KEPT + 1) * DAY, KEPT) == 0
    assert await prune_messages(connection, at + KEEP_ERASED + DAY, KEPT) == 1


async def test_what_is_told_of_a_message_while_it_is_forgotten_is_not_lost(
    migrated_database: str, connection: asyncpg.Connection
) -> None:
    await tell(connection, "m1", requested(), status(Status.DELIVERED))
    pruning = await asyncpg.connect(migrated_database)
    going = pruning.transaction()
    await going.start()
    # Locked, so that the fold passes the claim of a row that is there, and waits at its lock.
    await pruning.execute("select from message for update")
    telling = asyncio.create_task(tell(connection, "m1", status(Status.READ)))
    async with asyncio.timeout(10):
        while not await pruning.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    assert await prune_messages(pruning, T0 + (KEPT + 1) * DAY, KEPT) == 1
    await going.commit()
    await telling
    await pruning.close()
    assert await connection.fetchval("select outcome from message") == "read"


async def test_a_receipt_that_comes_after_all_stands_alone(connection: asyncpg.Connection) -> None:
    await tell(connection, "m1", requested(), status(Status.DELIVERED))
    assert await prune_messages(connection, T0 + (KEPT + 1) * DAY, KEPT) == 1
    await tell(connection, "m1", status(Status.READ))
    assert await connection.fetchval("select outcome from message") == "read"
