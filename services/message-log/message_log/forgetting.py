"""When a message's own row goes: with its events, or later where something may still be told of it."""

from datetime import UTC, datetime, timedelta

from sendwhy.erasure import KEEP_ERASED
from sendwhy.events import MAX_HORIZON
from sendwhy.postgres import PRUNE_AT_ONCE, Connection, delete_in_steps

# 45 days after the latest `expires_at` that it may have. Kafka gives nothing again for so long (15 days), and Meta's
# last receipt, or the verdict that none came, is told within 30 days of the call.
KEEP_AT_LEAST = MAX_HORIZON + timedelta(days=45)
# Within one pass; the next one goes on.
STEPS_AT_MOST = 20

# One that is still under way, or whose receipt is awaited ("sent" too), stays however old it is. The mark of an erasure
# holds for what comes later, and stays as long as those of messages that never came. What is locked is being told of.
_PRUNE_MESSAGES = """
delete from message where ctid = any(array(
    select ctid from message
    where updated_at < $1 and outcome in ('delivered', 'read', 'failed') and (erased_at is null or erased_at < $2)
    order by updated_at limit $3
    for update skip locked
))
"""


def keep_since(now: datetime, retention_days: int) -> datetime:
    """Messages of which nothing was told since then may go. Their events went before, by whole days (store.py): what
    somebody may still send again has its repeats known."""
    kept = now - max(timedelta(days=retention_days), KEEP_AT_LEAST)
    return kept.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


async def prune_messages(
    connection: Connection, now: datetime, retention_days: int, *, at_once: int = PRUNE_AT_ONCE
) -> int:
    """Forget messages that are over, in steps; returns how many. The counts by hour follow (0012_counts.sql)."""
    before = keep_since(now, retention_days)
    return await delete_in_steps(
        connection, _PRUNE_MESSAGES, before, now - KEEP_ERASED, at_once=at_once, at_most=STEPS_AT_MOST
    )
