"""How far each consumer group is, asked of Kafka itself."""

import asyncio
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from history import Lag

START_SECONDS = 60.0
# The one broker, which is every group's coordinator: asking for that would double the requests.
BROKER = 1
OURS = "sendwhy-"


class Groups:
    """Keeps its connections: a busy machine needs a minute to make them and ask all."""

    def __init__(self, bootstrap: Callable[[], str]) -> None:
        self._bootstrap = bootstrap
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def lags(self) -> list[Lag]:
        """Of every partition of what the groups read. Raises KafkaError while Kafka is away."""
        try:
            return await self._ask(*await self._opened())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        ends = [one.close() for one in (self._admin,) if one] + [one.stop() for one in (self._consumer,) if one]
        self._admin = self._consumer = None
        await asyncio.gather(*ends, return_exceptions=True)

    async def _opened(self) -> tuple[AIOKafkaAdminClient, AIOKafkaConsumer]:
        if self._admin is None or self._consumer is None:
            where = self._bootstrap()
            self._admin = AIOKafkaAdminClient(bootstrap_servers=where, request_timeout_ms=60_000)
            self._consumer = AIOKafkaConsumer(bootstrap_servers=where)
            await asyncio.wait_for(asyncio.gather(self._admin.start(), self._consumer.start()), START_SECONDS)
        return self._admin, self._consumer

    @staticmethod
    async def _ask(admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> list[Lag]:
        groups = sorted(name for name, _ in await admin.list_consumer_groups() if name.startswith(OURS))
        asking = (admin.list_consumer_group_offsets(group, group_coordinator_id=BROKER) for group in groups)
        committed = await asyncio.gather(*asking)
        # Ends after commits: so none lies beyond its end.
        places = await places_of(consumer, *sorted({_topic_of(group) for group in groups}))
        begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        return [
            Lag(
                group=group,
                topic=place.topic,
                partition=place.partition,
                committed=known[place].offset if place in known and known[place].offset >= 0 else None,
                begin=begins[place],
                end=ends[place],
            )
            for group, known in zip(groups, committed, strict=True)
            for place in places
            if place.topic == _topic_of(group)
        ]


def _topic_of(group: str) -> str:
    """A group is named `sendwhy-<service>.<topic>`."""
    return group.partition(".")[2]


async def places_of(consumer: AIOKafkaConsumer, *topics: str) -> list[TopicPartition]:
    cluster = await consumer._client.fetch_all_metadata()
    return [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(cluster.partitions_for_topic(topic) or ())
    ]
