"""Receipts that never come: messages beyond their deadline end as failed, one way or another."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sendwhy.events import StatusUpdated
from sendwhy.metrics import Metric
from sendwhy.postgres import Connection, add_to_outbox, time_of
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Topic, outgoing

from webhook_ingest import store
from webhook_ingest.silence import silence, silence_event
from webhook_ingest.stored import KAFKA_TIMEOUT_SECONDS, stored

OVERDUE_LIMIT = 500
_NOBODY = ("", "", "")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where webhook.received ended at a moment, by partition; 0 where nothing is left to read."""

    at: datetime
    ends: Mapping[int, int]


async def take_mark(settings: KafkaSettings, at: datetime) -> Mark:
    """`at`: a moment that has come, by the clock that the mark is compared with."""
    async with stored(settings) as (consumer, places), asyncio.timeout(KAFKA_TIMEOUT_SECONDS):
        starts = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
    return Mark(at, {place.partition: ends[place] for place in places if ends[place] > starts[place]})


async def has_read_to(runtime: Runtime, connection: Connection, mark: Mark) -> bool:
    """Whether the stages of all replicas together have handled webhook.received up to the mark."""
    reached = await store.reached(connection, runtime.group, Topic.WEBHOOK_RECEIVED)
    return all(reached.get(partition, 0) >= end for partition, end in mark.ends.items())


class Deadlines:
    """Looks for overdue receipts, by the database's clock; a deadline is believed only once webhook.received has been
    read beyond it.

    Else an outage of the parsing half would fail messages whose receipts wait in Kafka.
    """

    def __init__(self, runtime: Runtime, blocked_after: int) -> None:
        self._runtime, self._blocked_after = runtime, blocked_after
        self._mark: Mark | None = None

    async def tick(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            mark, self._mark = self._mark, None
            if mark is not None and not await has_read_to(self._runtime, connection, mark):
                self._mark = mark
                return
            now = await time_of(connection)
            if mark is not None:
                self._tell(await fail_overdue(connection, mark.at, now, self._blocked_after))
            is_due = await store.any_due(connection, now)
        if is_due:
            self._mark = await take_mark(self._runtime.settings, now)

    async def count(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            awaited = await store.count_awaited(connection, await time_of(connection))
        metrics = self._runtime.metrics
        metrics.set(Metric.RECEIPTS_MISSING, awaited.messages)
        metrics.set(Metric.RECEIPTS_MISSING_SHARE, awaited.share)
        metrics.set(Metric.RECEIPTS_OLDEST_SECONDS, awaited.oldest_seconds)

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
        overdue = await store.take_overdue(connection, until, OVERDUE_LIMIT)
        pairs = {
            message.key: (message.sender_id, message.workspace_id or "", recipient)
            for message, _, recipient in overdue
            if recipient is not None
        }
        histories = await store.histories(connection, pairs.values()) if pairs else {}
        reasons = {
            message.key: silence(awaited, histories.get(pairs.get(message.key, _NOBODY), ()), now, blocked_after)
            for message, awaited, _ in overdue
        }
        await store.mark_overdue(connection, {key: why.code for key, why in reasons.items()}, now)
        events = [silence_event(message, awaited, reasons[message.key], now) for message, awaited, _ in overdue]
        rows = [(event.event_id, outgoing(event, source=Service.WEBHOOK_INGEST)) for event in events]
        if rows:
            await add_to_outbox(connection, rows)
    return events
