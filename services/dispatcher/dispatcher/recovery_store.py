"""The SQL of a restored backup: what is parked, and what is settled by what was told since. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sendwhy.postgres import Connection

# A driver's clock may be ahead of ours.
SURELY_LATER = timedelta(minutes=1)

# Nobody has looked yet at what stands in the queue as it came: its not_before is its send_at.
_PARK = """
update message set state = 'unknown', in_flight_at = clock_timestamp()
where state in ('waiting', 'in_flight')
  and not (state = 'waiting' and attempts = 0 and waiting_since is null and not_before > $1)
"""


async def park_all(connection: Connection, funded_below: Mapping[int, int], now: datetime) -> int:
    """After a restored backup: nobody knows what was sent since. What waits, and every send.funded below these
    offsets (by partition), is parked as unknown and never sent by itself, but for what is to be sent only later than
    now. Returns how many waited."""
    partitions = sorted(funded_below)
    await connection.execute(
        "insert into parked_below (partition, next_offset) select * from unnest($1::int[], $2::bigint[])"
        " on conflict (partition) do update"
        " set next_offset = greatest(parked_below.next_offset, excluded.next_offset)",
        partitions,
        [funded_below[partition] for partition in partitions],
    )
    parked: str = await connection.execute(_PARK, now + SURELY_LATER)
    return int(parked.rpartition(" ")[2])


async def parked_below(connection: Connection) -> dict[int, int]:
    rows = await connection.fetch("select partition, next_offset from parked_below")
    return {row["partition"]: row["next_offset"] for row in rows}


_SETTLE = """
update message m set state = f.state, outcome = f.outcome, wamid = f.wamid
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
  as f(workspace_id, message_id, state, outcome, wamid)
where m.workspace_id = f.workspace_id and m.message_id = f.message_id and m.state in ('unknown', 'waiting')
"""


async def settle_parked(connection: Connection, rows: Sequence[tuple[str, str, str, str, str | None]]) -> int:
    """Give messages the end (workspace, message, state, outcome, wamid) that was told of them before the backup was
    restored; returns how many it was news for. Nothing is told again."""
    done: str = await connection.execute(_SETTLE, *([row[i] for row in rows] for i in range(5)))
    return int(done.rpartition(" ")[2])


async def count_unknown(connection: Connection) -> int:
    count: int = await connection.fetchval("select count(*) from message where state = 'unknown'")
    return count


_CONTINUE_SENDERS = """
update sender s set version = t.version + 1, sync_wanted_at = $4,
    paused_at = case when t.paused then coalesce(s.paused_at, $4) end
from unnest($1::text[], $2::bigint[], $3::boolean[]) as t(sender_id, version, paused)
where s.sender_id = t.sender_id and s.version < t.version
returning s.sender_id
"""
_CONTINUE_TEMPLATES = """
update template t set version = n.version
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as n(waba_id, name, language, version)
where t.waba_id = n.waba_id and t.name = n.name and t.language = n.language and t.version < n.version
"""


async def continue_senders(connection: Connection, told: Iterable[tuple[str, int, bool]], now: datetime) -> list[str]:
    """Let versions go on above those told (sender, version, whether paused); returns the senders that were older."""
    rows = sorted(told)
    found = await connection.fetch(_CONTINUE_SENDERS, *([row[i] for row in rows] for i in range(3)), now)
    return [row["sender_id"] for row in found]


async def continue_templates(connection: Connection, told: Iterable[tuple[str, str, str, int]]) -> None:
    rows = sorted(told)
    await connection.execute(_CONTINUE_TEMPLATES, *([row[i] for row in rows] for i in range(4)))
