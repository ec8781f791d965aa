"""Several stages, one transaction: all of it or nothing, and who fails hurts the others no longer than one turn."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from sendwhy.joint import FLOW_RECORDS, Joint
from sendwhy.postgres import Connection, load_reached, migrate
from sendwhy.topics import Outgoing

pytestmark = pytest.mark.postgres
GROUP = "sendwhy-test"


@pytest.fixture
async def pool(fresh_database: str, tmp_path: Any) -> AsyncIterator[asyncpg.Pool]:
    (tmp_path / "0001_test.sql").write_text("create table seen (name text, transaction bigint);")
    await migrate(fresh_database, tmp_path)
    async with asyncpg.create_pool(fresh_database, min_size=1, max_size=4) as pool:
        yield pool


class Handler:
    """Writes each record with its transaction; "bad" is refused, and `held` holds a turn up."""

    def __init__(self) -> None:
        self.held, self.entered = asyncio.Event(), asyncio.Event()
        self.held.set()

    async def __call__(self, connection: Connection, records: Sequence[str]) -> Sequence[Outgoing]:
        self.entered.set()
        await self.held.wait()
        statement = "insert into seen select unnest($1::text[]), pg_current_xact_id()::text::bigint"
        await connection.execute(statement, records)
        if "bad" in records:
            raise ValueError("a bad record")
        return ()


async def seen(pool: asyncpg.Pool) -> dict[str, int]:
    return {row["name"]: row["transaction"] for row in await pool.fetch("select name, transaction from seen")}


async def test_what_comes_meanwhile_is_one_transaction(pool: asyncpg.Pool) -> None:
    handler = Handler()
    joint = Joint(handler, group=GROUP, pool=lambda: pool)
    handler.held.clear()
    first = asyncio.create_task(joint.take_part(["a"], {("one", 0): 1}))
    await handler.entered.wait()
    others = [asyncio.create_task(joint.take_part([name], {(name, 0): 7})) for name in ("b", "c", "d")]
    await asyncio.sleep(0)
    handler.held.set()
    await asyncio.gather(first, *others)
    written = await seen(pool)
    assert written.keys() == {"a", "b", "c", "d"}
    assert written["a"] != written["b"] == written["c"] == written["d"]
    async with pool.acquire() as connection:
        reached = await load_reached(connection, GROUP)
    assert reached == {("one", 0): 1, ("b", 0): 7, ("c", 0): 7, ("d", 0): 7}


async def test_stages_of_a_steady_flow_meet_in_the_next_turn(pool: asyncpg.Pool) -> None:
    handler = Handler()
    joint = Joint(handler, group=GROUP, pool=lambda: pool)
    handler.held.clear()

    async def stage(name: str) -> None:
        await joint.take_part([f"{name} {number}" for number in range(FLOW_RECORDS)], {(name, 0): 1})
        await joint.rest()
        await joint.take_part([f"{name} again"], {(name, 0): 2})

    one = asyncio.create_task(stage("one"))
    await handler.entered.wait()
    other = asyncio.create_task(stage("other"))
    await asyncio.sleep(0)
    handler.held.set()
    await asyncio.gather(one, other)
    written = await seen(pool)
    assert written["one 0"] != written["other 0"] == written["one again"] != written["other again"]


async def test_a_failed_turn_wrote_nothing_and_all_are_told(pool: asyncpg.Pool) -> None:
    joint = Joint(Handler(), group=GROUP, pool=lambda: pool)
    parts = [joint.take_part([name], {(name, 0): 1}) for name in ("good", "bad")]
    told = await asyncio.gather(*parts, return_exceptions=True)
    assert [type(one) for one in told] == [ValueError, ValueError]
    assert await seen(pool) == {}
    await joint.take_part(["good"], {("good", 0): 1})
    assert (await seen(pool)).keys() == {"good"}
    async with pool.acquire() as connection:
        assert await load_reached(connection, GROUP) == {("good", 0): 1}


async def test_offsets_are_kept_where_nothing_could_be_read(pool: asyncpg.Pool) -> None:
    joint = Joint(Handler(), group=GROUP, pool=lambda: pool)
    await joint.take_part([], {("one", 2): 9})
    async with pool.acquire() as connection:
        assert await load_reached(connection, GROUP) == {("one", 2): 9}


async def test_a_stage_that_is_cancelled_takes_nobody_with_it(pool: asyncpg.Pool) -> None:
    handler = Handler()
    joint = Joint(handler, group=GROUP, pool=lambda: pool)
    handler.held.clear()
    gone, stays = (asyncio.create_task(joint.take_part([name], {(name, 0): 1})) for name in ("gone", "stays"))
    await handler.entered.wait()
    gone.cancel()
    handler.held.set()
    await stays
    assert (await asyncio.gather(gone, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    await joint.close()
    assert (await seen(pool)).keys() == {"gone", "stays"}


async def test_closing_waits_for_the_turn(pool: asyncpg.Pool) -> None:
    handler = Handler()
    joint = Joint(handler, group=GROUP, pool=lambda: pool)
    part = asyncio.create_task(joint.take_part(["a"], {("one", 0): 1}))
    await handler.entered.wait()
    await joint.close()
    assert part.done()
    await part
