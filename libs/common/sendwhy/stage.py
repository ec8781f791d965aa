"""The stage loop, the same in every service: batch → parse one by one → one transaction (load, decide, store, the
offsets reached) → publish and await → commit (design.md, "How a stage works").

A failing batch is rewound and tried again after a growing pause; a record that can't be read, or that the database
refuses for its data, goes to dead.letters with its bytes and its neighbours go on.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from asyncpg import PostgresError, UniqueViolationError
from faststream.kafka import KafkaBroker
from pydantic import ValidationError

from sendwhy.joint import Joint
from sendwhy.kafka import (
    BATCH_MAX_RECORDS,
    BATCH_TIMEOUT_MS,
    FETCH_BYTES,
    FETCH_WAIT_MS,
    FETCHER_WAKES_MS,
    REST_AT_MOST_SECONDS,
    REST_SECONDS,
    Producer,
    PublishError,
    as_it_came,
    in_turns,
    lag_of,
    undecoded,
)
from sendwhy.logs import describe
from sendwhy.metrics import Metric, Metrics
from sendwhy.patience import TRIES_BEFORE_BLAME, pause_after
from sendwhy.postgres import DATA_ERRORS, TRANSIENT_ERRORS, Connection, load_reached, store_reached
from sendwhy.topics import TOPICS, Outgoing, Topic, utc_from_ms
from sendwhy.values import value_class

STANDSTILL_SECONDS = 60.0
# Bad records beyond this share of a large batch look like a bad deploy: stop instead of pouring all into dead.letters.
DEAD_LETTER_SHARE_MAX = 0.5
DEAD_LETTER_SHARE_BATCH_MIN = 200

_TRACE = re.compile(rb"[\x21-\x7e]{1,128}")

log = structlog.get_logger("sendwhy")
T = TypeVar("T")


def trace_of(given: bytes | None) -> bytes | None:
    """A traceparent as it is handed on, and stored beside what is decided; none where it can't be one: anybody may
    write it."""
    return given if given is not None and _TRACE.fullmatch(given) else None


@value_class
class Record(Generic[T]):
    """One event with where it came from. `at` is when Kafka stored it; `trace` its traceparent."""

    event: T
    topic: Topic
    partition: int
    offset: int
    at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def trace(self) -> bytes | None:
        return trace_of(self.header("traceparent"))

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    def header(self, name: str) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


Parse = Callable[[Record[None]], T]
Handle = Callable[[Connection, Sequence[Record[T]]], Awaitable[Sequence[Outgoing]]]


@value_class
class Unreadable:
    """A record that could not be parsed, and why: `fields` as "where: what", without the values."""

    record: Record[None]
    error: str
    fields: tuple[str, ...]


# Also gets what of the batch can be read, which is handled after it: some of that may have come before.
HandleUnreadable = Callable[[Connection, Sequence[Unreadable], Sequence[Record[Any]]], Awaitable[Sequence[Outgoing]]]
Committed = Callable[[Sequence[Record[T]]], None]


def parse_json(model: type[Any]) -> Parse[Any]:
    """A parser for a pydantic model; an empty value (a tombstone) raises."""

    def parse(record: Record[None]) -> Any:
        return model.model_validate_json(record.value or b"")

    return parse


def parse_state(model: type[Any]) -> Parse[Any]:
    """A parser for compacted topics: None is a tombstone, its key tells of whom."""

    def parse(record: Record[None]) -> Any:
        return None if record.value is None else model.model_validate_json(record.value)

    return parse


def dead_letter(record: Record[Any], *, service: str, error: str) -> Outgoing:
    """The record as it came, with the original bytes; headers tell where from and why not."""
    headers = (
        ("service", service.encode()),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
        ("error", error.encode()[:2048]),
    )
    # A record may have neither key nor value; aiokafka sends no such record on.
    value = b"" if record.key is None and record.value is None else record.value
    return Outgoing(Topic.DEAD_LETTERS, record.key, value, headers)


def consumer_group(service: str, topic: str) -> str:
    """A group for each topic: members of one group would all stop at every join, a heartbeat (3 s) for each stage."""
    return f"sendwhy-{service}.{topic}"


class DeadLetterFlood(Exception):
    """Most of a large batch is bad: that smells of a bad deploy, so nothing is put aside and nothing committed."""


class Stage(Generic[T]):
    """One topic, one consumer group, one handler: its own, or a Joint with other stages."""

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        topic: Topic,
        parse: Parse[T],
        handle: Handle[T] | Joint,
        *,
        service: str,
        pool: Callable[[], asyncpg.Pool],
        producer: Producer,
        metrics: Metrics,
        on_unreadable: HandleUnreadable | None = None,
        on_committed: Committed[T] | None = None,
        rest_seconds: float = REST_SECONDS,
        fetch_wait_ms: int = FETCH_WAIT_MS,
    ) -> None:
        self.topic = topic
        self._rest_seconds, self._fetch_wait_ms = rest_seconds, fetch_wait_ms
        self.group = consumer_group(service, topic)
        self._service_group = f"sendwhy-{service}"
        self.name = topic.value
        self._joint = handle if isinstance(handle, Joint) else None
        self._handle: Handle[T] = handle.handle if isinstance(handle, Joint) else handle
        self._parse, self._on_unreadable = parse, on_unreadable
        self._on_committed = on_committed
        self._service, self._pool, self._producer, self._metrics = service, pool, producer, metrics
        self._failures = 0
        # As far as this replica knows; Kafka may know of more.
        self._committed: dict[TopicPartition, int] = {}
        # By topic and partition, what comes next after what this replica has handled; another may have gone further.
        self._expected: dict[tuple[str, int], int] = {}
        self.last_progress = time.monotonic()
        metrics.inc(Metric.DEAD_LETTERS, 0, topic=topic, error="unreadable")
        metrics.inc(Metric.COMMIT_FAILURES, 0, stage=self.name)
        metrics.inc(Metric.RECORDS_MISSED, 0, stage=self.name)

    def subscribe(self, broker: KafkaBroker) -> None:
        subscriber = broker.subscriber(
            self.topic,
            group_id=self.group,
            batch=True,
            max_records=BATCH_MAX_RECORDS if self._joint is None else self._joint.max_records,
            batch_timeout_ms=BATCH_TIMEOUT_MS,
            fetch_max_wait_ms=self._fetch_wait_ms,
            consumer_timeout_ms=FETCHER_WAKES_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            auto_offset_reset="earliest",
            parser=as_it_came,
            decoder=undecoded,
            title=f"{self._service}: {self.topic}",
        )
        # What takes part in a Joint waits for that, and rests with it.
        in_turns(subscriber, self._rest_seconds, REST_AT_MOST_SECONDS if self._joint is None else 0.0)

        @subscriber
        async def on_batch(batch: tuple[ConsumerRecord[Any, Any], ...]) -> None:
            await self._on_batch(batch, subscriber.consumer)

        self._subscriber = subscriber

    async def _on_batch(self, batch: tuple[ConsumerRecord[Any, Any], ...], consumer: Any) -> None:
        try:
            await self._work(batch, consumer)
            self._failures = 0
        except asyncio.CancelledError:
            # A stray cancellation would end FastStream's consumer without a word (faststream #3010).
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            await self._rewind(batch, consumer, "CancelledError")
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is rewound and tried again
            await self._rewind(batch, consumer, describe(error), error)
            if not _passes(error):
                # No progress: if that goes on, /livez says so.
                return
        self.last_progress = time.monotonic()
        self._metrics.set(Metric.LAST_PROGRESS, time.time(), stage=self.name)

    async def _work(self, batch: tuple[ConsumerRecord[Any, Any], ...], consumer: AIOKafkaConsumer) -> None:
        records: list[Record[Any]] = [record_of(self.topic, entry) for entry in batch]
        await self._tell_of_missed(records, consumer)
        good, bad = self._parse_all(records)
        # What somebody else wrote is put aside all the same after a few tries: a flood of theirs must not stop ours.
        if self._failures < TRIES_BEFORE_BLAME:
            self._refuse_flood(len(bad), len(records))
        aside: list[Outgoing] = []
        is_done = await self._is_done_jointly(good, records)
        publish = [] if is_done else [*await self._tell_of(bad, good), *await self._transact(good, records, aside)]
        self._expected |= _next_offsets(records)
        if self._on_committed is not None:
            self._on_committed(good)
        self._refuse_flood(len(aside), len(records))
        await self._producer.publish([*self._dead_letters(bad), *aside, *publish])
        await self._commit(consumer, _next_offsets(records))
        now = datetime.now(UTC)
        self._metrics.observe(Metric.STAGE_BATCH, len(records), stage=self.name)
        waited = [(now - record.at).total_seconds() for record in records]
        self._metrics.observe(Metric.STAGE_SECONDS, *waited, stage=self.name)
        if self._joint is not None:
            await self._joint.rest()

    async def _tell_of_missed(self, records: Sequence[Record[Any]], consumer: AIOKafkaConsumer) -> None:
        """Kafka deletes by age also what nobody has read by then, and a consumer goes on behind that without a word."""
        if TOPICS[self.topic].compacted:
            return
        firsts = {(str(record.topic), record.partition): record.offset for record in reversed(records)}
        beyond = [place for place, first in firsts.items() if first > self._expected.get(place, 0)]
        if not beyond:
            return
        async with self._pool().acquire(timeout=30) as connection:
            reached = await load_reached(connection, self._service_group)
        # Gaps of other causes, as of an upstream system's transactions, lie behind what Kafka still has.
        passed = [place for place in beyond if place in reached and firsts[place] > reached[place]]
        places = [TopicPartition(*place) for place in passed]
        begins = await asyncio.wait_for(consumer.beginning_offsets(places), 15) if places else {}
        missed = sum(max(0, begins[place] - reached[place]) for place in places)
        # Told once, also if the batch has to be tried again.
        self._expected |= {place: firsts[place] for place in beyond}
        if missed:
            self._metrics.inc(Metric.RECORDS_MISSED, missed, stage=self.name)
            log.error("Kafka has deleted records that were never read", topic=self.topic, count=missed)

    @staticmethod
    def _refuse_flood(bad: int, records: int) -> None:
        if records >= DEAD_LETTER_SHARE_BATCH_MIN and bad > records * DEAD_LETTER_SHARE_MAX:
            raise DeadLetterFlood(f"{bad} of {records} records would be put aside")

    def _parse_all(self, records: Sequence[Record[None]]) -> tuple[list[Record[T]], list[Unreadable]]:
        good: list[Record[T]] = []
        bad: list[Unreadable] = []
        for record in records:
            try:
                event = self._parse(record)
            except ValidationError as error:
                bad.append(Unreadable(record, "unreadable", fields_of(error)))
            except (ValueError, RecursionError) as error:
                bad.append(Unreadable(record, "unreadable", (str(error)[:200],)))
            else:
                # In place: a second record of each takes longer than all the rest of this loop.
                record.event = event  # type: ignore[misc, assignment]
                good.append(record)  # type: ignore[arg-type]
        return good, bad

    def _dead_letters(self, bad: Sequence[Unreadable]) -> list[Outgoing]:
        for entry in bad:
            self._metrics.inc(Metric.DEAD_LETTERS, topic=self.topic, error=entry.error)
        if bad:
            log.warning("records were put aside", topic=self.topic, count=len(bad), first=list(bad[0].fields[:3]))
        return [
            dead_letter(entry.record, service=self._service, error=f"{entry.error}: {'; '.join(entry.fields)}")
            for entry in bad
        ]

    async def _is_done_jointly(self, good: Sequence[Record[T]], records: Sequence[Record[Any]]) -> bool:
        """False where there is no Joint, or it failed: whose records are to blame is found out by each stage alone."""
        if self._joint is None:
            return False
        try:
            await self._joint.take_part(good, _next_offsets(records))
        except Exception as error:
            if _passes(error):
                raise
            return False
        return True

    async def _tell_of(self, bad: Sequence[Unreadable], good: Sequence[Record[T]]) -> Sequence[Outgoing]:
        """What is said of unreadable records, before what comes after them is decided. Their dead letters go anyhow."""
        if not bad or self._on_unreadable is None:
            return []
        try:
            async with self._pool().acquire(timeout=30) as connection, connection.transaction():
                return await self._on_unreadable(connection, bad, good)
        except Exception as error:
            if not self._blames_a_record(error):
                raise
            log.error("of unreadable records nothing was told", topic=self.topic, error=describe(error), exc_info=error)
            return []

    async def _transact(
        self,
        good: Sequence[Record[T]],
        records: Sequence[Record[Any]],
        aside: list[Outgoing],
    ) -> list[Outgoing]:
        """Handle the batch in one transaction; if its data are to blame, halve it down to the guilty record, whose dead
        letter goes to `aside`."""
        try:
            async with self._pool().acquire(timeout=30) as connection, connection.transaction():
                publish = list(await self._handle(connection, good)) if good else []
                await store_reached(connection, self._service_group, _next_offsets(records))
                return publish
        except Exception as error:
            if not self._blames_a_record(error):
                raise
            if len(good) <= 1:
                aside += await self._put_aside(good, records, error)
                return []
            middle = len(good) // 2
            left = await self._transact(good[:middle], good[:middle], aside)
            right = await self._transact(good[middle:], records, aside)
            return left + right

    def _blames_a_record(self, error: Exception) -> bool:
        """The database refuses a record's data; or our own code still fails on it after some tries, and its neighbours
        need not wait for that to be mended. Whatever else the database says is about all records."""
        if isinstance(error, UniqueViolationError):
            # Two wrote the same at once: the next try finds what the other wrote.
            return self._failures >= TRIES_BEFORE_BLAME
        if isinstance(error, DATA_ERRORS):
            return True
        return self._failures >= TRIES_BEFORE_BLAME and not _passes(error) and not isinstance(error, PostgresError)

    async def _put_aside(
        self, guilty: Sequence[Record[T]], records: Sequence[Record[Any]], error: BaseException
    ) -> list[Outgoing]:
        log.error("a record was put aside", topic=self.topic, error=describe(error), exc_info=error)
        async with self._pool().acquire(timeout=30) as connection:
            await store_reached(connection, self._service_group, _next_offsets(records))
        for record in guilty:
            self._metrics.inc(Metric.DEAD_LETTERS, topic=record.topic, error=type(error).__name__)
        why = "refused by the database" if isinstance(error, DATA_ERRORS) else "could not be handled"
        reason = f"{why}: {describe(error)}"
        return [dead_letter(record, service=self._service, error=reason) for record in guilty]

    async def _commit(self, consumer: AIOKafkaConsumer, next_offsets: dict[tuple[str, int], int]) -> None:
        assigned = consumer.assignment()
        offsets = {
            TopicPartition(topic, partition): offset
            for (topic, partition), offset in next_offsets.items()
            if TopicPartition(topic, partition) in assigned
        }
        try:
            if offsets:
                await asyncio.wait_for(consumer.commit(offsets), 30)
                self._committed |= offsets
        except (KafkaError, TimeoutError) as error:
            # The group moved on: whoever has the partition now repeats the batch, which changes nothing.
            self._metrics.inc(Metric.COMMIT_FAILURES, stage=self.name)
            log.warning("offsets were not committed", topic=self.topic, error=describe(error))

    async def _rewind(
        self,
        batch: tuple[ConsumerRecord[Any, Any], ...],
        consumer: AIOKafkaConsumer,
        name: str,
        error: BaseException | None = None,
    ) -> None:
        self._failures += 1
        self._metrics.inc(Metric.STAGE_FAILURES, stage=self.name, error=name.partition(" ")[0])
        passing = error is not None and _passes(error)
        first: dict[TopicPartition, int] = {}
        for entry in batch:
            place = TopicPartition(entry.topic, entry.partition)
            first[place] = min(entry.offset, first.get(place, entry.offset))
        log.warning(
            "batch failed, it is tried again" if passing else "batch failed unexpectedly, it is tried again",
            topic=self.topic,
            offset=[f"{place.partition}/{offset}" for place, offset in first.items()],
            attempt=self._failures,
            error=name,
            exc_info=None if passing else error,
        )
        for place, offset in first.items():
            if place in consumer.assignment():
                consumer.seek(place, offset)
        await asyncio.sleep(pause_after(self._failures))

    async def watch(self) -> None:
        """Look from outside how far behind the consumer is; a consumer with nothing to do counts as moving."""
        consumer: AIOKafkaConsumer | None = getattr(self._subscriber, "consumer", None)
        if consumer is None:
            return
        assigned = list(consumer.assignment())
        ends = await asyncio.wait_for(consumer.end_offsets(assigned), 15) if assigned else {}
        positions = [(await asyncio.wait_for(consumer.position(place), 15), ends[place]) for place in assigned]
        lag = lag_of(positions)
        self._metrics.set(Metric.CONSUMER_LAG, lag, stage=self.name)
        if lag == 0:
            self.last_progress = time.monotonic()
            self._metrics.set(Metric.LAST_PROGRESS, time.time(), stage=self.name)

    async def read_until(self) -> dict[int, datetime]:
        """For each assigned partition without lag: the moment up to which everything has been handled."""
        consumer: AIOKafkaConsumer | None = getattr(self._subscriber, "consumer", None)
        assigned = list(consumer.assignment()) if consumer is not None else []
        if consumer is None or not assigned:
            return {}
        now = datetime.now(UTC)
        ends = await asyncio.wait_for(consumer.end_offsets(assigned), 15)
        for place in assigned:
            # Another replica may have gone further while it had the partition.
            if self._committed.get(place, 0) < ends[place]:
                self._committed[place] = await asyncio.wait_for(consumer.committed(place), 15) or 0
        return {place.partition: now for place in assigned if self._committed.get(place, 0) >= ends[place]}

    def excuse(self) -> None:
        """It can't move: the time until now doesn't count against it."""
        self.last_progress = time.monotonic()

    @property
    def stands_still(self) -> bool:
        return time.monotonic() - self.last_progress > STANDSTILL_SECONDS


def _passes(error: BaseException) -> bool:
    return isinstance(error, (*TRANSIENT_ERRORS, PublishError, KafkaError))


def fields_of(error: ValidationError) -> tuple[str, ...]:
    """A validation error as "field.path: what is wrong" lines, at most 10, without the values."""
    entries = error.errors(include_input=False, include_url=False, include_context=False)
    return tuple(
        f"{'.'.join(str(part) for part in entry['loc']) or 'body'}: {entry['msg'].removeprefix('Value error, ')}"
        for entry in entries[:10]
    )


def record_of(topic: Topic, entry: ConsumerRecord[Any, Any]) -> Record[None]:
    return Record(
        None,
        topic,
        entry.partition,
        entry.offset,
        utc_from_ms(entry.timestamp),
        entry.key,
        entry.value,
        tuple(entry.headers),
    )


def with_event(record: Record[None], event: T) -> Record[T]:
    return Record(
        event, record.topic, record.partition, record.offset, record.at, record.key, record.value, record.headers
    )


def _next_offsets(records: Sequence[Record[Any]]) -> dict[tuple[str, int], int]:
    """Of one topic's records, each partition's in Kafka's order."""
    last = {record.partition: record.offset for record in records}
    return {(str(records[0].topic), partition): offset + 1 for partition, offset in last.items()}
