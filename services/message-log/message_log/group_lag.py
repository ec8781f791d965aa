"""How far each consumer group of Sendwhy is behind, asked of Kafka: what a consumer tells of itself vanishes with it.

Kafka tells offsets, not ages. The age is read off our own samples of where the topic ended: a record that lies before
an end that we saw a minute ago has waited for a minute.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from sendwhy.kafka import connection_options, let_go
from sendwhy.logs import describe
from sendwhy.metrics import Metric, Metrics
from sendwhy.reasons import Service
from sendwhy.settings import KafkaSettings
from sendwhy.stage import consumer_group
from sendwhy.topics import Topic

READ_SECONDS = 15.0
ASK_SECONDS = 10.0
SAMPLES_MAX = 24 * 60 * 4

# Every group that a service of ours may be in, by its name.
GROUPS: Mapping[str, tuple[Service, Topic]] = {
    consumer_group(service, topic): (service, topic) for service in Service for topic in Topic
}

log = structlog.get_logger("sendwhy")


@dataclass(slots=True)
class Ends:
    """Where a partition ended, and when we looked; one sample for each new end, the oldest first."""

    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def note(self, now: float, end: int) -> None:
        if self.samples and self.samples[-1][1] == end:
            return
        self.samples.append((now, end))

    def age(self, now: float, committed: int) -> float:
        """For how long the first uncommitted record has waited at least; 0 without one."""
        passed = next((at for at, end in self.samples if end > committed), None)
        return 0.0 if passed is None else now - passed


class Span(NamedTuple):
    """What Kafka has of a partition."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What Kafka told of one group: committed offsets by partition, and how many members it has."""

    group: str
    committed: Mapping[int, int]
    members: int


@dataclass(frozen=True, slots=True)
class Behind:
    records: int
    seconds: float


def behind(reading: Reading, spans: Mapping[int, Span], seen: Mapping[int, Ends], now: float) -> Behind:
    """A group that committed nothing in a partition starts at its beginning, and so does one whose place Kafka has
    deleted by now. A commit may be newer than the end."""
    places = {number: max(reading.committed.get(number, 0), span.begin) for number, span in spans.items()}
    waiting = {number: max(0, span.end - places[number]) for number, span in spans.items()}
    ages = [seen[number].age(now, places[number]) for number, count in waiting.items() if count]
    return Behind(sum(waiting.values()), max(ages, default=0.0))


class GroupLag:
    def __init__(self, settings: KafkaSettings, metrics: Metrics) -> None:
        self._options = connection_options(settings)
        self._metrics = metrics
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        # Which broker coordinates a group, as long as all goes well.
        self._coordinators: dict[str, int] = {}
        self._seen: dict[tuple[Topic, int], Ends] = {}

    async def close(self) -> None:
        admin, consumer = self._admin, self._consumer
        self._admin = self._consumer = None
        self._coordinators.clear()
        if admin is not None:
            await let_go(admin.close())
        if consumer is not None:
            await let_go(consumer.stop())

    async def read(self) -> None:
        """Ask for all groups and set the gauges; what fails leaves them, and their time, as they were."""
        try:
            async with asyncio.timeout(2 * ASK_SECONDS):
                readings = await self._readings()
                spans = await self._spans({GROUPS[reading.group][1] for reading in readings})
        except Exception as error:  # noqa: BLE001 - whatever it is, pages and projection don't end for a gauge
            log.warning("the groups' lag is not known", error=describe(error))
            await self.close()
            return
        self._tell(readings, spans)

    def _tell(self, readings: Iterable[Reading], spans: Mapping[Topic, Mapping[int, Span]]) -> None:
        now = time.monotonic()
        for topic, partitions in spans.items():
            for number, span in partitions.items():
                self._seen.setdefault((topic, number), Ends()).note(now, span.end)
        found = []
        for reading in readings:
            _, topic = GROUPS[reading.group]
            seen = {number: self._seen[topic, number] for number in spans[topic]}
            found.append((reading, {"group": reading.group, "topic": topic.value}, spans[topic], seen))
        measured = [(labels, behind(reading, at, seen, now)) for reading, labels, at, seen in found]
        self._metrics.replace(Metric.GROUP_LAG, [(labels, float(one.records)) for labels, one in measured])
        self._metrics.replace(Metric.GROUP_LAG_SECONDS, [(labels, one.seconds) for labels, one in measured])
        self._metrics.replace(Metric.GROUP_MEMBERS, [(labels, float(one.members)) for one, labels, _, _ in found])
        self._metrics.set(Metric.GROUP_LAG_READ, time.time())

    async def _readings(self) -> list[Reading]:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**self._options)
            await self._admin.start()
        admin = self._admin
        groups = sorted(name for name, *_ in await admin.list_consumer_groups() if name in GROUPS)
        await self._find_coordinators(admin, [group for group in groups if group not in self._coordinators])
        return list(await asyncio.gather(*(self._reading(admin, group) for group in groups)))

    async def _find_coordinators(self, admin: AIOKafkaAdminClient, groups: Sequence[str]) -> None:
        found = await asyncio.gather(*(admin.find_coordinator(group) for group in groups))
        self._coordinators |= dict(zip(groups, found, strict=True))

    async def _reading(self, admin: AIOKafkaAdminClient, group: str) -> Reading:
        coordinator = self._coordinators[group]
        offsets = await admin.list_consumer_group_offsets(group, coordinator)
        # One group at a time: of an answer about several aiokafka reads the second one from a wrong place.
        [described] = await admin.describe_consumer_groups([group], coordinator)
        [(code, _group, _state, _kind, _protocol, members, *_)] = described.groups
        if code:
            # Asked for offsets, a broker that no longer coordinates the group says that nothing was committed.
            raise for_code(code)(group)
        committed = {place.partition: one.offset for place, one in offsets.items() if place.topic == GROUPS[group][1]}
        return Reading(group, committed, len(members))

    async def _spans(self, topics: Iterable[Topic]) -> dict[Topic, dict[int, Span]]:
        if self._consumer is None:
            # In no group: it only asks where partitions begin and end.
            self._consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False)
            await self._consumer.start()
        consumer = self._consumer
        assert self._admin is not None
        told = await self._admin.describe_topics([topic.value for topic in topics])
        places = [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in told
            for partition in topic["partitions"]
        ]
        begins, ends = await asyncio.gather(consumer.beginning_offsets(places), consumer.end_offsets(places))
        spans: dict[Topic, dict[int, Span]] = {topic: {} for topic in topics}
        for place, end in ends.items():
            spans[Topic(place.topic)][place.partition] = Span(begins[place], end)
        return spans
