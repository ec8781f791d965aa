"""What the machine could do at most: the libraries that Sendwhy stands on, alone, beside the same idle system.

Each runs for some seconds in this process, as Sendwhy uses it: aiokafka with 500 records at a time of the size of a
send.funded, all acknowledged; asyncpg with 500 rows a statement (`unnest`) and a transaction each; aiohttp with some
hundred calls in flight. `cpu`: microseconds of this process an item; what the servers take isn't in it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from system import System

SECONDS, BATCH, CALLS_AT_ONCE = 3.0, 500, 200
RECORD = b"x" * 900
TOPIC, TABLE = "bench.raw", "bench_raw"


@dataclass(frozen=True)
class Limit:
    """`each`: items a second; `cpu_us`: of this process."""

    name: str
    each: float
    cpu_us: float


async def limits(system: System) -> list[Limit]:
    # A new topic's first records find its partitions without leaders, and are sent again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    produced = await _producing(system.kafka)
    return [
        produced,
        await _consuming(system.kafka),
        await _inserting(system.database("message-log")),
        await _calling(system.meta),
    ]


async def _timed(name: str, some: Callable[[], Awaitable[int]]) -> Limit:
    """`some` does some items and says how many; 0: there are no more."""
    started, cpu, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < SECONDS:
        done = await some()
        if not done:
            break
        count += done
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return Limit(name, count / seconds, cpu / max(1, count) * 1e6)


async def _producing(bootstrap: str) -> Limit:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, num_partitions=6, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_batch_size=2**20) as producer:

        async def some() -> int:
            sent = [await producer.send(TOPIC, RECORD, key=b"%d" % number) for number in range(BATCH)]
            await asyncio.gather(*sent)
            return BATCH

        return await _timed("aiokafka: records written, acknowledged", some)


async def _consuming(bootstrap: str) -> Limit:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign([TopicPartition(TOPIC, number) for number in range(6)])
        await consumer.seek_to_beginning()

        async def some() -> int:
            found = await consumer.getmany(timeout_ms=500, max_records=BATCH)
            return sum(len(records) for records in found.values())

        return await _timed("aiokafka: records read", some)


async def _inserting(address: str) -> Limit:
    connection = await asyncpg.connect(address)
    await connection.execute(f"create unlogged table {TABLE} (like event_default including indexes)")
    await connection.execute(f"alter table {TABLE} set logged")
    number = 0
    insert = f"""
        insert into {TABLE} (event_id, occurred_at, workspace_id, message_id, wamid, service, kind, body)
        select md5(id)::uuid, now(), 'bench', id, id, 'dispatcher', 'accepted', body
        from unnest($1::text[], $2::bytea[]) rows(id, body)"""

    async def some() -> int:
        nonlocal number
        number += BATCH
        await connection.execute(insert, [f"m{number - n}" for n in range(BATCH)], [RECORD] * BATCH)
        return BATCH

    limit = await _timed("PostgreSQL: rows inserted as the log's events", some)
    await connection.execute(f"drop table {TABLE}")
    await connection.close()
    return limit


async def _calling(meta: str) -> Limit:
    """Without callback data lean Meta counts nothing and posts no webhook."""
    body: Any = (
        b'{"messaging_product":"whatsapp","to":"+525510000000","type":"template","template":{"name":"autumn_sale"}}'
    )
    connector = aiohttp.TCPConnector(limit=CALLS_AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as http:

        async def call() -> None:
            async with http.post(f"{meta}/v25.0/100000000000700/messages", data=body) as answer:
                await answer.read()

        async def some() -> int:
            await asyncio.gather(*(call() for _ in range(CALLS_AT_ONCE)))
            return CALLS_AT_ONCE

        return await _timed("aiohttp: calls to Meta, answered", some)
