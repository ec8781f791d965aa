"""The SQL on messaging limits: whom a portfolio has reached in a moving 24 h. As in store.py.

A person counts from the moment of the last call to them (`reached_at`) until just before 24 h later. The portfolio's
row carries the count; its lock makes the numbers of one portfolio, driven by several replicas, take turns. Moments
under one portfolio are given away once, and only grow, whatever the clocks of the replicas say.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sendwhy.postgres import Connection

from dispatcher.decide import Lane, Tier

DAY = timedelta(hours=24)
# After a longer silence the count is made anew: rows that it hasn't subtracted yet may be gone (erasures.prune, 48 h).
RECOUNT_AFTER = timedelta(hours=20)
SUBTRACT_EVERY = timedelta(hours=1)
_STEP = timedelta(microseconds=1)

_LOCK = "select used, counted_until, last_at from portfolio where portfolio_id = $1 for update"
_COUNT = "select count(*) from reached_person where portfolio_id = $1 and reached_at > $2"
_COUNT_BETWEEN = "select count(*) from reached_person where portfolio_id = $1 and reached_at > $2 and reached_at <= $3"
_OLDEST = """
select reached_at from reached_person where portfolio_id = $1 and reached_at > $2 order by reached_at limit 1
"""


async def lock_tier(connection: Connection, portfolio_id: str, limit: int | None, now: datetime) -> Tier:
    """The portfolio's use of its messaging limit at `Tier.at`: now or, if another replica's clock is ahead, just after
    the last moment given away. Under its row's lock; nothing is counted where there is no limit."""
    if limit is None:
        return Tier()
    row = await connection.fetchrow(_LOCK, portfolio_id)
    if row is None:
        await connection.execute(
            "insert into portfolio (portfolio_id) values ($1) on conflict do nothing", portfolio_id
        )
        row = await connection.fetchrow(_LOCK, portfolio_id)
    assert row is not None
    at = max(now, row["last_at"] + _STEP) if row["last_at"] else now
    since, counted_until = at - DAY, row["counted_until"]
    if counted_until is None or since - counted_until > RECOUNT_AFTER:
        used, is_news = await connection.fetchval(_COUNT, portfolio_id, since), True
    else:
        # A clock that went back finds nothing here, and what was subtracted stays subtracted.
        gone = await connection.fetchval(_COUNT_BETWEEN, portfolio_id, counted_until, since)
        used, is_news = row["used"] - gone, gone > 0 or since - counted_until > SUBTRACT_EVERY
    if is_news:
        await connection.execute(
            "update portfolio set used = $2, counted_until = $3 where portfolio_id = $1", portfolio_id, used, since
        )
    return Tier(limit, used, room_at=await _room_at(connection, portfolio_id, since), at=at)


async def read_tier(connection: Connection, portfolio_id: str, limit: int | None, now: datetime) -> Tier:
    """As `lock_tier`, without lock and change."""
    if limit is None:
        return Tier()
    row = await connection.fetchrow(
        "select used, counted_until from portfolio where portfolio_id = $1 and counted_until > $2",
        portfolio_id,
        now - DAY - RECOUNT_AFTER,
    )
    since = now - DAY
    if row is None:
        used = await connection.fetchval(_COUNT, portfolio_id, since)
    else:
        used = row["used"] - await connection.fetchval(_COUNT_BETWEEN, portfolio_id, row["counted_until"], since)
    return Tier(limit, used, room_at=await _room_at(connection, portfolio_id, since), at=now)


async def _room_at(connection: Connection, portfolio_id: str, since: datetime) -> datetime | None:
    oldest: datetime | None = await connection.fetchval(_OLDEST, portfolio_id, since)
    return oldest + DAY if oldest else None


async def reached_people(connection: Connection, portfolio_id: str, phones: Iterable[str], at: datetime) -> set[str]:
    rows = await connection.fetch(
        "select phone from reached_person where portfolio_id = $1 and phone = any($2::text[]) and reached_at > $3",
        portfolio_id,
        list(phones),
        at - DAY,
    )
    return {row["phone"] for row in rows}


_COUNTED = """
select count(*) from reached_person r join portfolio p on p.portfolio_id = r.portfolio_id
where r.portfolio_id = $1 and r.phone = any($2::text[]) and r.reached_at > p.counted_until
"""
_ADD = """
insert into reached_person (portfolio_id, phone, reached_at, calls)
select $1, phone, max(at), array_agg(at) from unnest($2::text[], $3::timestamptz[]) as new(phone, at)
group by phone order by phone
on conflict (portfolio_id, phone) do update set reached_at = greatest(reached_person.reached_at, excluded.reached_at),
    calls = array(select one from unnest(reached_person.calls) one where one > $4) || excluded.calls
"""
_ADD_TO_COUNT = """
insert into portfolio (portfolio_id, last_at) values ($1, $3)
on conflict (portfolio_id) do update set used = portfolio.used + $2, last_at = greatest(portfolio.last_at, $3)
"""


async def add_reached(connection: Connection, portfolio_id: str, phones: Sequence[str], at: datetime) -> list[datetime]:
    """Calls to these people, marked at `at` (of `lock_tier`); returns by which moment each call is known."""
    moments = [at + number * _STEP for number in range(len(phones))]
    people = set(phones)
    counted = await connection.fetchval(_COUNTED, portfolio_id, list(people))
    await connection.execute(_ADD, portfolio_id, phones, moments, at - DAY)
    await connection.execute(_ADD_TO_COUNT, portfolio_id, len(people) - counted, max(moments, default=at))
    return moments


# A person is out of the count once no call to them is left of which it isn't sure that Meta didn't take it.
_GIVE_BACK = """
with back as (
    select phone, array_agg(at) as calls from unnest($2::text[], $3::timestamptz[]) as b(phone, at) group by phone
), left_over as (
    select r.phone, r.reached_at as former,
           array(select one from unnest(r.calls) one where one <> all (back.calls)) as calls
    from reached_person r join back on back.phone = r.phone
    where r.portfolio_id = $1 and r.calls && back.calls for update of r
)
update reached_person r set calls = l.calls,
    reached_at = coalesce((select max(one) from unnest(l.calls) one), '-infinity')
from left_over l where r.portfolio_id = $1 and r.phone = l.phone
returning l.former > $4 and r.reached_at <= $4 as is_freed
"""


async def give_back(connection: Connection, portfolio_id: str, calls: Sequence[tuple[str, datetime]]) -> None:
    """Calls, by phone and moment, that Meta surely didn't take."""
    row = await connection.fetchrow(_LOCK, portfolio_id)
    if row is None or not calls:
        return
    rows = await connection.fetch(
        _GIVE_BACK, portfolio_id, [call[0] for call in calls], [call[1] for call in calls], row["counted_until"]
    )
    freed = sum(bool(one["is_freed"]) for one in rows)
    await connection.execute(
        "delete from reached_person where portfolio_id = $1 and reached_at = '-infinity'", portfolio_id
    )
    await connection.execute("update portfolio set used = used - $2 where portfolio_id = $1", portfolio_id, freed)


_COPY = """
insert into reached_person (portfolio_id, phone, reached_at, calls)
select $2, phone, reached_at, calls from reached_person where portfolio_id = $1 order by phone
on conflict (portfolio_id, phone) do update set reached_at = greatest(reached_person.reached_at, excluded.reached_at),
    calls = array(select distinct one from unnest(reached_person.calls || excluded.calls) one order by one)
"""
_COUNT_ANEW = """
insert into portfolio (portfolio_id, last_at) values ($2, (select last_at from portfolio where portfolio_id = $1))
on conflict (portfolio_id) do update set counted_until = null,
    last_at = greatest(portfolio.last_at, excluded.last_at)
"""


async def count_under(connection: Connection, former: str, portfolio_id: str) -> None:
    """Whom a number reached counts for the portfolio that is its, as Meta told; others may still count under the former
    name."""
    await connection.execute(_COUNT_ANEW, former, portfolio_id)
    await connection.execute(_COPY, former, portfolio_id)


_PROMISED = "select promised from portfolio where portfolio_id = $1"
_NEXT_PLACES = """
select reached_at from reached_person where portfolio_id = $1 and reached_at > $2 order by reached_at limit $3
"""


async def promise(
    connection: Connection, portfolio_id: str, tier: Tier, wanted: Mapping[Lane, int]
) -> dict[Lane, list[datetime]]:
    """When places become free for so many more who wait in each lane: the next after those that were promised to its
    lane before. Beyond the people that were reached, places are taken to become free evenly."""
    assert tier.at is not None
    assert tier.limit is not None
    promised = list(await connection.fetchval(_PROMISED, portfolio_id) or [])
    promised += [tier.at - DAY] * (len(Lane) - len(promised))
    found = {}
    for lane, count in wanted.items():
        start = max(promised[lane], tier.at - DAY)
        rows = await connection.fetch(_NEXT_PLACES, portfolio_id, start, count)
        places = [row["reached_at"] for row in rows]
        last = places[-1] if places else max(start, tier.at)
        places += [last + number * DAY / max(1, tier.limit) for number in range(1, count - len(places) + 1)]
        found[lane] = [place + DAY for place in places]
        promised[lane] = places[-1]
    await connection.execute("update portfolio set promised = $2 where portfolio_id = $1", portfolio_id, promised)
    return found


async def forget_promises(connection: Connection, portfolio_id: str) -> None:
    """Nobody waits any more: who comes next waits for the first place."""
    await connection.execute(
        "update portfolio set promised = '{}' where portfolio_id = $1 and promised <> '{}'", portfolio_id
    )
