"""Messages over time, by status: for the chart above the list."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendwhy.postgres import Connection

from message_log import cells
from message_log.queries import STATUSES, Filters, Where, cells_of, source_of

BARS_MAX = 61
_WIDTHS = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 7 * 86400, 30 * 86400)
)
_EPOCH = datetime.fromisoformat("2024-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Bar:
    """The messages asked for from `since` to before `until`."""

    since: datetime
    until: datetime
    by_status: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class Volume:
    """`bars` without gaps, the oldest first; none where there is no message."""

    width: timedelta
    bars: Sequence[Bar]

    @property
    def by_status(self) -> dict[str, int]:
        return {status: sum(bar.by_status.get(status, 0) for bar in self.bars) for status in STATUSES}


def width_of(span: timedelta) -> timedelta:
    """The narrowest width, of those that people count in, with which a span has at most BARS_MAX bars."""
    return next((width for width in _WIDTHS if span <= width * BARS_MAX), _WIDTHS[-1])


def floor(moment: datetime, width: timedelta) -> datetime:
    """The beginning of the bar that a moment falls into; weeks begin on Mondays, in UTC."""
    return moment - (moment - _EPOCH) % width


_FROM_CELLS = """
select date_bin({width}, m.at, {origin}) as bar, m.outcome as status, sum(m.count)::bigint as count
from {cells} m where {where} and m.outcome <> 'open' group by 1, 2
"""
_FROM_INDEX = """
select date_bin({width}, m.at, {origin}) as bar, m.outcome as status, count(*) as count
from message m where {where} and m.outcome <> 'open' group by 1, 2
"""
# Only of what is open does the clock say where it stands, as the view message_now judges a single message: here those
# that are alike are gathered first, since a running campaign has a million of them.
_OPEN = """
with alike as (
    select date_bin({width}, m.at, {origin}) as bar, m.origin_kind, m.origin_id, m.sender_id, m.template,
           m.waiting_cause is not null and (m.waiting_until is null or m.waiting_until > now()) as waits,
           count(*) as count
    from message m where {where} and m.outcome = 'open' group by 1, 2, 3, 4, 5, 6
), holds as materialized (select * from hold_now where workspace_id = {workspace}), judged as (
    select a.bar, a.count, a.waits or exists (
        select from holds h left join sender s on s.workspace_id = {workspace}
            and case when a.sender_id is null then s.is_default else s.sender_id = a.sender_id end
        where case h.scope
                  when 'sender' then h.scope_id = coalesce(a.sender_id, s.sender_id)
                  when 'account' then h.scope_id in (s.waba_id, {workspace})
                  when 'campaign' then a.origin_kind = 'campaign' and h.scope_id = a.origin_id
                  when 'template' then position('/' || a.template || '/' in '/' || h.scope_id || '/') > 0
              end) as waits
    from alike a)
select bar, case when waits then 'waiting' else 'sending' end as status, sum(count)::bigint as count
from judged group by 1, 2
"""
_BY_CLOCK = """
select date_bin({width}, m.at, {origin}) as bar, m.status, count(*) as count
from message_now m where {where} group by 1, 2
"""
Counts = dict[datetime, Counter[str]]


async def measure(connection: Connection, workspace: str, filters: Filters, now: datetime) -> Volume:
    """The messages that fit the filters over the time that they name; without one, since the first."""
    since = filters.since or await cells.first_at(connection, workspace, filters)
    if since is None:
        return Volume(_WIDTHS[0], ())
    until = filters.until or now
    width = width_of(max(until - since, _WIDTHS[0]))
    counts: Counts = {}
    for statement, part in _statements(filters, width):
        await _count(connection, workspace, statement, part, width, counts)
    return Volume(width, _without_gaps(counts, width, since, until) if counts else ())


def _statements(filters: Filters, width: timedelta) -> Iterator[tuple[str, Filters]]:
    if source_of(filters) == "message_now":
        yield _BY_CLOCK, filters
        return
    span = cells.span_of(filters, width)
    if span.whole is not None:
        yield _FROM_CELLS, span.whole
    for edge in span.edges:
        yield _FROM_INDEX, edge
    yield _OPEN, filters


async def _count(
    connection: Connection, workspace: str, statement: str, filters: Filters, width: timedelta, counts: Counts
) -> None:
    where = Where(workspace, filters)
    given = {"width": where.add(width), "origin": where.add(_EPOCH), "where": where, "cells": cells_of(filters)}
    rows = await connection.fetch(statement.format(**given, workspace="$1"), *where.values)
    for row in rows:
        status = "sending" if row["status"] == "accepted" else row["status"]
        if row["count"]:
            counts.setdefault(row["bar"], Counter())[status] += row["count"]


def _without_gaps(counts: Counts, width: timedelta, since: datetime | None, until: datetime) -> list[Bar]:
    """A bar for every step from `since` to `until`, and for what lies beyond: a broker's clock may be ahead."""
    first = min(min(counts), floor(since or min(counts), width))
    last = max(max(counts), floor(until, width) if floor(until, width) < until else floor(until, width) - width)
    bars: list[Bar] = []
    while first <= last and len(bars) < BARS_MAX * 4:
        bars.append(Bar(first, first + width, dict(counts.get(first, {}))))
        first += width
    return bars
