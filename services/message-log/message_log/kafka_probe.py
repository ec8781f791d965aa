"""What Kafka says of itself and of our consumer groups, asked from outside of any of them and bounded in time."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from sendwhy.kafka import connection_options, lag_of
from sendwhy.logs import describe
from sendwhy.settings import KafkaSettings
from sendwhy.topics import TOPICS

from message_log.checks import Group, KafkaFacts
from message_log.group_lag import GROUPS
from message_log.language import lazy

REACH_SECONDS = 3.0
LAG_SECONDS = 5.0
CLOSE_SECONDS = 2.0
FAULTS: tuple[type[BaseException], ...] = (KafkaError, OSError, TimeoutError)


async def look(settings: KafkaSettings) -> KafkaFacts:
    started, at = time.monotonic(), datetime.now(UTC)
    # A consumer without a group knows the ends of partitions, which the admin client can't ask for.
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=int(LAG_SECONDS * 1000))
    consumer = AIOKafkaConsumer(**connection_options(settings), enable_auto_commit=False)
    try:
        async with asyncio.timeout(REACH_SECONDS):
            await admin.start()
            topics = frozenset(await admin.list_topics())
            brokers = len((await admin.describe_cluster())["brokers"])
        facts = KafkaFacts(at, time.monotonic() - started, brokers, topics=topics)
        return await _with_groups(facts, admin, consumer)
    except FAULTS as error:
        return KafkaFacts(at, fault=lazy("It can’t be reached: %(why)s.", why=_words(error, REACH_SECONDS)))
    finally:
        for client in (admin.close, consumer.stop):
            with suppress(Exception):
                await asyncio.wait_for(client(), CLOSE_SECONDS)


def _words(error: BaseException, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return lazy("no answer within %(seconds)s s", seconds=round(seconds))
    return describe(error)


async def _with_groups(facts: KafkaFacts, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> KafkaFacts:
    try:
        async with asyncio.timeout(LAG_SECONDS):
            return replace(facts, groups=await _groups(admin, consumer))
    except FAULTS as error:
        why = _words(error, LAG_SECONDS)
        return replace(facts, lag_fault=lazy("Kafka didn’t tell the groups’ positions: %(why)s.", why=why))


# Who is in a group is not asked: /livez tells who moves, and group_lag.py counts the members.
async def _groups(admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> Sequence[Group]:
    names = sorted(name for name, *_ in await admin.list_consumer_groups() if name in GROUPS)
    if not names:
        return ()
    await consumer.start()
    places = [
        TopicPartition(topic, number)
        for topic in sorted({GROUPS[name][1] for name in names})
        for number in range(TOPICS[topic].partitions)
    ]
    committed, first, end = await asyncio.gather(
        asyncio.gather(*(admin.list_consumer_group_offsets(name) for name in names)),
        consumer.beginning_offsets(places),
        consumer.end_offsets(places),
    )
    return [_group(name, offsets, first, end) for name, offsets in zip(names, committed, strict=True)]


def _group(
    name: str,
    committed: Mapping[TopicPartition, Any],
    first: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
) -> Group:
    service, topic = GROUPS[name]
    own: Iterable[TopicPartition] = (place for place in end if place.topic == topic)
    # A partition without a commit is read from its beginning, and retention may have taken what was committed.
    positions = [(max(committed[place].offset if place in committed else 0, first[place]), end[place]) for place in own]
    return Group(service, topic, lag_of(positions))
