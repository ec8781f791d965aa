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


async def test_groups_that_have_committed_are_told_of(kafka_bootstrap: str) -> None:
    settings, metrics = KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap), Metrics(Service.MESSAGE_LOG)
    await create_topics(settings)
    # These read no such topic, so nobody else commits there.
    place = TopicPartition(Topic.SEND_HELD, 0)
    groups = [consumer_group(service, Topic.SEND_HELD) for service in (Service.BILLING, Service.CONSENT)]
    for group in groups:
        async with AIOKafkaConsumer(
            bootstrap_servers=kafka_bootstrap, group_id=group, enable_auto_commit=False
        ) as consumer:
            consumer.assign([place])
            [end] = (await consumer.end_offsets([place])).values()
            await consumer.commit({place: end})
    lag = GroupLag(settings, metrics)
    await lag.read()
    # By now it knows who coordinates them.
    await lag.read()
    await lag.close()
    for group in groups:
        labels = {"group": group, "topic": Topic.SEND_HELD.value}
        assert metrics.registry.get_sample_value(Metric.GROUP_LAG, labels) is not None
        assert metrics.registry.get_sample_value(Metric.GROUP_MEMBERS, labels) == 0
    assert metrics.registry.get_sample_value(Metric.GROUP_LAG_READ)
