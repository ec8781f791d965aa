"""The log is nothing but what its topics tell: read again, in whatever order between them, it comes out the same."""

import asyncio
from datetime import timedelta
from random import Random
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from derived import dump, everything, fold, placed, recalled
from message_log import cells, rebuild
from message_log_builders import after
from sendwhy.topics import TOPICS, Topic, outgoing

pytestmark = pytest.mark.postgres
ERASING = Topic.PERSON_ERASING
# Emptied together, they are as a new database for a tenth of the time.
FOLDED = (*rebuild.DERIVED, "erased_person")


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> list[Any]:
    return [
        (table, [row for row in rows if row not in other[table]], [row for row in other[table] if row not in rows])
        for table, rows in one.items()
        if rows != other[table]
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_between_the_topics_tells_the_same(connection: asyncpg.Connection, seed: int) -> None:
    queues = placed([*everything(seed), outgoing(recalled(), source="test")])
    assert {topic for topic, _ in queues} == set(Topic)
    results = []
    for order in range(3):
        await connection.execute(f"truncate {', '.join(FOLDED)}")
        await fold(connection, queues, Random(100 * seed + order))
        await cells.add_up(connection)
        results.append(await dump(connection))
    assert all(results[0][table] for table in ("message", "event", "inbound", "hold", "webhook_part", "cells"))
    assert differences(results[0], results[1]) == []
    assert differences(results[0], results[2]) == []


@pytest.mark.parametrize("topic", [Topic.DEAD_LETTERS, Topic.SEND_CANCELLED])
async def test_what_is_being_added_while_its_person_is_erased_keeps_no_body(
    connection: asyncpg.Connection, migrated_database: str, topic: Topic
) -> None:
    queues = placed(everything(0))
    added, orders = ({place: queues[place] for place in queues if place[0] is one} for one in (topic, ERASING))
    other = await asyncpg.connect(migrated_database)
    async with other.transaction():
        await fold(other, added, Random(0))
        erasing = asyncio.create_task(fold(connection, orders, Random(0)))
        while not erasing.done() and not await other.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    await erasing
    bodies = await other.fetch(
        "select e.body from event e join message m using (workspace_id, message_id) where m.erased_at is not null"
    )
    await other.close()
    assert {row["body"] for row in bodies} == {None}


async def test_every_table_is_derived_or_kept(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        "select relname from pg_class where relkind in ('r', 'p') and not relispartition"
        " and relnamespace = 'public'::regnamespace"
    )
    assert sorted(row["relname"] for row in rows) == sorted((*rebuild.DERIVED, *rebuild.CELLS, *rebuild.KEPT))


async def test_a_rebuild_says_what_the_topics_no_longer_hold(connection: asyncpg.Connection) -> None:
    await fold(connection, placed(everything(0)), Random(0))
    assert (await rebuild.lost_by(connection, after(0))).count == 0
    all_of_them = await connection.fetchval("select count(*) from message where at is not null")
    assert (await rebuild.lost_by(connection, after(400) + timedelta(days=14))).count == all_of_them > 0


@pytest.mark.kafka
async def test_a_rebuilt_log_is_the_same_and_what_people_did_stays(message_log: Any) -> None:
    """`message_log`: conftest's running service, whose module pytest imports under a name of its own."""
    await asyncio.to_thread(message_log.publish, everything(9, "rebuilt"))
    await caught_up(message_log)
    before, kept = await state_of(message_log)
    assert await asyncio.to_thread(message_log.run, "rebuild") == 2
    assert await asyncio.to_thread(message_log.run, "rebuild", "--yes") == 1
    await asyncio.to_thread(message_log.stop)
    assert await asyncio.to_thread(message_log.run, "rebuild", "--yes") == 0
    await asyncio.to_thread(message_log.start)
    await caught_up(message_log)
    after_it, kept_after = await state_of(message_log)
    assert differences(before, after_it) == []
    assert kept_after == kept


async def caught_up(message_log: Any) -> None:
    """Until all that lies on the topics is in the log: also what the log itself put aside meanwhile."""
    connection = await asyncpg.connect(message_log.database_url)
    places = [TopicPartition(topic, number) for topic in Topic for number in range(TOPICS[topic].partitions)]
    async with (
        AIOKafkaConsumer(bootstrap_servers=message_log.kafka.kafka_bootstrap_servers) as consumer,
        asyncio.timeout(60),
    ):
        while True:
            ends = {(place.topic, place.partition): end for place, end in (await consumer.end_offsets(places)).items()}
            rows = await connection.fetch("select topic, partition, next_offset from reached")
            reached = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
            if all(reached.get(place, 0) >= end for place, end in ends.items()):
                break
            await asyncio.sleep(0.1)
    await connection.close()


async def state_of(message_log: Any) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """What is derived, and what is kept but for what goes on by itself."""
    connection = await asyncpg.connect(message_log.database_url)
    kept = {
        table: sorted(repr(row) for row in await connection.fetch(f"select * from {table}"))
        for table in rebuild.KEPT
        if table not in ("reached", "outbox")
    }
    derived = await dump(connection)
    await connection.close()
    return derived, kept
