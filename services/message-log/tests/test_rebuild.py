"""The log is nothing but what its topics tell: read again, in whatever order between them, it comes out the same."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import message_log
import pytest
from derived import dump, everything, fold, placed, recalled
from message_log import cells, rebuild
from message_log_builders import after
from sendwhy.postgres import migrate
from sendwhy.topics import Topic, outgoing

pytestmark = pytest.mark.postgres
MIGRATIONS = Path(message_log.__file__ or "").parent / "migrations"
# Emptied together, they are as a new database for a tenth of the time.
FOLDED = (*rebuild.DERIVED, "erased_person")


@pytest.fixture
async def connection(fresh_database: str) -> AsyncIterator[asyncpg.Connection]:
    await migrate(fresh_database, MIGRATIONS)
    connection = await asyncpg.connect(fresh_database)
    yield connection
    await connection.close()


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
