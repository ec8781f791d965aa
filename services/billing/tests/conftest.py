import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import billing
import httpx
import pytest
import pytest_asyncio
from billing.app import make_app
from billing.settings import BillingSettings
from pydantic import SecretStr
from sendwhy.kafka import create_topics
from sendwhy.postgres import connect_pool, migrate

# pytest's importlib mode puts no folder on the path, and the desk is shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))

from billing_desk import Desk
from billing_service import TOKENS, Service

MIGRATIONS = Path(billing.__file__).parent / "migrations"


@pytest.fixture
def migrations() -> Path:
    return MIGRATIONS


@pytest.fixture(scope="session")
def database(postgres_url: str, _run: Callable[[Coroutine[Any, Any, Any]], Any]) -> Iterator[str]:
    """One for all modules with a running service: the consumer groups' offsets in Kafka belong to it."""
    name = f"billing_{uuid.uuid4().hex}"
    url = postgres_url.rpartition("/")[0] + f"/{name}"
    _run(_execute(postgres_url, f"create database {name}"))
    _run(migrate(url, MIGRATIONS))
    yield url
    _run(_execute(postgres_url, f"drop database {name} with (force)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(database: str, kafka_bootstrap: str) -> AsyncIterator[Service]:
    settings = BillingSettings(
        kafka_bootstrap_servers=kafka_bootstrap, database_url=SecretStr(database), api_tokens=SecretStr(TOKENS)
    )
    await create_topics(settings)
    app = make_app(settings)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://b") as http:
        yield Service(http, kafka_bootstrap)


@pytest.fixture
def workspace() -> str:
    return f"w{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture(loop_scope="module")
async def beside(database: str) -> AsyncIterator[Desk]:
    """A desk on the database of the running service."""
    pool = await connect_pool(database, service="billing-test", size=4)
    yield Desk(pool)
    await pool.close()


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="billing-test", size=12)
    yield Desk(pool)
    await pool.close()
