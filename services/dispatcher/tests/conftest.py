from collections.abc import AsyncIterator

import pytest
from dispatcher import store
from dispatcher.results import utc_now
from dispatcher_desk import ACME, MIGRATIONS, Desk
from sendwhy.postgres import connect_pool, migrate


@pytest.fixture
async def desk(fresh_database: str) -> AsyncIterator[Desk]:
    await migrate(fresh_database, MIGRATIONS)
    pool = await connect_pool(fresh_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        await store.put_sender(connection, ACME, utc_now())
        yield Desk(connection)  # type: ignore[arg-type]
    await pool.close()
