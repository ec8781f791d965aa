"""Shopify's repeats on a real PostgreSQL."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest
from ingest_webhooks import AT
from sendwhy.postgres import connect_pool
from sendwhy.reasons import Service
from webhook_ingest import parsing, shopify
from webhook_ingest.elements import Delivery

pytestmark = pytest.mark.postgres
BODY = json.dumps({"id": 771233, "phone": "+525512345678"}).encode()
TOLD = Delivery("shopify", "acme", BODY, AT, 0, 5, "customers/update", None, "event-1")


@pytest.fixture
async def pool(migrated_database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect_pool(migrated_database, service=Service.WEBHOOK_INGEST)
    yield pool
    await pool.close()


async def told(pool: asyncpg.Pool, *deliveries: Delivery) -> int:
    """How many events come of deliveries that arrive together."""
    async with pool.acquire() as connection, connection.transaction():
        return len((await parsing.apply(connection, deliveries, frozenset())).publish)


async def test_a_repeat_tells_nothing_and_the_same_record_the_same(pool: asyncpg.Pool) -> None:
    assert await told(pool, TOLD) == 1
    assert await told(pool, replace(TOLD, offset=6)) == 0
    assert await told(pool, replace(TOLD, partition=3, body=BODY + b" ")) == 0
    assert await told(pool, TOLD, replace(TOLD, offset=7)) == 1


async def test_repeats_that_come_together_are_told_once(pool: asyncpg.Pool) -> None:
    assert await told(pool, replace(TOLD, offset=9), TOLD, replace(TOLD, offset=7)) == 1
    assert await told(pool, TOLD) == 1
    assert await told(pool, replace(TOLD, offset=9)) == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(TOLD, offset=6, signer="globex"),
        replace(TOLD, offset=6, topic="customers/create"),
        replace(TOLD, offset=6, event_id="event-2"),
        replace(TOLD, offset=6, event_id=""),
    ],
    ids=["another shop", "another topic of the event", "another event", "no event id"],
)
async def test_what_is_no_repeat(pool: asyncpg.Pool, other: Delivery) -> None:
    assert await told(pool, TOLD) == 1
    assert await told(pool, other) == 1


async def test_what_kafka_no_longer_has_is_forgotten(pool: asyncpg.Pool) -> None:
    await told(pool, TOLD, replace(TOLD, event_id="event-2", at=AT + timedelta(days=16)))
    async with pool.acquire() as connection:
        await shopify.prune(connection, AT + timedelta(days=16))
        assert [row["event_id"] for row in await connection.fetch("select event_id from shopify_event")] == ["event-2"]
