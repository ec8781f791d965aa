"""Campaigns and automations as message-log knows them: by the origin of their messages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncpg import Record
from sendwhy.events import OriginKind
from sendwhy.postgres import Connection

from message_log.campaign_story import PACE_OVER, Bar, bars_of, bin_origin, width_of
from message_log.decide import Outcome
from message_log.queries import CELLS, STATUSES, from_cursor, to_cursor
from message_log.store import state_of
from message_log.view import cause_of


@dataclass(frozen=True, slots=True)
class Group:
    """A campaign or an automation: its messages by status, from its first request to its last. `name`: as its last
    request has it. `open`: what has not left yet; what Meta accepted has, though it is shown as sending."""

    id: str
    name: str | None
    first_at: datetime
    last_at: datetime
    by_status: dict[str, int]
    open: int

    @property
    def total(self) -> int:
        return sum(self.by_status.values())

    @property
    def done(self) -> int:
        return self.total - self.open


# The ids one by one along the index: as many steps as there are campaigns, however many messages they have.
_IDS = """
with recursive seen as (
    (select origin_id, at from message where workspace_id = $1 and origin_kind = $2 and origin_id is not null
     order by origin_id, at desc limit 1)
    union all
    select n.origin_id, n.at from seen cross join lateral (
        select m.origin_id, m.at from message m
        where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id > seen.origin_id
        order by m.origin_id, m.at desc limit 1) n
)
select origin_id, at from seen
where $3::timestamptz is null or (at, origin_id) < ($3, $4)
order by at desc, origin_id desc limit $5
"""
_LAST = """
select asked.id, last.state from unnest($3::text[]) as asked(id)
cross join lateral (
    select m.state from message m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = asked.id
    order by m.at desc limit 1) last
"""
# What became of them from the cells; the ends, and the name, from the index.
_COUNTS = f"""
with ends as (
    select asked.id, first.at as first_at, last.at as last_at, last.state from unnest($3::text[]) as asked(id)
    cross join lateral (
        select m.at from message m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = asked.id
        order by m.at limit 1) first
    cross join lateral (
        select m.at, m.state from message m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = asked.id
        order by m.at desc limit 1) last
), counted as (
    select m.origin_id, m.outcome, sum(m.count)::bigint as count from {CELLS} m
    where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = any($3::text[])
      and m.at >= (select min(cell_hour(first_at)) from ends) and m.at <= (select max(last_at) from ends)
    group by 1, 2
)
select e.id, e.first_at, e.last_at, e.state, {
    ", ".join(
        f"coalesce(sum(c.count) filter (where c.outcome = '{outcome}'), 0)::bigint as {outcome}" for outcome in Outcome
    )
}
from ends e left join counted c on c.origin_id = e.id group by e.id, e.first_at, e.last_at, e.state
"""  # noqa: S608 - only names of ours
# What is held of what is open, as the view message_now judges a single message: here those that are alike are gathered
# first, since a running campaign has a million of them, and few senders, templates and causes.
_HELD = """
with alike as (
    select m.origin_id, m.node_id, m.sender_id, m.template,
           case when m.waiting_until is null or m.waiting_until > now() then m.waiting_cause end as cause,
           count(*) as count, min(m.waiting_since) as since, max(m.waiting_until) as until,
           bool_or(m.waiting_until is null) as open_end
    from message m
    where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = any($3::text[]) and m.outcome = 'open'
    group by 1, 2, 3, 4, 5
), holds as materialized (select * from hold_now where workspace_id = $1)
select a.origin_id, a.node_id, w.cause, sum(a.count)::bigint as count, min(w.since) as since, max(w.until) as until,
       bool_or(w.open_end) as open_end
from alike a cross join lateral (
    select * from (
        select a.cause, a.since, a.until, a.open_end where a.cause is not null
        union all
        select h.cause, h.since, h.until, h.until is null
        from holds h left join sender s on s.workspace_id = $1
            and case when a.sender_id is null then s.is_default else s.sender_id = a.sender_id end
        where case h.scope
                  when 'sender' then h.scope_id = coalesce(a.sender_id, s.sender_id)
                  when 'account' then h.scope_id in (s.waba_id, $1)
                  when 'campaign' then $2 = 'campaign' and h.scope_id = a.origin_id
                  when 'template' then position('/' || a.template || '/' in '/' || h.scope_id || '/') > 0
              end
    ) waits
    order by since desc limit 1
) w
group by a.origin_id, a.node_id, w.cause order by count desc, w.cause
"""


async def _held(connection: Connection, workspace: str, kind: OriginKind, ids: Sequence[str]) -> Sequence[Record]:
    """What is held: by group, node and cause."""
    rows: list[Record] = await connection.fetch(_HELD, workspace, kind, list(ids)) if ids else []
    return rows


@dataclass(frozen=True, slots=True)
class GroupPage:
    groups: Sequence[Group]
    next_cursor: str | None


async def list_groups(
    connection: Connection,
    workspace: str,
    kind: OriginKind,
    *,
    cursor: str | None = None,
    limit: int = 50,
    q: str | None = None,
) -> GroupPage:
    """Those with the latest request first; `q` is a part of the name or the id, in any case."""
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    rows = await connection.fetch(_IDS, workspace, kind, at, key, None if q else limit + 1)
    if q:
        rows = await _matching(connection, workspace, kind, rows, q)
    shown = rows[:limit]
    known = {group.id: group for group in await _groups(connection, workspace, kind, [row[0] for row in shown])}
    more = to_cursor(shown[-1]["at"], shown[-1]["origin_id"]) if len(rows) > limit else None
    return GroupPage([known[row["origin_id"]] for row in shown if row["origin_id"] in known], more)


async def _matching(
    connection: Connection, workspace: str, kind: OriginKind, rows: Sequence[Record], q: str
) -> list[Record]:
    """Names stand in the messages' folded states, which the database can't read."""
    ids = [row["origin_id"] for row in rows]
    last = await connection.fetch(_LAST, workspace, kind, ids)
    names = {row["id"]: _name_of(row["state"]) or "" for row in last}
    wanted = q.casefold()
    return [row for row in rows if wanted in f"{row['origin_id']}\n{names.get(row['origin_id'], '')}".casefold()]


def _name_of(state: bytes) -> str | None:
    name: str | None = (state_of(state).known("origin") or {}).get("name")
    return name


async def read_group(connection: Connection, workspace: str, kind: OriginKind, id: str) -> Group | None:
    if "\x00" in id:
        return None
    found = await _groups(connection, workspace, kind, [id])
    return found[0] if found else None


async def _groups(connection: Connection, workspace: str, kind: OriginKind, ids: Sequence[str]) -> list[Group]:
    if not ids:
        return []
    rows = await connection.fetch(_COUNTS, workspace, kind, list(ids))
    held: Counter[str] = Counter()
    for row in await _held(connection, workspace, kind, [row["id"] for row in rows if row["open"]]):
        held[row["origin_id"]] += row["count"]
    return [_group(row, held[row["id"]]) for row in rows]


def _group(row: Record, waiting: int) -> Group:
    counts = {"sending": row["open"] - waiting + row["accepted"], "waiting": waiting}
    counts |= {status: row[status] for status in STATUSES if status not in counts}
    return Group(row["id"], _name_of(row["state"]), row["first_at"], row["last_at"], counts, row["open"])


_LATELY = """
select count(*) from message m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = $3
  and m.outcome <> 'open' and coalesce(m.left_at, m.updated_at) > $4
"""


async def left_lately(connection: Connection, workspace: str, kind: OriginKind, id: str, now: datetime) -> int:
    """How many left within PACE_OVER before `now`."""
    count: int = await connection.fetchval(_LATELY, workspace, kind, id, now - PACE_OVER)
    return count


_SPAN = """
select min(coalesce(m.left_at, m.updated_at)) as first, max(coalesce(m.left_at, m.updated_at)) as last from message m
where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = $3 and m.outcome <> 'open'
"""
_OVER_TIME = """
select date_bin($4, coalesce(m.left_at, m.updated_at), $5) as since, m.outcome, count(*) as count from message m
where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = $3 and m.outcome <> 'open'
group by 1, 2
"""


async def over_time(
    connection: Connection, workspace: str, kind: OriginKind, id: str
) -> tuple[timedelta, Sequence[Bar]]:
    """What left when, by what it is now; the width of the bars."""
    span = await connection.fetchrow(_SPAN, workspace, kind, id)
    width = width_of(span["last"] - span["first"] if span is not None and span["first"] else timedelta())
    counts: dict[datetime, dict[str, int]] = {}
    for row in await connection.fetch(_OVER_TIME, workspace, kind, id, width, bin_origin()):
        status = "sending" if row["outcome"] == "accepted" else row["outcome"]
        counts.setdefault(row["since"], {})[status] = row["count"]
    return width, bars_of(counts, width)


_FAILURES = """
select m.reason, m.service, count(*) as count, max(m.at) as last_at,
       (max(array[to_char(m.at at time zone 'UTC', 'YYYYMMDDHH24MISSUS'), m.message_id]))[2] as example
from message m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = $3 and m.outcome = 'failed'
group by m.reason, m.service order by count(*) desc, m.reason
"""


async def failures_of(connection: Connection, workspace: str, kind: OriginKind, id: str) -> Sequence[Record]:
    """By reason and service, the most frequent first, each with its latest message."""
    rows: list[Record] = await connection.fetch(_FAILURES, workspace, kind, id)
    return rows


@dataclass(frozen=True, slots=True)
class Wait:
    """Messages held for a cause; `scheduled`: for the time that they asked for. `until` None: some of them until
    somebody repairs it."""

    cause: str
    count: int
    since: datetime
    until: datetime | None
    scheduled: bool = False


async def waits_of(connection: Connection, workspace: str, kind: OriginKind, id: str) -> Sequence[Wait]:
    """What is held, by its cause, the most frequent first."""
    by_cause: dict[str, list[Record]] = {}
    for row in await _held(connection, workspace, kind, [id]):
        by_cause.setdefault(row["cause"], []).append(row)
    waits = [
        Wait(
            cause_of(cause)[0],
            sum(row["count"] for row in rows),
            min(row["since"] for row in rows),
            None if any(row["open_end"] for row in rows) else max(row["until"] for row in rows),
            cause_of(cause)[1],
        )
        for cause, rows in by_cause.items()
    ]
    return sorted(waits, key=lambda wait: (-wait.count, wait.cause))


_LATEST_FAILED = """
select m.* from message_now m where m.workspace_id = $1 and m.origin_kind = $2 and m.origin_id = $3
  and m.outcome = 'failed' order by m.at desc, m.message_id desc limit $4
"""


async def latest_failed(
    connection: Connection, workspace: str, kind: OriginKind, id: str, limit: int
) -> Sequence[Record]:
    rows: list[Record] = await connection.fetch(_LATEST_FAILED, workspace, kind, id, limit)
    return rows


_NODES = """
select m.node_id, m.outcome, count(*) as count, min(min(m.at)) over (partition by m.node_id) as first_at
from message m where m.workspace_id = $1 and m.origin_kind = 'automation' and m.origin_id = $2
group by m.node_id, m.outcome order by first_at, m.node_id nulls last
"""


async def nodes_of(connection: Connection, workspace: str, automation: str) -> dict[str | None, dict[str, int]]:
    """Counts by node and status, the node that acted first before the others."""
    nodes: dict[str | None, dict[str, int]] = {}
    for row in await connection.fetch(_NODES, workspace, automation):
        counts = nodes.setdefault(row["node_id"], dict.fromkeys(STATUSES, 0))
        counts["sending" if row["outcome"] in ("open", "accepted") else row["outcome"]] += row["count"]
    for row in await _held(connection, workspace, OriginKind.AUTOMATION, [automation]):
        nodes[row["node_id"]]["waiting"] += row["count"]
        nodes[row["node_id"]]["sending"] -= row["count"]
    return nodes


# A person is a contact, or (where none is known) a number. Each stands where their latest message is: read along the
# index, so that a page costs what it shows.
_PEOPLE = """
select m.contact_id, m.phone, m.at, m.message_id from message m
where m.workspace_id = $1 and m.origin_kind = 'automation' and m.origin_id = $2
  and (m.at, m.message_id) < (coalesce($3::timestamptz, 'infinity'), coalesce($4, ''))
  and coalesce(m.contact_id, m.phone) is not null
  and not exists (
      select from message n
      where n.workspace_id = $1 and n.origin_kind = 'automation' and n.origin_id = $2
        and (n.contact_id = m.contact_id or m.contact_id is null and n.contact_id is null and n.phone = m.phone)
        and (n.at, n.message_id) > (m.at, m.message_id))
order by m.at desc, m.message_id desc limit $5
"""
_RUNS = """
select m.* from unnest($3::text[], $4::text[]) as asked(contact_id, phone) cross join lateral (
    select n.* from message_now n where n.workspace_id = $1 and n.origin_kind = 'automation' and n.origin_id = $2
      and (n.contact_id = asked.contact_id
           or asked.contact_id is null and n.contact_id is null and n.phone = asked.phone)
    order by n.at desc, n.message_id desc limit 20) m
"""


@dataclass(frozen=True, slots=True)
class Activity:
    """What an automation did for one person: their messages, the earliest first (of the last 20)."""

    rows: Sequence[Record]


async def people_of(
    connection: Connection, workspace: str, automation: str, *, cursor: str | None, limit: int
) -> tuple[Sequence[Activity], str | None]:
    """The person with the latest message first."""
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    people = await connection.fetch(_PEOPLE, workspace, automation, at, key, limit + 1)
    shown = people[:limit]
    contacts, phones = [row["contact_id"] for row in shown], [row["phone"] for row in shown]
    runs: dict[tuple[str | None, str | None], list[Record]] = {}
    for row in await connection.fetch(_RUNS, workspace, automation, contacts, phones):
        runs.setdefault(_person(row), []).append(row)
    more = to_cursor(shown[-1]["at"], shown[-1]["message_id"]) if len(people) > limit else None
    return [Activity(runs[_person(row)][::-1]) for row in shown if _person(row) in runs], more


def _person(row: Record) -> tuple[str | None, str | None]:
    return (row["contact_id"], None) if row["contact_id"] is not None else (None, row["phone"])
