from collections.abc import AsyncIterator
from typing import Any

import pytest
from dispatcher import store
from dispatcher.results import utc_now
from dispatcher_desk import ACME, MIGRATIONS, Desk
from sendwhy.postgres import connect_pool, migrate


@pytest.fixture
async def connection(fresh_database: str) -> AsyncIterator[Any]:
    """To a database in which Acme has its number."""
    await migrate(fresh_database, MIGRATIONS)
    pool = await connect_pool(fresh_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        await store.put_sender(connection, ACME, utc_now())
        yield connection
    await pool.close()


@pytest.fixture
async def desk(connection: Any) -> Desk:
    return Desk(connection)
