"""What is kept beside the ledger: its sums by quarter of an hour, its proof, alerts, and where Meta's pricing differs.
SQL, a whole batch at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from sendwhy.postgres import PRUNE_AT_ONCE, Connection, MessageKey, delete_in_steps

from billing.decide import Alert, Charge
from billing.pricing import Difference

ROLLED_UP_AT_ONCE = 5_000

# One statement sees one moment: the entries up to an account's version are all there. Reservations open with `reserve`
# and close with `capture` or `release`, whatever is booked after that.
_ROLL_UP = """
with due as (
    select r.workspace_id, r.version as after, least(a.version, r.version + $1) as upto
    from reconciled r join account a on a.workspace_id = r.workspace_id
    where a.version > r.version
    order by r.workspace_id limit 20
    for update of r skip locked
), news as (
    select l.* from due d
    join ledger l on l.workspace_id = d.workspace_id and l.version > d.after and l.version <= d.upto
), turned as (
    insert into turnover as t (workspace_id, quarter, kind, origin_kind, origin_id, category, country,
                               entries, credits, amount)
    select workspace_id, date_bin('15 minutes', at, timestamptz '2000-01-01 00:00:00+00'), kind, origin_kind,
           origin_id, category, country, count(*), sum(coalesce(price, abs(amount))), sum(amount)
    from news group by 1, 2, 3, 4, 5, 6, 7
    on conflict (workspace_id, quarter, kind, origin_kind, origin_id, category, country) do update
    set entries = t.entries + excluded.entries, credits = t.credits + excluded.credits,
        amount = t.amount + excluded.amount
), summed as (
    select workspace_id, sum(amount) as total, count(*) as entries,
           coalesce(sum(case when kind = 'reserve' then price when kind in ('capture', 'release') then -price end), 0)
               as held
    from news group by 1
), noted as (
    update reconciled r
    set version = d.upto, total = r.total + coalesce(s.total, 0), held = r.held + coalesce(s.held, 0),
        entries = r.entries + coalesce(s.entries, 0)
    from due d left join summed s on s.workspace_id = d.workspace_id
    where r.workspace_id = d.workspace_id
)
select count(*) from due
"""

# The versions of an account count its entries, so a gap shows as well.
_MISMATCHES = """
select count(*)
from account a
left join reconciled r on r.workspace_id = a.workspace_id
cross join lateral (
    select coalesce(sum(l.amount), 0) + coalesce(r.total, 0) as total, count(*) + coalesce(r.entries, 0) as entries,
           coalesce(sum(case when kind = 'reserve' then price when kind in ('capture', 'release') then -price end), 0)
               + coalesce(r.held, 0) as held
    from ledger l where l.workspace_id = a.workspace_id and l.version > coalesce(r.version, 0)
) as found
where (a.balance, a.reserved, a.version) is distinct from (found.total, found.held, found.entries)
"""


async def roll_up(connection: Connection, *, at_once: int = ROLLED_UP_AT_ONCE) -> None:
    """Add to `turnover` and `reconciled` what the ledger has that they have not. Replicas share the accounts."""
    while await connection.fetchval(_ROLL_UP, at_once):
        pass


async def mismatches(connection: Connection) -> int:
    """Accounts whose balance, reservations or number of entries are not what their ledger says."""
    return int(await connection.fetchval(_MISMATCHES))


@dataclass(frozen=True, slots=True)
class Stands:
    """Credits of all accounts together, and how many stand at each threshold of their last top-up, at their lowest."""

    balance: int
    reserved: int
    low: Mapping[int, int]


_STANDS = """
select low_balance_percent as percent, count(*) as accounts, sum(balance)::bigint as balance,
       sum(reserved)::bigint as reserved
from account group by low_balance_percent
"""


async def stands(connection: Connection) -> Stands:
    rows = await connection.fetch(_STANDS)
    low = {row["percent"]: row["accounts"] for row in rows if row["percent"] is not None}
    return Stands(sum(row["balance"] for row in rows), sum(row["reserved"] for row in rows), low)


_PRUNE_CHARGES = """
delete from charge where (workspace_id, message_id) in (
    select workspace_id, message_id from charge
    where prune_after < clock_timestamp() and booked <> array['reserve'] limit $1
)
"""


async def prune_charges(connection: Connection, *, at_once: int = PRUNE_AT_ONCE) -> None:
    """Forget the state of messages that nothing can be told of any more; the ledger keeps what was booked.

    What comes all the same finds no charge and books nothing; and no message can be funded a second time, since its
    `reserve` stands in the ledger once. A reservation that is still open stays: the account's `reserved` counts it.
    """
    await delete_in_steps(connection, _PRUNE_CHARGES, at_once=at_once)


_ADD_ALERTS = """
insert into alert (workspace_id, version, percent, balance, last_top_up, at)
select *, $6::timestamptz from unnest($1::text[], $2::bigint[], $3::int[], $4::bigint[], $5::bigint[])
"""


async def add_alerts(connection: Connection, alerts: Sequence[Alert], *, at: datetime) -> None:
    await connection.execute(
        _ADD_ALERTS,
        [alert.workspace_id for alert in alerts],
        [alert.version for alert in alerts],
        [alert.percent for alert in alerts],
        [alert.balance for alert in alerts],
        [alert.last_top_up for alert in alerts],
        at,
    )


# Each kind of a message is listed once: what no longer stands comes back under its first position.
_NOTE_DIFFERENCES = """
insert into pricing_difference as d (workspace_id, message_id, kind, stands, credits, category, is_charged,
                                     meta_category, meta_type, meta_model, meta_billable, at)
select *, $12::timestamptz
from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::int[], $6::text[], $7::boolean[], $8::text[],
            $9::text[], $10::text[], $11::boolean[])
on conflict (workspace_id, message_id, kind) do update
set stands = excluded.stands, is_charged = excluded.is_charged, meta_category = excluded.meta_category,
    meta_type = excluded.meta_type, meta_model = excluded.meta_model, meta_billable = excluded.meta_billable
"""
Changes = Mapping[tuple[MessageKey, Difference], bool]


async def note_differences(
    connection: Connection, changes: Changes, charges: Mapping[MessageKey, Charge], *, at: datetime
) -> None:
    """Note which differences stand now (True) and which no longer do, with the charges they are about."""
    keys = sorted(changes)
    rows = [charges[key] for key, _ in keys]
    metas = [charge.meta for charge in rows]
    await connection.execute(
        _NOTE_DIFFERENCES,
        [workspace for (workspace, _), _ in keys],
        [message_id for (_, message_id), _ in keys],
        [kind.value for _, kind in keys],
        [changes[key] for key in keys],
        [charge.price.credits for charge in rows],
        [charge.price.category for charge in rows],
        [charge.is_charged for charge in rows],
        [meta and meta.category for meta in metas],
        [meta and meta.type for meta in metas],
        [meta and meta.model for meta in metas],
        [None if meta is None else meta.billable for meta in metas],
        at,
    )


_ALERTS = """
select version, percent, balance, last_top_up, at from alert
where workspace_id = $1 and ($2::bigint is null or version < $2 or (version = $2 and percent > $3::bigint))
order by version desc, percent limit $4
"""


async def alerts_page(
    connection: Connection, workspace: str, *, after: tuple[int, int] | None, limit: int
) -> list[asyncpg.Record]:
    """Alerts after the one of this version and percent, the latest first."""
    version, percent = after or (None, None)
    return list(await connection.fetch(_ALERTS, workspace, version, percent, limit))


_DIFFERENCES = """
select position, message_id, kind, credits, category, is_charged, meta_category, meta_type, meta_model, meta_billable,
       at
from pricing_difference
where workspace_id = $1 and stands and ($2::bigint is null or position < $2) and ($3::text is null or kind = $3)
  and ($4::text is null or message_id = $4)
order by position desc limit $5
"""


async def differences_page(
    connection: Connection,
    workspace: str,
    *,
    before: int | None = None,
    kind: str | None = None,
    message_id: str | None = None,
    limit: int,
) -> list[asyncpg.Record]:
    """The differences that stand, with a position below `before`, the latest first."""
    return list(await connection.fetch(_DIFFERENCES, workspace, before, kind, message_id, limit))


_NOTE_BOOKING = """
insert into booking (workspace_id, key, version, at) values ($1, $2, $3, $4) on conflict do nothing returning version
"""


@dataclass(frozen=True, slots=True)
class Booking:
    """The entry that an Idempotency-Key booked."""

    version: int
    at: datetime


async def note_booking(
    connection: Connection, workspace: str, key: str, version: int, *, at: datetime
) -> Booking | None:
    """Note that the key booked this entry; returns the one that it booked before, if any. Under the account's lock."""
    if await connection.fetchval(_NOTE_BOOKING, workspace, key, version, at) is not None:
        return None
    row = await connection.fetchrow(
        "select version, at from booking where workspace_id = $1 and key = $2", workspace, key
    )
    assert row is not None
    return Booking(row["version"], row["at"])
