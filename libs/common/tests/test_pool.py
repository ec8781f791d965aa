"""What a connection is when it goes back to the pool."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sendwhy.postgres import (
    KEYED_LOOKUPS,
    SERVER_SETTINGS,
    connect_pool,
    decisions_of,
    migrate,
    write_together,
)

pytestmark = pytest.mark.postgres


async def test_a_connection_goes_back_without_a_word(fresh_database: str) -> None:
    pool = await connect_pool(fresh_database, service="test", size=1)
    said: list[str] = []

    def hears(query: Any) -> None:
        said.append(query.query)

    async with pool.acquire() as connection:
        connection.add_query_logger(hears)
    for _ in range(2):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("set local lock_timeout = '1s'")
    # asyncpg tells its loggers at the loop's next turn.
    await asyncio.sleep(0)
    assert said == 2 * ["BEGIN;", "set local lock_timeout = '1s'", "COMMIT;"]
    async with pool.acquire() as connection:
        assert await connection.fetchval("show lock_timeout") == "10s"
    await pool.close()


async def test_a_commit_is_on_disk_whatever_the_server_does_by_itself(fresh_database: str) -> None:
    setting_up = await asyncpg.connect(fresh_database)
    await setting_up.execute(
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$"
    )
    await setting_up.close()
    pool = await connect_pool(fresh_database, service="test", size=1)
    async with pool.acquire() as connection:
        assert await connection.fetchval("show synchronous_commit") == "on"
    await pool.close()


async def test_what_is_left_open_is_undone(fresh_database: str) -> None:
    pool = await connect_pool(fresh_database, service="test", size=1)
    async with pool.acquire() as connection:
        await connection.execute("begin")
        await connection.execute("create table half_done ()")
    async with pool.acquire() as connection:
        assert not connection.is_in_transaction()
        assert await connection.fetchval("select to_regclass('half_done')") is None
    await pool.close()


async def test_several_writes_go_as_one_statement(fresh_database: str) -> None:
    pool = await connect_pool(fresh_database, service="test", size=1)
    async with pool.acquire() as connection:
        await connection.execute(
            "create table one (n int); create table other (n int, m text); insert into one values (0)"
        )
        await write_together(
            connection,
            ("insert into other select n, $2 from unnest($1::int[]) n", ([1, 2], "x")),
            ("update one set n = $1", (7,)),
        )
        assert await connection.fetchval("select n from one") == 7
        assert [tuple(row) for row in await connection.fetch("select n, m from other")] == [(1, "x"), (2, "x")]
        await connection.execute("create unique index on other (n)")
        again = ("insert into other (n) select unnest($1::int[])", ([1],))
        with pytest.raises(asyncpg.UniqueViolationError):
            await write_together(connection, ("update one set n = $1", (8,)), again)
        assert await connection.fetchval("select n from one") == 7
    await pool.close()


async def test_arrays_are_lists_or_tuples_and_nothing_else(fresh_database: str) -> None:
    pool = await connect_pool(fresh_database, service="test", size=1)
    for given in ([], ["a", None, "é"], ("a",), [["a", "b"], ["c", None]]):
        told = await pool.fetchval("select $1::text[]", given)
        assert told == list(given)
    assert await pool.fetchval("select $1::jsonb[]", ['{"a": [1]}']) == ['{"a": [1]}']
    for wrong in ({"a"}, {"a": 1}, "a", iter(["a"])):
        with pytest.raises(asyncpg.DataError):
            await pool.fetchval("select $1::text[]", wrong)
    await pool.close()


_FILL = """
insert into decision (workspace_id, message_id, step, event_id, topic, headers, prune_after)
select 'w', 'm' || n, 'billing', gen_random_uuid(), 'send.funded', '', now() from generate_series(1, 20000) n
"""
_ROWS_READ = """
select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int from pg_stat_xact_user_tables where relname like 'decision%'
"""


async def test_a_batch_of_keys_reads_none_but_their_rows(fresh_database: str, tmp_path: Path) -> None:
    await migrate(fresh_database, tmp_path)
    pool = await connect_pool(
        fresh_database, service="test", size=1, server_settings={**SERVER_SETTINGS, **KEYED_LOOKUPS}
    )
    asked = [("w", f"m{number * 100}") for number in range(1, 101)]
    for known_to_planner in (False, True):
        async with pool.acquire() as connection:
            if known_to_planner:
                await connection.execute("analyze decision")
            else:
                await connection.execute(_FILL)
        # With its values, and, from the sixth time on, perhaps with a plan for any.
        for _ in range(8):
            async with pool.acquire() as connection, connection.transaction():
                before = await connection.fetchval(_ROWS_READ)
                assert len(await decisions_of(connection, "billing", asked)) == len(asked)
                assert await connection.fetchval(_ROWS_READ) - before == len(asked)
    await pool.close()
