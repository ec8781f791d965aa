"""Kafka: topics, the producer, and how a consumer is made. Guards against what the libraries below do wrong
(reliability-security.md, section c) live here, once for all services.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaMessage
from faststream.kafka.subscriber.usecase import BatchSubscriber
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from sendwhy.metrics import Metric, Metrics
from sendwhy.partitions import partition_of
from sendwhy.settings import KafkaSettings
from sendwhy.topics import MAX_DEAD_LETTER_BYTES, TOPICS, Outgoing, Topic

PUBLISH_TIMEOUT_SECONDS = 20
STOP_TIMEOUT_SECONDS = 10
# Over TLS the broker's last word doesn't always come (http.Loop), and commands run on a loop that waits half a minute.
CLOSE_SECONDS = 2
REBUILD_PAUSE_SECONDS = 1
BATCH_MAX_RECORDS = 500
# Of one partition at once: aiokafka's own limit lets each of a service's consumers hold four times as much, read ahead
# and not yet asked for. A larger record comes all the same, alone.
FETCH_BYTES = 256 * 1024
# Fewer are left to the producer, which may put them together with others'.
BATCHED_FROM = 16
# How long an idle subscriber waits before it looks whether its group is well; a record ends the wait at once.
BATCH_TIMEOUT_MS = 2000
# How long Kafka keeps a question open to which it has no record yet; what else a consumer asks waits for its end (as
# `Stage.read_until` does). Some sixty idle consumers that ask twice a second burn a tenth of a core, and Kafka two.
FETCH_WAIT_MS = 2000
# Nothing waits for aiokafka's look at whether there is something to do: all that it looks for also wakes it.
FETCHER_WAKES_MS = 2000
# Within this a stage reads a partition that was added, and what lies in it meanwhile; aiokafka's own five minutes are
# long for a receipt.
METADATA_AGE_MS = 60_000
# From a batch to the next one, while fewer records come than fit into one. Each takes statements, a commit and
# questions to Kafka that cost as much as dozens of records.
REST_SECONDS = 0.08
# A batch takes so long where there is nothing else to do. Where it takes longer, the machine has more to do than it
# can: a stage then rests longer, and more than in proportion, up to the second of these. So batches grow until they
# cost little, instead of staying small and taking all there is.
EASY_SECONDS, REST_AT_MOST_SECONDS = 0.04, 0.5
# For what nobody waits for: it follows what a message's way has told already.
UNHURRIED_SECONDS = 1.0

log = structlog.get_logger("sendwhy")


class PublishError(Exception):
    """Kafka did not acknowledge. What was sent may still be stored later: repeat it, with the same event ids."""


class TopicsMissing(Exception):
    """Topics that don't exist, or none of whose partitions has a leader, as just after they were made."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """aiokafka's connection arguments (producer, consumer, admin client)."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "client_id": f"sendwhy-{settings.replica}",
    }
    context = settings.kafka_ssl_context()
    if context is not None:
        options["ssl_context"] = context
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism or "PLAIN",
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def _security(settings: KafkaSettings) -> BaseSecurity | None:
    protocol = settings.kafka_security_protocol
    if protocol == "PLAINTEXT":
        return None
    context = settings.kafka_ssl_context()
    use_ssl = context is not None
    if not protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=context, use_ssl=use_ssl)
    kind = {"SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}.get(
        settings.kafka_sasl_mechanism or "PLAIN", SASLPlaintext
    )
    password = settings.kafka_sasl_password
    return kind(
        username=settings.kafka_sasl_username or "",
        password=password.get_secret_value() if password else "",
        ssl_context=context,
        use_ssl=use_ssl,
    )


def make_broker(settings: KafkaSettings) -> KafkaBroker:
    """FastStream's broker, for consuming only: publishing goes through `Producer`.

    MANUAL acknowledgement, since FastStream's own would commit the position of every partition and stops rewinding
    at the first lost one; the stage loop commits exactly what it has done.
    """
    return KafkaBroker(
        settings.kafka_bootstrap_servers,
        consumer_only=True,
        allow_auto_create_topics=False,
        ack_policy=AckPolicy.MANUAL,
        security=_security(settings),
        client_id=f"sendwhy-{settings.replica}",
        metadata_max_age_ms=METADATA_AGE_MS,
        # Else each batch would be looked up in FastStream's context by a thread of its own, and validated.
        apply_types=False,
        logger=None,
        graceful_timeout=STOP_TIMEOUT_SECONDS,
    )


class Producer:
    """An idempotent producer that survives what kills aiokafka's.

    A record that the broker refuses for good leaves a gap in the sequence numbers, and every later record of that
    partition is refused too (aiokafka #1017): after any terminal error the producer is replaced. No await is
    without a bound (aiokafka #1101).
    """

    def __init__(self, settings: KafkaSettings, metrics: Metrics) -> None:
        self._options = connection_options(settings)
        self._metrics = metrics
        self._producer: AIOKafkaProducer | None = None
        self._rebuilding: asyncio.Task[None] | None = None

    async def start(self) -> None:
        producer = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            # Room for all that the door gathers: Kafka flushes each batch of it.
            max_batch_size=512 * 1024,
            max_request_size=MAX_DEAD_LETTER_BYTES,
            request_timeout_ms=10_000,
            partitioner=partition_of,
        )
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                await producer.start()
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer

    async def stop(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def answers(self) -> bool:
        """Whether the cluster tells its metadata within 3 s."""
        producer = self._producer
        if producer is None:
            return False
        try:
            await asyncio.wait_for(producer.client.fetch_all_metadata(), 3)
        except (TimeoutError, KafkaError):
            return False
        return True

    async def unled(self, topics: Collection[Topic]) -> set[str]:
        """Which of these topics can't be read at all, now: they don't exist, or no partition of theirs has a leader."""
        if self._producer is None:
            raise PublishError("the producer is not running")
        cluster = await asyncio.wait_for(self._producer.client.fetch_all_metadata(), PUBLISH_TIMEOUT_SECONDS)
        return {topic for topic in topics if not cluster.available_partitions_for_topic(topic)}

    async def publish(self, records: Sequence[Outgoing], *, timeout_seconds: float = PUBLISH_TIMEOUT_SECONDS) -> None:
        """Publish all records and wait until Kafka has acknowledged each.

        Raises PublishError when it has not within `timeout_seconds` or refused one; then any of them may be missing.
        """
        if not records:
            return
        producer = self._producer
        if producer is None:
            raise PublishError("the producer is not running")
        try:
            async with asyncio.timeout(timeout_seconds):
                is_batch = len(records) >= BATCHED_FROM or records[0].anywhere
                send = _send_batches if is_batch else _send_each
                pending = await send(producer, records)
                results = await asyncio.gather(*pending, return_exceptions=True)
        except (TimeoutError, KafkaTimeoutError) as error:
            raise PublishError("Kafka did not acknowledge in time") from error
        except KafkaError as error:
            self._replace(producer)
            raise PublishError("Kafka refused a record") from error
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            if not all(isinstance(failure, KafkaTimeoutError) for failure in failures):
                self._replace(producer)
            raise PublishError(f"Kafka refused some of {len(records)} records") from failures[0]

    def _replace(self, broken: AIOKafkaProducer) -> None:
        if self._producer is broken:
            log.warning("kafka producer is replaced after a terminal error")
            self._metrics.inc(Metric.PRODUCER_REBUILDS)
            self._producer = None
            self._rebuilding = asyncio.create_task(self._rebuild(broken))

    async def _rebuild(self, broken: AIOKafkaProducer) -> None:
        # Beside the caller, who has to answer in time, and until it works: Kafka may be away just now.
        await _stop(broken)
        while self._producer is None:
            try:
                await self.start()
            except (KafkaError, OSError, TimeoutError):
                await asyncio.sleep(REBUILD_PAUSE_SECONDS)


async def _send_each(producer: AIOKafkaProducer, records: Sequence[Outgoing]) -> "list[asyncio.Future[Any]]":
    return [
        await producer.send(
            record.topic,
            record.value,
            key=record.key,
            headers=list(record.headers),
        )
        for record in records
    ]


async def _send_batches(producer: AIOKafkaProducer, records: Sequence[Outgoing]) -> "list[asyncio.Future[Any]]":
    """In batches of our own making, each with one acknowledgement to wait for: a stage's records are there all at once,
    and a future for each takes longer than all the rest."""
    by_place: dict[tuple[Topic, int], list[Outgoing]] = {}
    partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in {one.topic for one in records}}
    anywhere = {topic: random.choice(known) for topic, known in partitions.items()}
    for record in records:
        known = partitions[record.topic]
        place = anywhere[record.topic] if record.anywhere else partition_of(record.key, known, known)
        by_place.setdefault((record.topic, place), []).append(record)
    return [
        await producer.send_batch(batch, topic, partition=partition)
        for (topic, partition), there in by_place.items()
        for batch in _batches_of(producer, there)
    ]


def _batches_of(producer: AIOKafkaProducer, records: Iterable[Outgoing]) -> Iterator[BatchBuilder]:
    batch = producer.create_batch()
    for record in records:
        if not _fits(batch, record):
            yield batch
            batch = producer.create_batch()
            # Into an empty one any record fits; whether it may be so large is the broker's to say.
            _fits(batch, record)
    batch.close()
    yield batch


def _fits(batch: BatchBuilder, record: Outgoing) -> bool:
    appended = batch.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers))
    return appended is not None


async def _stop(producer: AIOKafkaProducer) -> None:
    # A broken producer's stop() may hang or fail; what it still holds is repeated by whoever awaited it.
    with suppress(Exception):
        await asyncio.wait_for(producer.stop(), STOP_TIMEOUT_SECONDS)


async def let_go(closing: Awaitable[Any]) -> None:
    """Wait a moment and no longer until a client that has nothing left to tell is closed; how it ends changes nothing
    of what it has heard."""
    with suppress(Exception):
        await asyncio.wait_for(closing, CLOSE_SECONDS)


async def create_topics(settings: KafkaSettings) -> list[str]:
    """Create the topics that don't exist yet, as the table in topics.py has them; returns their names."""
    admin = AIOKafkaAdminClient(**connection_options(settings))
    try:
        await asyncio.wait_for(admin.start(), 30)
        existing = set(await admin.list_topics())
        missing = [name for name in TOPICS if name not in existing]
        wanted = [
            # An empty assignment beside replication -1 (the broker's default): aiokafka refuses -1 without one.
            NewTopic(name, spec.partitions, -1, replica_assignments={}, topic_configs=spec.config())
            for name, spec in TOPICS.items()
            if name in missing
        ]
        if wanted:
            _raise_errors(await admin.create_topics(wanted))
        return [str(name) for name in missing]
    finally:
        await let_go(admin.close())


def _raise_errors(answer: Any) -> None:
    for name, code, *_ in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise for_code(code)(name)


async def as_it_came(batch: tuple[ConsumerRecord[Any, Any], ...]) -> KafkaMessage:
    """FastStream parser that reads nothing of a batch. FastStream's own reads every header as text, and drops the whole
    batch without a word at one that is none; it would also publish to whatever topic a header `reply_to` names."""
    return KafkaMessage(batch, b"", consumer=FAKE_CONSUMER)


def in_turns(
    subscriber: BatchSubscriber, rest_seconds: float = REST_SECONDS, at_most_seconds: float = REST_AT_MOST_SECONDS
) -> None:
    """Ask Kafka only when the last batch is done and its rest is over, for all partitions at once (ADR 46).

    aiokafka by itself asks for the partitions that a batch has emptied while that is being handled, and is answered
    with the first record that comes: the next batch is that one record, and what comes to other partitions meanwhile
    waits for the end of the question (a long one, where these are quiet). FastStream's own way also sleeps after a
    poll that brought nothing, for as long as it has waited.
    """
    taken_at: float | None = None

    async def get_msg(consumer: AIOKafkaConsumer) -> tuple[ConsumerRecord[Any, Any], ...]:
        nonlocal taken_at
        if taken_at is not None:
            await asyncio.sleep(rest_after(time.monotonic() - taken_at, rest_seconds, at_most_seconds))
        consumer.resume(*consumer.paused())
        found = await consumer.getmany(timeout_ms=subscriber.batch_timeout_ms, max_records=subscriber.max_records)
        # At once: after the next await aiokafka would have asked.
        consumer.pause(*consumer.assignment())
        batch = tuple(chain.from_iterable(found.values()))
        is_full = subscriber.max_records is not None and len(batch) >= subscriber.max_records
        taken_at = time.monotonic() if batch and not is_full else None
        return batch

    subscriber.get_msg = get_msg  # type: ignore[method-assign] # a subscriber is made by its broker, of its own class


def rest_after(took_seconds: float, rest_seconds: float, at_most_seconds: float = REST_AT_MOST_SECONDS) -> float:
    """Seconds until a stage takes its next batch, after one that wasn't full and took so long: at least `rest_seconds`
    from batch to batch, and the longer, up to `at_most_seconds`, the more the batch took beyond `EASY_SECONDS`."""
    return max(rest_seconds - took_seconds, busy_rest(took_seconds, at_most_seconds))


def busy_rest(took_seconds: float, at_most_seconds: float = REST_AT_MOST_SECONDS) -> float:
    """Seconds that something which took so long leaves to others."""
    return min(took_seconds * took_seconds / EASY_SECONDS, at_most_seconds)


async def undecoded(message: KafkaMessage) -> Any:
    """FastStream decoder to go with it: a handler is given the batch itself. The usual one reads all records again, and
    one that isn't async is called in a thread."""
    return message.raw_message


def lag_of(positions: Iterable[tuple[int, int]]) -> int:
    """Records behind, over (position, end offset) pairs."""
    return sum(max(0, end - position) for position, end in positions)
