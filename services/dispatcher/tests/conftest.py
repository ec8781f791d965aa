from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dispatcher import store
from dispatcher.clock import utc_now
from dispatcher_desk import ACME, MIGRATIONS, Desk
from sendwhy.postgres import connect_pool


@pytest.fixture
def migrations() -> Path:
    return MIGRATIONS


@pytest.fixture
async def connection(migrated_database: str) -> AsyncIterator[Any]:
    """To a database in which Acme has its number."""
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        await store.put_sender(connection, ACME, utc_now())
        yield connection
    await pool.close()


@pytest.fixture
async def desk(connection: Any) -> Desk:
    return Desk(connection)
