"""Shopify's repeats: the same X-Shopify-Event-Id, which the signature doesn't cover, so that it may only hide what the
same shop has told already."""

from collections.abc import Sequence
from datetime import datetime

from sendwhy.postgres import Connection
from sendwhy.topics import TOPICS, Topic

from webhook_ingest.elements import Delivery

PRUNE_LIMIT = 10_000
_ADD = """
insert into shopify_event (workspace_id, topic, event_id, kafka_partition, kafka_offset, received_at)
select distinct on (1, 2, 3) *
from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[])
     as told(workspace_id, topic, event_id, kafka_partition, kafka_offset, received_at)
order by 1, 2, 3, 4, 5
on conflict do nothing
"""
_FIRST = """
select workspace_id, topic, event_id, kafka_partition, kafka_offset
from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, topic, event_id)
join shopify_event using (workspace_id, topic, event_id)
"""
_PRUNE = """
delete from shopify_event where (workspace_id, topic, event_id) in (
    select workspace_id, topic, event_id from shopify_event where received_at < $1 limit $2
)
"""


async def without_repeats(connection: Connection, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Leaves out what another record of webhook.received told before; that record itself, read again, stays."""
    told = [delivery for delivery in deliveries if delivery.event_id]
    if not told:
        return list(deliveries)
    names = (
        [delivery.signer for delivery in told],
        [delivery.topic for delivery in told],
        [delivery.event_id for delivery in told],
    )
    await connection.execute(
        _ADD,
        *names,
        [delivery.partition for delivery in told],
        [delivery.offset for delivery in told],
        [delivery.at for delivery in told],
    )
    first = {
        (row["workspace_id"], row["topic"], row["event_id"]): (row["kafka_partition"], row["kafka_offset"])
        for row in await connection.fetch(_FIRST, *names)
    }
    return [
        delivery
        for delivery in deliveries
        if not delivery.event_id
        or first[delivery.signer, delivery.topic, delivery.event_id] == (delivery.partition, delivery.offset)
    ]


async def prune(connection: Connection, now: datetime) -> None:
    """Forget what Kafka no longer has; one bounded step."""
    await connection.execute(_PRUNE, now - TOPICS[Topic.WEBHOOK_RECEIVED].gone_after, PRUNE_LIMIT)
