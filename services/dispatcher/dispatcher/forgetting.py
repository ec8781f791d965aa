"""Which messages the dispatcher forgets, and when. Until then a row makes every repeat of its send.funded harmless."""

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
