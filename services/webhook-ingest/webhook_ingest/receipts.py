"""Receipts that never come: messages beyond their deadline end as failed, one way or another."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, TopicPartition
from sendwhy.events import StatusUpdated
from sendwhy.kafka import connection_options
from sendwhy.metrics import Metric
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Topic, outgoing

from webhook_ingest import store
from webhook_ingest.decide import silence, silence_event

OVERDUE_LIMIT = 500
KAFKA_TIMEOUT_SECONDS = 30
# The broker answers one connection in order: each question about an offset waits behind a fetch that waits for records
# (500 ms by default, 6 s in all for a replay of six partitions with next to nothing in them).
FETCH_WAIT_MS = 50


@asynccontextmanager
async def raw_webhooks(settings: KafkaSettings) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """A consumer of webhook.received without a group, and its partitions, which are all of the topic's."""
    consumer = AIOKafkaConsumer(
        Topic.WEBHOOK_RECEIVED,
        **connection_options(settings),
        enable_auto_commit=False,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    try:
        async with asyncio.timeout(KAFKA_TIMEOUT_SECONDS):
            await consumer.start()
        yield consumer, sorted(consumer.assignment())
    finally:
        await asyncio.wait_for(consumer.stop(), KAFKA_TIMEOUT_SECONDS)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where webhook.received ended at a moment, by partition; 0 where nothing is left to read."""

    at: datetime
    ends: Mapping[int, int]


async def take_mark(settings: KafkaSettings) -> Mark:
    at = datetime.now(UTC)
    async with raw_webhooks(settings) as (consumer, places), asyncio.timeout(KAFKA_TIMEOUT_SECONDS):
        starts = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
    return Mark(at, {place.partition: ends[place] for place in places if ends[place] > starts[place]})


class Deadlines:
    """Looks for overdue receipts; a deadline is believed only once webhook.received has been read beyond it.

    Else an outage of the parsing half would fail messages whose receipts wait in Kafka.
    """

    def __init__(self, runtime: Runtime, blocked_after: int) -> None:
        self._runtime, self._blocked_after = runtime, blocked_after
        self._mark: Mark | None = None

    async def tick(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            mark, self._mark = self._mark, None
            if mark is not None and not await self._has_read_to(mark, connection):
                self._mark = mark
                return
            now = datetime.now(UTC)
            if mark is not None:
                self._tell(await fail_overdue(connection, mark.at, now, self._blocked_after))
            is_due = await store.any_due(connection, now)
        if is_due:
            self._mark = await take_mark(self._runtime.settings)

    async def count(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            self._runtime.metrics.set(Metric.RECEIPTS_MISSING, await store.count_awaited(connection))

    async def _has_read_to(self, mark: Mark, connection: Connection) -> bool:
        reached = await store.reached(connection, self._runtime.group, Topic.WEBHOOK_RECEIVED)
        return all(reached.get(partition, 0) >= end for partition, end in mark.ends.items())

    def _tell(self, events: list[StatusUpdated]) -> None:
        for event in events:
            if event.reason is not None:
                self._runtime.metrics.inc(Metric.FAILED, service=Service.WEBHOOK_INGEST, reason=event.reason.code)
        if events:
            self._runtime.publish_soon()


async def fail_overdue(
    connection: Connection, until: datetime, now: datetime, blocked_after: int
) -> list[StatusUpdated]:
    """End what was due before `until`, oldest first, in one transaction with the outbox; returns the events."""
    async with connection.transaction():
        overdue = await store.take_overdue(connection, until, now, OVERDUE_LIMIT)
        pairs = {
            message.key: (message.sender_id, message.workspace_id or "", recipient)
            for message, _, recipient in overdue
            if recipient is not None
        }
        histories = await store.histories(connection, pairs.values()) if pairs else {}
        events = [
            silence_event(
                message,
                awaited,
                silence(awaited, histories.get(pairs.get(message.key, ("", "", "")), ()), now, blocked_after),
                now,
            )
            for message, awaited, _ in overdue
        ]
        rows = [(event.event_id, outgoing(event, source=Service.WEBHOOK_INGEST)) for event in events]
        if rows:
            await add_to_outbox(connection, rows)
    return events
