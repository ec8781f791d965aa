"""Failed messages and what they asked for: which match a filter, whose repeats they are, and what was sent again."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from sendwhy.events import SendRequested
from sendwhy.postgres import Connection

from message_log.queries import Filters, Where, source_of
from message_log.resend import Failed, Member
from message_log.view import read_json

PLAN_MAX = 10_000
# More links than any chain of repeats that people or programs make.
_DEPTH_MAX = 32

_MATCHING = """
select message_id, count(*) over ()::int as matched from {source} m where {where}
order by m.at desc, m.message_id desc limit {limit}
"""


async def matching(connection: Connection, workspace: str, filters: Filters) -> tuple[list[str], int]:
    """The newest PLAN_MAX failed messages of a list, the oldest of them first; and how many there are in all."""
    where = Where(workspace, filters)
    statement = _MATCHING.format(source=source_of(filters), where=where, limit=where.add(PLAN_MAX))
    rows = await connection.fetch(statement, *where.values)
    return [row["message_id"] for row in reversed(rows)], rows[0]["matched"] if rows else 0


_FAILED = """
select message_id, reason, outcome, erased_at is not null as is_erased from message
where workspace_id = $1 and message_id = any($2::text[])
"""


async def failed(connection: Connection, workspace: str, ids: Sequence[str], *, is_only: bool) -> dict[str, Failed]:
    rows = await connection.fetch(_FAILED, workspace, list(ids))
    return {
        row["message_id"]: Failed(row["message_id"], row["reason"], row["is_erased"], row["outcome"], is_only)
        for row in rows
    }


_ROOTS = """
with recursive up(asked, message_id, depth) as (
    select one, one, 0 from unnest($2::text[]) as one
    union
    select up.asked, r.resend_of, up.depth + 1 from up
    join repeat r on r.workspace_id = $1 and r.message_id = up.message_id
    where up.depth < $3
)
select distinct on (asked) asked, message_id as root from up order by asked, depth desc
"""
_MEMBERS = """
with recursive down(root, message_id, depth) as (
    select one, one, 0 from unnest($2::text[]) as one
    union
    select down.root, r.message_id, down.depth + 1 from down
    join repeat r on r.workspace_id = $1 and r.resend_of = down.message_id
    where down.depth < $3
)
select distinct down.root, down.message_id, coalesce(m.outcome, case when s.message_id is not null then 'open' end)
    as outcome
from down
left join message m on m.workspace_id = $1 and m.message_id = down.message_id and m.at is not null
left join resend s on s.workspace_id = $1 and s.message_id = down.message_id
"""


async def families(connection: Connection, workspace: str, ids: Sequence[str]) -> tuple[dict[str, str], list[Member]]:
    """The first message of each one's chain of repeats, and all messages of those chains."""
    rows = await connection.fetch(_ROOTS, workspace, list(ids), _DEPTH_MAX)
    roots = {row["asked"]: row["root"] for row in rows}
    found = await connection.fetch(_MEMBERS, workspace, sorted(set(roots.values())), _DEPTH_MAX * 2)
    return roots, [Member(row["root"], row["message_id"], row["outcome"]) for row in found]


_BODIES = """
select message_id, kind, body from event
where workspace_id = $1 and message_id = any($2::text[]) and kind in ('requested', 'consented', 'funded')
  and body is not null
order by occurred_at
"""


async def requests_of(connection: Connection, workspace: str, ids: Sequence[str]) -> dict[str, SendRequested]:
    """What each message asked for, as far as that is kept: as consent took it, else as it came last."""
    rows = await connection.fetch(_BODIES, workspace, list(ids))
    found: dict[str, SendRequested] = {}
    # What consent let pass comes last, and stands.
    for row in sorted(rows, key=lambda row: row["kind"] != "requested"):
        request = _request_in(row["kind"], row["body"])
        if request is not None:
            found[row["message_id"]] = request
    return found


def _request_in(kind: str, body: bytes) -> SendRequested | None:
    told: Any = read_json(body)
    if kind != "requested":
        told = told.get("request") if isinstance(told, dict) else None
    try:
        return SendRequested.model_validate_json(to_json(told))
    except ValidationError:
        return None


_ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtextextended('send again/' || $1::text, 0))"
_ADD = """
insert into resend (workspace_id, message_id, resend_of, by_name)
select $1, n.message_id, n.resend_of, $4 from unnest($2::text[], $3::text[]) as n(message_id, resend_of)
on conflict do nothing
"""


async def one_at_a_time(connection: Connection, workspace: str) -> None:
    """Until the transaction ends nobody else sends messages of this workspace again."""
    await connection.execute(_ONE_AT_A_TIME, workspace)


async def note(connection: Connection, workspace: str, requests: Sequence[SendRequested], by_name: str) -> None:
    olds = [one.resend_of for one in requests]
    await connection.execute(_ADD, workspace, [one.message_id for one in requests], olds, by_name)


_REPEATED = "select distinct resend_of from repeat where workspace_id = $1 and resend_of = any($2::text[])"


async def sent_again(connection: Connection, workspace: str, message_ids: Sequence[str]) -> set[str]:
    """Those of some messages that others repeat."""
    return {row["resend_of"] for row in await connection.fetch(_REPEATED, workspace, list(message_ids))}


_LINKS = """
select r.message_id, r.resend_of, s.by_name, s.at from repeat r
left join resend s on s.workspace_id = r.workspace_id and s.message_id = r.message_id
where r.workspace_id = $1 and (r.resend_of = $2 or r.message_id = $2)
order by s.at nulls last, r.message_id limit 50
"""


async def links_of(
    connection: Connection, workspace: str, message_id: str
) -> tuple[str | None, list[tuple[str, str | None, datetime | None]]]:
    """Which message this one repeats; and which ones repeat it, by whom and when where that was done here."""
    rows = await connection.fetch(_LINKS, workspace, message_id)
    original = next((row["resend_of"] for row in rows if row["message_id"] == message_id), None)
    repeats = [(row["message_id"], row["by_name"], row["at"]) for row in rows if row["resend_of"] == message_id]
    return original, repeats
