"""How many messages there are, from the cells that a trigger keeps (migrations/0012_counts.sql, ADR 28): by the hour
that they were asked for, what became of them, and what lists are filtered by. The hours that the ends of a span cut are
counted in the index of `message`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sendwhy.postgres import Connection

from message_log.queries import Filters, ReasonRow, Where, cells_of, source_of

HOUR = timedelta(hours=1)
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
ADDED_AT_ONCE = 50_000


def hour_of(moment: datetime) -> datetime:
    return moment - (moment - _EPOCH) % HOUR


@dataclass(frozen=True, slots=True)
class Span:
    """Filters cut into what cells tell (whole hours; None: nothing) and what the messages do."""

    whole: Filters | None
    edges: Sequence[Filters]


def span_of(filters: Filters, narrowest: timedelta = HOUR) -> Span:
    """`narrowest`: how finely the answer tells times apart."""
    if not filters.is_in_cells or narrowest < HOUR:
        return Span(None, [filters])
    edges: list[Filters] = []
    since, until = filters.since, filters.until
    if since is not None and since != hour_of(since):
        since = hour_of(since) + HOUR
    if until is not None:
        until = hour_of(until)
    if since is not None and until is not None and since >= until:
        return Span(None, [filters])
    if since != filters.since:
        edges.append(filters.model_copy(update={"until": since}))
    if until != filters.until:
        edges.append(filters.model_copy(update={"since": until}))
    return Span(filters.model_copy(update={"since": since, "until": until}), edges)


async def total(connection: Connection, workspace: str, filters: Filters) -> int:
    """How many messages fit the filters."""
    span = span_of(filters)
    count = 0
    if span.whole is not None:
        where = Where(workspace, span.whole)
        count += int(
            await connection.fetchval(
                f"select coalesce(sum(m.count), 0) from {cells_of(filters)} m where {where}",  # noqa: S608 - tests are ours
                *where.values,
            )
        )
    for edge in span.edges:
        where = Where(workspace, edge)
        count += int(
            await connection.fetchval(f"select count(*) from {source_of(edge)} m where {where}", *where.values)  # noqa: S608 - tests are ours
        )
    return count


async def by_reason(connection: Connection, workspace: str, filters: Filters) -> list[ReasonRow]:
    """The most frequent first."""
    span = span_of(filters)
    counts: dict[tuple[str, str | None], int] = {}
    asked = [(cells_of(filters), "sum(m.count)::bigint", span.whole)] if span.whole is not None else []
    for source, count, part in [*asked, *((source_of(edge), "count(*)", edge) for edge in span.edges)]:
        where = Where(workspace, part)
        where.also("m.reason is not null")
        statement = f"select m.reason, m.service, {count} from {source} m where {where} group by m.reason, m.service"  # noqa: S608 - tests are ours
        for reason, service, found in await connection.fetch(statement, *where.values):
            counts[(reason, service)] = counts.get((reason, service), 0) + found
    rows = [ReasonRow(reason, service, found) for (reason, service), found in counts.items() if found]
    return sorted(rows, key=lambda row: (-row.count, row.reason, row.service or ""))


async def first_at(connection: Connection, workspace: str, filters: Filters) -> datetime | None:
    """When the first message was asked for that fits the filters."""
    timed = filters
    if filters.is_in_cells:
        where = Where(workspace, filters.model_copy(update={"since": None, "until": None}))
        hours = f"select m.at from {cells_of(filters)} m where {where} group by m.at having sum(m.count) > 0"  # noqa: S608 - tests are ours
        hour = await connection.fetchval(f"select min(h.at) from ({hours}) h", *where.values)  # noqa: S608 - as above
        if hour is None:
            return None
        timed = filters.model_copy(update={"since": hour})
    where = Where(workspace, timed)
    moment: datetime | None = await connection.fetchval(
        f"select m.at from {source_of(timed)} m where {where} order by m.at, m.message_id limit 1",  # noqa: S608 - tests are ours
        *where.values,
    )
    return moment


# Only one adds up at a time; who counts meanwhile sees either all of it or nothing. An emptied cell goes.
_ADD_UP = """
with taken as (
    delete from message_cell_change where ctid = any(array(select ctid from message_cell_change limit $1)) returning *
), added as (
    insert into message_cell as c
    select workspace_id, hour, outcome, reason, service, origin_kind, origin_id, sender_id, template, calling_code,
           sum(count)
    from taken group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 having sum(count) <> 0
    on conflict (workspace_id, hour, outcome, reason, service, origin_kind, origin_id, sender_id, template,
                 calling_code)
    do update set count = c.count + excluded.count
), added_by_hour as (
    insert into message_hour as h
    select workspace_id, hour, outcome, reason, service, sum(count)
    from taken group by 1, 2, 3, 4, 5 having sum(count) <> 0
    on conflict (workspace_id, hour, outcome, reason, service) do update set count = h.count + excluded.count
)
select workspace_id, hour, count(*) as count from taken group by 1, 2
"""
_DELETE_EMPTY = """
with hours as (
    delete from message_hour h using unnest($1::text[], $2::timestamptz[]) as touched(workspace_id, hour)
    where h.workspace_id = touched.workspace_id and h.hour = touched.hour and h.count = 0
)
delete from message_cell c using unnest($1::text[], $2::timestamptz[]) as touched(workspace_id, hour)
where c.workspace_id = touched.workspace_id and c.hour = touched.hour and c.count = 0
"""


async def add_up(connection: Connection) -> int:
    """Add the changes to the cells, a bounded part; returns how many there were."""
    async with connection.transaction():
        if not await connection.fetchval("select pg_try_advisory_xact_lock(hashtext('message cells'))"):
            return 0
        touched = await connection.fetch(_ADD_UP, ADDED_AT_ONCE)
        await connection.execute(
            _DELETE_EMPTY, [row["workspace_id"] for row in touched], [row["hour"] for row in touched]
        )
        return sum(row["count"] for row in touched)


async def keep(connect: Any) -> None:
    """For a timer: add up all that there is."""
    while True:
        async with connect() as connection:
            if await add_up(connection) < ADDED_AT_ONCE:
                return
