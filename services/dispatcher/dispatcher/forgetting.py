"""Which messages and cancels the dispatcher forgets, and when. Until then a message's row makes every repeat of its
send.funded harmless, and a cancel's takes out the request that comes after it."""

from datetime import datetime, timedelta

from sendwhy.postgres import PRUNE_AT_ONCE, Connection, delete_in_steps

# Longer than Kafka can give the request again (15 days), or Meta tell of a message that it took (30 days). As consent
# and billing keep their decisions.
KEEP_MESSAGES = timedelta(days=45)

# Of those that wait, are in flight or whose outcome is unknown, none.
_PRUNE_MESSAGES = """
delete from message where (workspace_id, message_id) in (
    select workspace_id, message_id from message
    where greatest(expires_at, queued_at) < $1 and state in ('accepted', 'rejected', 'recalled')
    order by greatest(expires_at, queued_at) limit $2
    for update skip locked
)
"""


async def prune_messages(connection: Connection, now: datetime, *, at_once: int = PRUNE_AT_ONCE) -> int:
    """Forget what nobody can ask for or tell of any more; returns how many messages.

    One whose request came all the same would be rejected as expired: nothing is sent at or after `expires_at`. It
    doesn't come: billing has its `reserve` in the ledger for good, and puts a second request aside.
    """
    return await delete_in_steps(connection, _PRUNE_MESSAGES, now - KEEP_MESSAGES, at_once=at_once)


# A cancel may name a message that waits for weeks, or is out and comes back to wait: it stays as long as that is known.
_PRUNE_CANCELLATIONS = """
delete from cancellation where (workspace_id, message_id) in (
    select c.workspace_id, c.message_id from cancellation c
    where c.at < $1
      and not exists (select from message m where m.workspace_id = c.workspace_id and m.message_id = c.message_id)
    order by c.at limit $2
    for update skip locked
)
"""


async def prune_cancellations(connection: Connection, now: datetime, *, at_once: int = PRUNE_AT_ONCE) -> int:
    """Forget cancels whose request can't come any more, as long after them as messages are kept after their end."""
    return await delete_in_steps(connection, _PRUNE_CANCELLATIONS, now - KEEP_MESSAGES, at_once=at_once)
