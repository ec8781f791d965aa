"""Messages over time, by status: for the chart above the list."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendwhy.postgres import Connection

from message_log.queries import STATUSES, Filters, Where, source_of

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


_COUNT_BY_CLOCK = """
select date_bin({width}, m.at, {origin}) as bar, m.status, count(*) as count
from message_now m where {where} group by 1, 2
"""
# Only of what is open does the clock say where it stands; all else is counted from the index.
_COUNT = """
select date_bin({width}, m.at, {origin}) as bar,
       case m.outcome when 'accepted' then 'sending' else m.outcome end as status, count(*) as count
from message m where {where} and m.outcome <> 'open' group by 1, 2
union all
select date_bin({width}, m.at, {origin}) as bar, m.status, count(*) as count
from message_now m where {where} and m.outcome = 'open' group by 1, 2
"""


async def measure(connection: Connection, workspace: str, filters: Filters, now: datetime) -> Volume:
    """The messages that fit the filters over the time that they name; without one, since the first."""
    where = Where(workspace, filters)
    since = filters.since or await connection.fetchval(
        f"select m.at from {source_of(filters)} m where {where} order by m.at, m.message_id limit 1",  # noqa: S608 - tests are ours
        *where.values,
    )
    until = filters.until or now
    width = width_of(max(until - since, _WIDTHS[0])) if since else _WIDTHS[0]
    count = _COUNT if source_of(filters) == "message" else _COUNT_BY_CLOCK
    statement = count.format(width=where.add(width), origin=where.add(_EPOCH), where=where)
    rows = await connection.fetch(statement, *where.values)
    counts: dict[datetime, dict[str, int]] = {}
    for row in rows:
        bar = counts.setdefault(row["bar"], {})
        bar[row["status"]] = bar.get(row["status"], 0) + row["count"]
    return Volume(width, _without_gaps(counts, width, since, until) if counts else ())


def _without_gaps(
    counts: dict[datetime, dict[str, int]], width: timedelta, since: datetime | None, until: datetime
) -> list[Bar]:
    """A bar for every step from `since` to `until`, and for what lies beyond: a broker's clock may be ahead."""
    first = min(min(counts), floor(since or min(counts), width))
    last = max(max(counts), floor(until, width) if floor(until, width) < until else floor(until, width) - width)
    bars: list[Bar] = []
    while first <= last and len(bars) < BARS_MAX * 4:
        bars.append(Bar(first, first + width, counts.get(first, {})))
        first += width
    return bars
