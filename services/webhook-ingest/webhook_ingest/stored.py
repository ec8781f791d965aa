"""Records that Kafka still has, read beside the consumer groups: their progress stays as it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from sendwhy.kafka import connection_options, let_go
from sendwhy.settings import KafkaSettings
from sendwhy.stage import Record
from sendwhy.topics import Topic, utc_from_ms

KAFKA_TIMEOUT_SECONDS = 30
BATCH_MAX_RECORDS = 500
POLL_MS = 5000
# The broker answers one connection in order: each question about an offset waits behind a fetch that waits for records
# (500 ms by default, 6 s in all for a replay of six partitions with next to nothing in them).
FETCH_WAIT_MS = 50


class KafkaIsSlow(TimeoutError):
    """Records that should be there were not given in time."""


@asynccontextmanager
async def stored(
    settings: KafkaSettings, topic: Topic = Topic.WEBHOOK_RECEIVED
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """A consumer of a topic without a group, and all of its partitions."""
    consumer = AIOKafkaConsumer(
        topic, **connection_options(settings), enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS
    )
    try:
        async with asyncio.timeout(KAFKA_TIMEOUT_SECONDS):
            await consumer.start()
        yield consumer, sorted(consumer.assignment())
    finally:
        await let_go(consumer.stop())


async def span_of(consumer: AIOKafkaConsumer, place: TopicPartition, since: datetime, to: datetime) -> tuple[int, int]:
    """The first offset stored at or after `since`, and the one before which `to` ends."""
    end: int = (await consumer.end_offsets([place]))[place]
    offsets = [
        (await consumer.offsets_for_times({place: int(moment.timestamp() * 1000)}))[place] for moment in (since, to)
    ]
    first, last = (end if found is None else int(found.offset) for found in offsets)
    return first, last


async def batches_of(
    consumer: AIOKafkaConsumer, place: TopicPartition, first: int, last: int
) -> AsyncIterator[list[Record[None]]]:
    """The records from offset `first` to before `last`. Raises KafkaIsSlow."""
    consumer.seek(place, first)
    while first < last:
        fetched = await consumer.getmany(place, timeout_ms=POLL_MS, max_records=BATCH_MAX_RECORDS)
        entries: list[ConsumerRecord[Any, Any]] = fetched.get(place, [])
        if not entries:
            raise KafkaIsSlow(f"{place.topic}/{place.partition}/{first}")
        first = entries[-1].offset + 1
        yield [_record(entry) for entry in entries if entry.offset < last]


def _record(entry: ConsumerRecord[Any, Any]) -> Record[None]:
    return Record(
        None,
        Topic(entry.topic),
        entry.partition,
        entry.offset,
        utc_from_ms(entry.timestamp),
        entry.key,
        entry.value,
        tuple(entry.headers),
    )
