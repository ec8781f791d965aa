"""The SQL by which a driver claims what is due: line by line and lane by lane, so that what waits for something else is
never walked over, however much it is. As in store.py."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta

from asyncpg import Record as Row
from sendwhy.postgres import Connection
from sendwhy.values import value_class

from dispatcher.decide import CAMPAIGN, UPSTREAM, Lane, Message
from dispatcher.limits import Throttle, throttle_opens_at, throttle_room
from dispatcher.queue_store import MESSAGE_COLUMNS, message_of
from dispatcher.store import COLUMNS_OF_S, Key, SenderRow, sender_of

LANES = tuple(Lane)
# A minute's calls count until a day after the minute's end.
DAY_OF_MINUTES = timedelta(hours=24, minutes=1)

# The lines of a sender but for the ordinary one, each found by one step through the index.
_LINES = """
with recursive step as (
    (select m.line from message m where m.state = 'waiting' and m.sender_id = $1 and m.line > 'c'
     order by m.line limit 1)
    union all
    select (select m.line from message m where m.state = 'waiting' and m.sender_id = $1 and m.line > step.line
            order by m.line limit 1)
    from step where step.line < 'p'
)
select c.campaign_id, c.paused_at, c.cancelled_at, c.per_minute, c.per_day, c.next_slot_at
from step left join campaign c on c.workspace_id = $2 and c.campaign_id = substr(step.line, 2)
where step.line < 'p'
"""

# The sender's row, locked, with its lines. Who waits for that lock may get lines as they were before: they only say
# where to look, and what is found there is judged by its campaign's row as it is then.
_HOLD = f"""
select {COLUMNS_OF_S}, l.*
from sender s
left join lateral ({_LINES.replace("$2", "s.workspace_id")})
  as l(campaign_id, line_paused_at, cancelled_at, per_minute, per_day, next_slot_at) on true
where s.sender_id = $1 and s.fence = $2
for share of s
"""  # noqa: S608 - a constant

_LOCK_CAMPAIGNS = """
select from campaign where workspace_id = $1 and campaign_id = any($2::text[]) order by campaign_id for update
"""
# A statement of its own: one that waited for the lock would read calls as they were before.
_THROTTLES = """
select c.campaign_id, c.per_minute, c.per_day, c.next_slot_at,
       (select coalesce(sum(u.calls), 0) from campaign_use u
        where u.workspace_id = c.workspace_id and u.campaign_id = c.campaign_id and u.minute > $3)::int as day_used
from campaign c where c.workspace_id = $1 and c.campaign_id = any($2::text[])
"""


@value_class
class OpenLines:
    """The lines that may be looked at now, and how many of each; `throttles` are locked. `next_at`: when the first of
    those opens that only their pace closes."""

    rooms: Mapping[str, int]
    throttles: dict[str, Throttle] = field(default_factory=dict)
    next_at: datetime | None = None


@value_class
class Line:
    """A line of a campaign's own, as its campaign is; with its throttle."""

    campaign_id: str
    is_paused: bool
    is_cancelled: bool
    throttle: Throttle


async def hold_fence(connection: Connection, sender_id: str, fence: int) -> tuple[SenderRow, list[Line]] | None:
    """Lock the sender's row if this driver still is its driver; None once another has taken over. With its lines."""
    rows = await connection.fetch(_HOLD, sender_id, fence)
    if not rows:
        return None
    return sender_of(rows[0]), [
        Line(
            row["campaign_id"],
            row["line_paused_at"] is not None,
            row["cancelled_at"] is not None,
            Throttle(row["per_minute"], row["per_day"], row["next_slot_at"]),
        )
        for row in rows
        if row["campaign_id"] is not None
    ]


async def open_lines(
    connection: Connection, workspace_id: str, lines: Sequence[Line], now: datetime, most: int
) -> OpenLines:
    rooms = {"": most}
    asked: list[str] = []
    slots: list[datetime] = []
    for line in lines:
        throttle = line.throttle
        if line.is_paused and not line.is_cancelled:
            continue
        if line.is_cancelled or not throttle.limits:
            rooms[f"c{line.campaign_id}"] = most
        elif throttle_room(throttle, now):
            asked.append(line.campaign_id)
        elif throttle.per_minute is not None and throttle.next_slot_at:
            slots.append(throttle_opens_at(throttle))
    throttles = await lock_throttles(connection, workspace_id, asked, now) if asked else {}
    for campaign_id, throttle in throttles.items():
        if room := throttle_room(throttle, now):
            rooms[f"c{campaign_id}"] = min(most, room)
    return OpenLines(rooms, throttles, min(slots, default=None))


async def free_lines(connection: Connection, sender_id: str, workspace_id: str) -> list[str]:
    """The lines of a sender in which only its own pace keeps messages waiting."""
    rows = await connection.fetch(_LINES, sender_id, workspace_id)
    return [
        "",
        *(
            f"c{row['campaign_id']}"
            for row in rows
            if row["campaign_id"] is not None
            and not row["paused_at"]
            and row["per_minute"] is None
            and row["per_day"] is None
        ),
    ]


async def lock_throttles(
    connection: Connection, workspace_id: str, campaigns: Collection[str], now: datetime
) -> dict[str, Throttle]:
    """Locked in order of their ids, and before any other row that a driver waits for."""
    await connection.execute(_LOCK_CAMPAIGNS, workspace_id, sorted(campaigns))
    return await read_throttles(connection, workspace_id, campaigns, now)


async def read_throttles(
    connection: Connection, workspace_id: str, campaigns: Collection[str], now: datetime
) -> dict[str, Throttle]:
    rows = await connection.fetch(_THROTTLES, workspace_id, sorted(campaigns), now - DAY_OF_MINUTES)
    return {
        row["campaign_id"]: Throttle(row["per_minute"], row["per_day"], row["next_slot_at"], row["day_used"])
        for row in rows
    }


async def save_throttle(
    connection: Connection, workspace_id: str, campaign_id: str, throttle: Throttle, calls: int, now: datetime
) -> None:
    await connection.execute(
        "update campaign set next_slot_at = $3 where workspace_id = $1 and campaign_id = $2",
        workspace_id,
        campaign_id,
        throttle.next_slot_at,
    )
    if throttle.per_day is not None:
        await connection.execute(
            "insert into campaign_use (workspace_id, campaign_id, minute, calls)"
            " values ($1, $2, date_trunc('minute', $3::timestamptz), $4)"
            " on conflict (workspace_id, campaign_id, minute) do update set calls = campaign_use.calls + $4",
            workspace_id,
            campaign_id,
            now,
            calls,
        )


_IN_LANE = f"""
select m.* from unnest($3::text[], $4::int[]) as l(line, room)
cross join lateral (
    select {MESSAGE_COLUMNS}, m.line, m.campaign_id, m.not_before from message m
    where m.state = 'waiting' and m.sender_id = $1 and m.line = l.line and m.lane = {{lane}} and m.not_before <= $2
    order by m.not_before limit least(l.room, {{rest}})
    for update of m skip locked
) m
order by m.not_before limit {{rest}}
"""  # noqa: S608 - a constant

_WITH_WORD = f"""
select m.*, c.paused_at as campaign_paused_at, c.per_minute, c.per_day,
       case when x.message_id is not null then coalesce(x.cancelled_by, '{UPSTREAM}')
            when c.cancelled_at is not null then '{CAMPAIGN}'
            when m.queued_at <= z.at then coalesce(z.by_whom, '{UPSTREAM}') end as cancelled_by
from claimed m
left join campaign c on c.workspace_id = m.workspace_id and c.campaign_id = m.campaign_id
left join cancellation x on x.workspace_id = m.workspace_id and x.message_id = m.message_id
left join sweep z on z.workspace_id = m.workspace_id and z.kind = 'cancel_sender' and z.target = m.sender_id
"""  # noqa: S608 - a constant

# A lane is looked at only as far as those before it leave room, and no row is locked in vain.
_DUE = f"""
with first as materialized ({_IN_LANE.format(lane="$6", rest="$5")}),
second as materialized ({_IN_LANE.format(lane="$7", rest="($5 - (select count(*) from first))")}),
third as materialized ({
    _IN_LANE.format(lane="$8", rest="($5 - (select count(*) from first) - (select count(*) from second))")
}),
claimed as (
    select 1 as place, * from first union all select 2, * from second union all select 3, * from third
)
{_WITH_WORD}
order by m.place, m.not_before
"""  # noqa: S608 - a constant

# While replies alone go: the first lane, and of the others what is no template, found through its own index.
_DUE_REPLIES = f"""
with first as materialized ({_IN_LANE.format(lane="0", rest="$5")}),
second as materialized ({_IN_LANE.format(lane="1 and m.template is null", rest="($5 - (select count(*) from first))")}),
third as materialized ({
    _IN_LANE.format(
        lane="2 and m.template is null", rest="($5 - (select count(*) from first) - (select count(*) from second))"
    )
}),
claimed as (
    select 1 as place, * from first union all select 2, * from second union all select 3, * from third
)
{_WITH_WORD}
order by m.place, m.not_before
"""  # noqa: S608 - a constant

_TIER_WAITS = f"""
with claimed as materialized (
    select {MESSAGE_COLUMNS}, m.line, m.campaign_id, m.not_before from message m
    where m.state = 'waiting' and m.waiting_for = 'tier' and m.line <> 'p' and m.sender_id = $1
    order by m.lane, m.queued_at limit $2
    for update of m skip locked
)
{_WITH_WORD}
order by m.lane, m.queued_at
"""  # noqa: S608 - a constant


@value_class
class Due:
    """A message that may be looked at now. `line`: where it stands; `throttled`: whether its campaign is."""

    message: Message
    campaign_id: str | None
    throttled: bool
    line: str


async def lock_due(
    connection: Connection,
    sender_id: str,
    now: datetime,
    *,
    limit: int,
    lanes: Sequence[Lane] | None = LANES,
    lines: OpenLines | None = None,
) -> list[Due]:
    """What is due of a sender, by lanes in this order, and in each by its time; `lanes` None: what may be a reply."""
    rooms = lines.rooms if lines else {"": limit}
    values = (sender_id, now, list(rooms), list(rooms.values()), limit)
    if lanes is None:
        rows = await connection.fetch(_DUE_REPLIES, *values)
    else:
        rows = await connection.fetch(_DUE, *values, *(int(lane) for lane in lanes))
    return [_due(row) for row in rows]


# By one step into the index for each sender, however much waits: a join would walk over all of it.
_AT_WORK = """
select s.sender_id from unnest($1::text[]) as s(sender_id)
where (select true from message m
       where m.state = 'waiting' and m.sender_id = s.sender_id and m.line < 'p' limit 1)
"""


async def senders_at_work(connection: Connection, sender_ids: Sequence[str]) -> set[str]:
    """Those of these senders for whom a message waits."""
    return {row["sender_id"] for row in await connection.fetch(_AT_WORK, sender_ids)}


_NEXT_DUE = """
select min(m.not_before) from unnest($3::text[]) as l(line)
cross join unnest($4::smallint[]) as p(lane)
cross join lateral (
    select m.not_before from message m
    where m.state = 'waiting' and m.sender_id = $1 and m.line = l.line and m.lane = p.lane and m.not_before > $2
    order by m.not_before limit 1
) m
"""


async def next_due(connection: Connection, sender_id: str, now: datetime, lines: OpenLines) -> datetime | None:
    """When the first message becomes due that isn't yet."""
    lanes = [int(lane) for lane in LANES]
    at: datetime | None = await connection.fetchval(_NEXT_DUE, sender_id, now, list(lines.rooms), lanes)
    return min((one for one in (at, lines.next_at) if one is not None), default=None)


async def lock_tier_waits(connection: Connection, sender_id: str, places: int) -> list[Due]:
    """Who waits for a place in the messaging limit: as many as there are places, those of higher lanes first."""
    return [_due(row) for row in await connection.fetch(_TIER_WAITS, sender_id, places)]


def _due(row: Row) -> Due:
    message = message_of(row, row["campaign_paused_at"], row["cancelled_by"])
    throttled = row["per_minute"] is not None or row["per_day"] is not None
    return Due(message, row["campaign_id"], throttled, row["line"])


# Who waits for a place keeps it: the order of the ordinary line is that of `not_before`, and its own is in the past.
_LINE_UP = """
update message m set line = case when m.line = '' then 'c' || m.campaign_id else m.line end, waiting_for = 'turn',
    not_before = least(m.not_before, clock_timestamp())
from unnest($1::text[], $2::text[]) as l(workspace_id, message_id)
where m.workspace_id = l.workspace_id and m.message_id = l.message_id and m.state = 'waiting'
  and m.campaign_id is not null and (m.line = '' or m.waiting_for = 'tier')
"""


async def line_up(connection: Connection, keys: Sequence[Key]) -> None:
    """Let these stand in the lines of their campaigns, which are closed now or let few go."""
    ordered = sorted(keys)
    await connection.execute(_LINE_UP, [key[0] for key in ordered], [key[1] for key in ordered])
