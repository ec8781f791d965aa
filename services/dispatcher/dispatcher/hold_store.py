"""The SQL of holds. As in store.py. Whoever changes one has locked its workspace's senders (`store.lock_workspace`)."""

from collections.abc import Collection
from datetime import datetime

from asyncpg import Record as Row
from sendwhy.events import Reason
from sendwhy.postgres import Connection

from dispatcher.answers import HoldScope
from dispatcher.decide import Stops
from dispatcher.holds import Hold
from dispatcher.store import CONCERNS

_COLUMNS = (
    "h.workspace_id, h.scope, h.scope_id, h.cause, h.said_by, h.since, h.until, h.probe_at, h.strikes, h.lifted_at,"
    " h.stops, h.said_at, h.replies_from"
)


def _hold(row: Row) -> Hold:
    return Hold(
        workspace_id=row["workspace_id"],
        scope=HoldScope(row["scope"]),
        scope_id=row["scope_id"],
        cause=Reason.model_validate_json(row["cause"]),
        said_by=row["said_by"],
        since=row["since"],
        until=row["until"],
        probe_at=row["probe_at"],
        strikes=row["strikes"],
        lifted_at=row["lifted_at"],
        stops=Stops(row["stops"]),
        said_at=row["said_at"],
        replies_from=row["replies_from"],
    )


async def read(connection: Connection, workspace_id: str, scope: HoldScope, scope_id: str) -> Hold | None:
    row = await connection.fetchrow(
        f"select {_COLUMNS} from hold h where workspace_id = $1 and scope = $2 and scope_id = $3",  # noqa: S608
        workspace_id,
        scope.value,
        scope_id,
    )
    return None if row is None else _hold(row)


async def save(connection: Connection, hold: Hold) -> None:
    await connection.execute(
        "insert into hold (workspace_id, scope, scope_id, cause, said_by, since, until, probe_at, strikes, lifted_at,"
        " stops, said_at, replies_from) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
        " on conflict (workspace_id, scope, scope_id) do update set cause = excluded.cause,"
        " said_by = excluded.said_by, since = excluded.since, until = excluded.until, probe_at = excluded.probe_at,"
        " strikes = excluded.strikes, lifted_at = excluded.lifted_at, probing_until = null,"
        " stops = excluded.stops, said_at = excluded.said_at, replies_from = excluded.replies_from",
        hold.workspace_id,
        hold.scope.value,
        hold.scope_id,
        hold.cause.model_dump_json().encode(),
        hold.said_by,
        hold.since,
        hold.until,
        hold.probe_at,
        hold.strikes,
        hold.lifted_at,
        hold.stops.value,
        hold.said_at,
        hold.replies_from,
    )


async def of_sender(connection: Connection, sender_id: str, scopes: Collection[HoldScope]) -> list[Hold]:
    """What stands and concerns this sender."""
    rows = await connection.fetch(
        f"select {_COLUMNS} from hold h join sender s on {CONCERNS}"  # noqa: S608
        " where s.sender_id = $1 and h.scope = any($2::text[]) order by h.scope, h.scope_id",
        sender_id,
        [scope.value for scope in scopes],
    )
    return [_hold(row) for row in rows]


async def of_account(connection: Connection, waba_id: str) -> list[Hold]:
    """What stands of this account, in all workspaces, by Meta's answers and by its events."""
    rows = await connection.fetch(
        f"select {_COLUMNS} from hold h where scope = any($2::text[]) and scope_id = $1 and lifted_at is null"  # noqa: S608
        " order by workspace_id, scope",
        waba_id,
        [scope.value for scope in HoldScope if scope.held is HoldScope.ACCOUNT],
    )
    return [_hold(row) for row in rows]


async def note_lift(connection: Connection, waba_id: str, at: datetime) -> None:
    await connection.execute(
        "insert into account_lift (waba_id, lifted_at) values ($1, $2) on conflict (waba_id) do update"
        " set lifted_at = greatest(account_lift.lifted_at, excluded.lifted_at)",
        waba_id,
        at,
    )


async def account_lifted_at(connection: Connection, waba_id: str) -> datetime | None:
    """When Meta last said that the account may send again, by Meta's time."""
    at: datetime | None = await connection.fetchval("select lifted_at from account_lift where waba_id = $1", waba_id)
    return at


# Nobody waits here for another driver's claim: what is locked is being probed.
_LOCK_HOLDS_OF = f"""
select h.stops = 'all' or coalesce(h.replies_from > $2, false) as stops_all,
       coalesce(h.probe_at <= $2 and coalesce(h.probing_until <= $2, true), false) as may_be_probed
from hold h join sender s on {CONCERNS} where s.sender_id = $1
for update of h skip locked
"""  # noqa: S608 - a constant
_COUNT_HOLDS_OF = f"select count(*) from hold h join sender s on {CONCERNS} where s.sender_id = $1"  # noqa: S608
_SET_PROBING = f"""
update hold h set probing_until = $2 from sender s where {CONCERNS} and s.sender_id = $1
"""  # noqa: S608 - a constant


async def take_probe(connection: Connection, sender_id: str, now: datetime, until: datetime) -> bool:
    """Whether this sender may try with one message whether its holds still stand: over all senders that a hold
    concerns, one at a time, until the answer is there or `until` has passed."""
    rows = await connection.fetch(_LOCK_HOLDS_OF, sender_id, now)
    if len(rows) != await connection.fetchval(_COUNT_HOLDS_OF, sender_id):
        return False
    # What stops only a part isn't waited for: a reply may try what stops everything.
    stopping = [row for row in rows if row["stops_all"]] or rows
    if not all(row["may_be_probed"] for row in stopping):
        return False
    await connection.execute(_SET_PROBING, sender_id, until)
    return True


async def give_back_probe(connection: Connection, sender_id: str) -> None:
    """No message went after all."""
    await connection.execute(_SET_PROBING, sender_id, None)


async def senders_held(connection: Connection, *, said_by: str) -> frozenset[str]:
    """The senders that are held by somebody's word."""
    rows = await connection.fetch(
        f"select distinct s.sender_id from hold h join sender s on {CONCERNS} where h.said_by = $1",  # noqa: S608
        said_by,
    )
    return frozenset(row["sender_id"] for row in rows)


_WITH_CALLS = f"""
select {_COLUMNS}, max(m.in_flight_at) as called_at
from unnest($2::text[]) as told(message_id)
join message m on m.workspace_id = $1 and m.message_id = told.message_id and m.in_flight_at is not null
join sender s on s.sender_id = m.sender_id
join hold h on {CONCERNS} and h.said_by = $3
group by h.workspace_id, h.scope, h.scope_id
"""  # noqa: S608 - a constant


async def with_calls(
    connection: Connection, workspace_id: str, message_ids: Collection[str], *, said_by: str
) -> list[tuple[Hold, datetime]]:
    """What stands, by somebody's word, of these messages' senders, with when the last of them was called."""
    rows = await connection.fetch(_WITH_CALLS, workspace_id, list(message_ids), said_by)
    return [(_hold(row), row["called_at"]) for row in rows]


async def standing(connection: Connection) -> list[Hold]:
    """Every hold that concerns anybody."""
    rows = await connection.fetch(
        f"select {_COLUMNS} from hold h where exists (select from sender s where {CONCERNS})"  # noqa: S608
    )
    return [_hold(row) for row in rows]
