"""What the log itself knows for the checks of a workspace."""

from sendwhy.postgres import Connection

from message_log.dead_letters import ACTION
from message_log.workspace_checks import DEAD_LETTERS_COUNTED, StoredFacts

UNHEARD_COUNTED = 10_000

_LAST_WEBHOOK = """
select received_at from webhook_part where workspace_id = $1 order by received_at desc limit 1
"""
# Of the latest only, by the index of statuses: what Meta took and of which something was heard, too.
_LAST_ACCEPTED = """
select max(occurred_at) from event
where workspace_id = $1 and kind = 'accepted' and message_id = any(
    select message_id from message where workspace_id = $1 and outcome in ('accepted', 'sent', 'delivered', 'read')
    order by at desc limit 50)
"""
_UNHEARD = """
select message_id, at, count(*) over () as number from (
    select message_id, at from message where workspace_id = $1 and outcome = 'accepted' order by at limit $2) waiting
order by at limit 1
"""
_DEAD_LETTERS = """
select count(*) as number, max(occurred_at) as latest from (
    select e.occurred_at from event e
    where e.kind = 'dead_letter' and (e.workspace_id = $1 or $2 and e.workspace_id is null)
      and not exists (select from audit a where a.action = $3 and a.target = e.event_id::text and a.result = 'done')
    order by e.occurred_at desc limit $4) waiting
"""


async def stored_facts(connection: Connection, workspace: str, *, sees_everything: bool) -> StoredFacts:
    """`sees_everything`: dead letters that belong to nobody count too."""
    unheard = await connection.fetchrow(_UNHEARD, workspace, UNHEARD_COUNTED)
    letters = await connection.fetchrow(_DEAD_LETTERS, workspace, sees_everything, ACTION, DEAD_LETTERS_COUNTED)
    assert letters is not None
    return StoredFacts(
        webhook_at=await connection.fetchval(_LAST_WEBHOOK, workspace),
        accepted_at=await connection.fetchval(_LAST_ACCEPTED, workspace),
        unheard=None if unheard is None else (unheard["message_id"], unheard["at"]),
        unheard_count=0 if unheard is None else unheard["number"],
        dead_letters=letters["number"],
        dead_letter_at=letters["latest"],
    )
