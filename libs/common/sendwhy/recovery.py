"""What a restored database is behind its topics, and what the topics still tell of what it has forgotten.

A service that is set back to its backup hears again all that others told it since. What it *did* since stands in no
topic that it reads, but in those that it writes: that must be taken from there before anything is heard again, or it
would be decided, charged or sent a second time (ADR 42).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import ValidationError

from sendwhy.events import Wire
from sendwhy.kafka import BATCH_MAX_RECORDS, connection_options, let_go
from sendwhy.settings import KafkaSettings
from sendwhy.stage import Record, record_of
from sendwhy.topics import Topic, source_header, utc_from_ms

ANSWER_SECONDS = 30
LOOK_MS = 5000
# Brokers' clocks stamp the records, and they may differ.
CLOCKS_DIFFER = timedelta(minutes=10)

log = structlog.get_logger("sendwhy")
E = TypeVar("E", bound=Wire)


@dataclass(frozen=True, slots=True)
class Gap:
    """A partition in which the group went on after the backup: what this database has reached, and the group had."""

    reached: int
    committed: int


Place = tuple[str, int]
Gaps = dict[Place, Gap]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `before_rewind`'s acts are given. `since`: the backup is not older than this; None: nobody knows how old.
    `committed`: the group's offsets, by topic and partition, where it has any."""

    settings: KafkaSettings
    service: str
    gaps: Gaps
    committed: Mapping[Place, int]
    since: datetime | None

    async def told(self, topic: Topic) -> AsyncIterator[Sequence[Record[None]]]:
        """What this service itself has written to `topic` since the backup, in batches; of a partition in order."""
        own = source_header(self.service)
        async with reader(self.settings) as consumer:
            starts = await _starts(consumer, topic, self.since)
            async for batch in _read(consumer, topic, starts, await _ends(consumer, topic)):
                # A tombstone has no headers; only one service writes to a topic that has some.
                if found := [one for one in batch if one.value is None or one.header("ce_source") == own]:
                    yield found

    async def heard(self, topic: Topic, starts: Mapping[int, int], ends: Mapping[int, int]) -> AsyncIterator[Any]:
        """The records of `topic` between these offsets, by partition, in batches."""
        async with reader(self.settings) as consumer:
            async for batch in _read(consumer, topic, starts, ends):
                yield batch

    async def ends(self, topic: Topic) -> dict[int, int]:
        async with reader(self.settings) as consumer:
            return await _ends(consumer, topic)


def events_of(batch: Iterable[Record[None]], model: type[E]) -> list[tuple[Record[None], E]]:
    """The events of what `told` gives, each with its record; one that can't be read is logged and left out."""
    found = []
    for record in batch:
        try:
            found.append((record, model.model_validate_json(record.value or b"")))
        except ValidationError:
            log.error("an event of our own can't be read", place=record.place)
    return found


@asynccontextmanager
async def reader(settings: KafkaSettings, group: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that joins nothing; with a group, one that may read and write that group's offsets. Such a one is
    assigned partitions once only: aiokafka's coordinator asserts that nobody assigns others while it looks around."""
    consumer = AIOKafkaConsumer(
        **connection_options(settings),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # A fetch that waits at one partition's end would hold up the next partition's.
        fetch_max_wait_ms=20,
    )
    try:
        await asyncio.wait_for(consumer.start(), ANSWER_SECONDS)
        yield consumer
    finally:
        await let_go(consumer.stop())


async def places_of(consumer: AIOKafkaConsumer, topic: Topic) -> list[TopicPartition]:
    """All partitions that the topic has: more may have been added than it was made with. Assigns one of them."""
    first = TopicPartition(topic, 0)
    consumer.assign([first])
    # Waits until the client knows the topic.
    await asyncio.wait_for(consumer.beginning_offsets([first]), ANSWER_SECONDS)
    return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or {0})]


async def committed_in(consumer: AIOKafkaConsumer, places: Iterable[TopicPartition]) -> dict[Place, int]:
    """The offsets of the consumer's group, where it has any."""
    found = {
        (place.topic, place.partition): await asyncio.wait_for(consumer.committed(place), ANSWER_SECONDS)
        for place in places
    }
    return {place: offset for place, offset in found.items() if offset is not None}


async def gaps_in(settings: KafkaSettings, committed: Mapping[Place, int], reached: Mapping[Place, int]) -> Gaps:
    """Where the committed offset lies beyond what the database has reached."""
    gaps = {
        place: Gap(reached.get(place, 0), offset)
        for place, offset in committed.items()
        if offset > reached.get(place, 0)
    }
    if not gaps:
        return {}
    async with reader(settings) as consumer:
        # Compaction and retention leave gaps that mean nothing.
        return {
            place: gap
            for place, gap in gaps.items()
            if await _first(consumer, TopicPartition(*place), gap.reached, gap.committed) is not None
        }


async def last_known(consumer: AIOKafkaConsumer, topic: Topic, reached: Mapping[Place, int]) -> datetime | None:
    """When Kafka stored the latest record of `topic` that the database has handled, if that record is still there."""
    found: list[datetime] = []
    for place in await places_of(consumer, topic):
        known = reached.get((str(topic), place.partition), 0)
        if known and (record := await _first(consumer, place, known - 1, known)) is not None:
            found.append(utc_from_ms(record.timestamp))
    return max(found, default=None)


def since_of(moments: Iterable[datetime | None]) -> datetime | None:
    """From when on to look for what the lost database wrote: it knew of all these records."""
    latest = max((moment for moment in moments if moment is not None), default=None)
    return latest - CLOCKS_DIFFER if latest is not None else None


async def _first(consumer: AIOKafkaConsumer, place: TopicPartition, start: int, end: int) -> Any:
    """The first record between two offsets, or None."""
    consumer.assign([place])
    first = (await asyncio.wait_for(consumer.beginning_offsets([place]), ANSWER_SECONDS))[place]
    last = (await asyncio.wait_for(consumer.end_offsets([place]), ANSWER_SECONDS))[place]
    if max(start, first) >= min(end, last):
        return None
    consumer.seek(place, max(start, first))
    batches = await consumer.getmany(place, timeout_ms=LOOK_MS, max_records=1)
    return next((one for records in batches.values() for one in records if one.offset < end), None)


async def _ends(consumer: AIOKafkaConsumer, topic: Topic) -> dict[int, int]:
    ends = await asyncio.wait_for(consumer.end_offsets(await places_of(consumer, topic)), ANSWER_SECONDS)
    return {place.partition: end for place, end in ends.items()}


async def _starts(consumer: AIOKafkaConsumer, topic: Topic, since: datetime | None) -> dict[int, int]:
    places = await places_of(consumer, topic)
    first = await asyncio.wait_for(consumer.beginning_offsets(places), ANSWER_SECONDS)
    if since is None:
        return {place.partition: offset for place, offset in first.items()}
    moment = int(since.timestamp() * 1000)
    found = await asyncio.wait_for(consumer.offsets_for_times(dict.fromkeys(places, moment)), ANSWER_SECONDS)
    ends = await _ends(consumer, topic)
    return {
        place.partition: there.offset if (there := found.get(place)) is not None else ends[place.partition]
        for place in places
    }


async def _read(
    consumer: AIOKafkaConsumer, topic: Topic, starts: Mapping[int, int], ends: Mapping[int, int]
) -> AsyncIterator[Sequence[Record[None]]]:
    places = await places_of(consumer, topic)
    open_places = [place for place in places if starts.get(place.partition, 0) < ends.get(place.partition, 0)]
    consumer.assign(open_places)
    for place in open_places:
        consumer.seek(place, starts.get(place.partition, 0))
    while open_places:
        batches = await consumer.getmany(*open_places, timeout_ms=LOOK_MS, max_records=BATCH_MAX_RECORDS)
        found = [one for records in batches.values() for one in records if one.offset < ends[one.partition]]
        if found:
            yield [record_of(topic, one) for one in found]
        # The position, not the last record: compaction leaves holes at the end.
        open_places = [place for place in open_places if await consumer.position(place) < ends[place.partition]]
