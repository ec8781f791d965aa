"""The lag of all groups, asked of a real Kafka."""

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from message_log.group_lag import GroupLag
from sendwhy.kafka import create_topics
from sendwhy.metrics import Metric, Metrics
from sendwhy.reasons import Service
from sendwhy.settings import KafkaSettings
from sendwhy.stage import consumer_group
from sendwhy.topics import Topic

pytestmark = pytest.mark.kafka


async def test_a_group_that_has_committed_is_told_of(kafka_bootstrap: str) -> None:
    settings, metrics = KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap), Metrics(Service.MESSAGE_LOG)
    await create_topics(settings)
    # Billing reads no such topic, so nobody else commits there.
    group, place = consumer_group(Service.BILLING, Topic.SEND_HELD), TopicPartition(Topic.SEND_HELD, 0)
    async with AIOKafkaConsumer(
        bootstrap_servers=kafka_bootstrap, group_id=group, enable_auto_commit=False
    ) as consumer:
        consumer.assign([place])
        [end] = (await consumer.end_offsets([place])).values()
        await consumer.commit({place: end})
    lag = GroupLag(settings, metrics)
    await lag.read()
    await lag.close()
    labels = {"group": group, "topic": Topic.SEND_HELD.value}
    assert metrics.registry.get_sample_value(Metric.GROUP_LAG, labels) is not None
    assert metrics.registry.get_sample_value(Metric.GROUP_MEMBERS, labels) == 0
    assert metrics.registry.get_sample_value(Metric.GROUP_LAG_READ)
