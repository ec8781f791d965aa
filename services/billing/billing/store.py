"""billing's SQL. Every function takes a connection, works on a whole batch, and is one statement a table."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import asyncpg
from sendwhy.events import AccountUpdated, Moment, SenderUpdated, TemplateUpdated, Wire, event_id_of
from sendwhy.postgres import Connection, MessageKey, Write, write_together
from sendwhy.values import value_class

from billing.decide import Account, Charge, Entry, Kind, OriginKey, PriceRow, Tally, price
from billing.pricing import MetaPricing

_ACCOUNTS = """
select workspace_id, balance, reserved, version, last_top_up, low_balance_percent
from account where workspace_id = any($1::text[])
"""
# Sorted, so that two replicas that meet on the same workspaces can't lock each other out.
_LOCK_ACCOUNTS = _ACCOUNTS + " order by workspace_id for update"
_OPEN_ACCOUNTS = """
with opened as (
    insert into account (workspace_id) select unnest($1::text[]) on conflict do nothing returning workspace_id
)
insert into reconciled (workspace_id, version, total) select workspace_id, 0, 0 from opened
"""

_SAVE_ACCOUNTS = """
update account a
set balance = s.balance, reserved = s.reserved, version = s.version, last_top_up = s.last_top_up,
    low_balance_percent = s.low_balance_percent
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[])
    as s(workspace_id, balance, reserved, version, last_top_up, low_balance_percent)
where a.workspace_id = s.workspace_id
"""

_ADD_ENTRIES = """
insert into ledger (workspace_id, version, kind, amount, balance_after, cause, cause_kind, cause_reason, actor,
                    message_id, category, calling_code, price, assumed, origin_kind, origin_id, country,
                    price_calling_code, price_valid_from, at)
select *, $20::timestamptz
from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::text[], $12::text[], $13::int[], $14::boolean[], $15::text[], $16::text[],
            $17::text[], $18::text[], $19::timestamptz[])
returning *
"""
# Of each workspace's entries that `entries_added` adds as the first of several writes.
_LAST_ADDED = "select distinct on (workspace_id) * from write_0 order by workspace_id, version desc"

_ADD_CHARGES = """
insert into charge (workspace_id, message_id, price, category, calling_code, assumed, origin_kind, origin_id, country,
                    booked, prune_after)
select workspace_id, message_id, price, category, calling_code, assumed, origin_kind, origin_id, country,
       array['reserve'], prune_after
from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[],
            $9::text[], $10::timestamptz[])
    as c(workspace_id, message_id, price, category, calling_code, assumed, origin_kind, origin_id, country, prune_after)
"""

_CHARGES = """
select c.workspace_id, c.message_id, c.price, c.category, c.calling_code, c.assumed, c.origin_kind, c.origin_id,
       c.country, c.booked, c.receipt, c.failed, c.meta_category, c.meta_type, c.meta_model, c.meta_billable,
       c.meta_receipt
from unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)
join charge c on c.workspace_id = asked.workspace_id and c.message_id = asked.message_id
"""

# `booked` comes comma-joined: unnest would flatten an array of arrays.
_SAVE_CHARGES = """
update charge c
set booked = string_to_array(s.booked, ','), receipt = s.receipt, failed = s.failed, meta_category = s.meta_category,
    meta_type = s.meta_type, meta_model = s.meta_model, meta_billable = s.meta_billable, meta_receipt = s.meta_receipt
from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::boolean[], $6::text[], $7::text[], $8::text[],
            $9::boolean[], $10::int[])
    as s(workspace_id, message_id, booked, receipt, failed, meta_category, meta_type, meta_model, meta_billable,
         meta_receipt)
where c.workspace_id = s.workspace_id and c.message_id = s.message_id
"""


async def accounts(connection: Connection, workspaces: Iterable[str]) -> dict[str, Account]:
    """The accounts that exist, unlocked."""
    rows = await connection.fetch(_ACCOUNTS, list(workspaces))
    return {row["workspace_id"]: Account(*row) for row in rows}


async def lock_accounts(connection: Connection, workspaces: Iterable[str]) -> dict[str, Account]:
    """The accounts that exist, locked until the transaction ends. What they guard is to be read after this."""
    rows = await connection.fetch(_LOCK_ACCOUNTS, sorted(set(workspaces)))
    return {row["workspace_id"]: Account(*row) for row in rows}


async def lock_or_open_accounts(connection: Connection, workspaces: Iterable[str]) -> dict[str, Account]:
    """As `lock_accounts`; a workspace without an account gets one with balance 0."""
    wanted = sorted(set(workspaces))
    found = await lock_accounts(connection, wanted)
    missing = [workspace for workspace in wanted if workspace not in found]
    if not missing:
        return found
    await connection.execute(_OPEN_ACCOUNTS, missing)
    return await lock_accounts(connection, wanted)


async def save_accounts(connection: Connection, changed: Sequence[Account]) -> None:
    await write_together(connection, accounts_saved(changed))


def accounts_saved(changed: Sequence[Account]) -> Write:
    return _SAVE_ACCOUNTS, (
        [account.workspace_id for account in changed],
        [account.balance for account in changed],
        [account.reserved for account in changed],
        [account.version for account in changed],
        [account.last_top_up for account in changed],
        [account.low_balance_percent for account in changed],
    )


async def add_entries(connection: Connection, entries: Sequence[Entry], *, at: datetime) -> None:
    await write_together(connection, entries_added(entries, at=at))


def entries_added(entries: Sequence[Entry], *, at: datetime) -> Write:
    charges = [entry.charge for entry in entries]
    return _ADD_ENTRIES, (
        [entry.workspace_id for entry in entries],
        [entry.version for entry in entries],
        [entry.kind.value for entry in entries],
        [entry.amount for entry in entries],
        [entry.balance_after for entry in entries],
        [entry.cause.id for entry in entries],
        [entry.cause.kind for entry in entries],
        [entry.cause.reason for entry in entries],
        [entry.actor for entry in entries],
        [charge and charge.message_id for charge in charges],
        [charge and charge.price.category for charge in charges],
        [charge and charge.price.calling_code for charge in charges],
        [charge and charge.price.credits for charge in charges],
        [charge and charge.price.assumed for charge in charges],
        [charge and charge.origin_kind for charge in charges],
        [charge and charge.origin_id for charge in charges],
        [charge and charge.country for charge in charges],
        [charge.row.calling_code if charge is not None and charge.row is not None else None for charge in charges],
        [charge.row.valid_from if charge is not None and charge.row is not None else None for charge in charges],
        at,
    )


@value_class
class NewCharge:
    workspace_id: str
    charge: Charge
    prune_after: datetime


def charges_added(new: Sequence[NewCharge]) -> Write:
    charges = [row.charge for row in new]
    return _ADD_CHARGES, (
        [row.workspace_id for row in new],
        [charge.message_id for charge in charges],
        [charge.price.credits for charge in charges],
        [charge.price.category for charge in charges],
        [charge.price.calling_code for charge in charges],
        [charge.price.assumed for charge in charges],
        [charge.origin_kind for charge in charges],
        [charge.origin_id for charge in charges],
        [charge.country for charge in charges],
        [row.prune_after for row in new],
    )


async def charges_of(connection: Connection, messages: Iterable[MessageKey]) -> dict[str, dict[str, Charge]]:
    """The charges of these messages, by workspace and message."""
    keys = list(dict.fromkeys(messages))
    rows = await connection.fetch(_CHARGES, [key[0] for key in keys], [key[1] for key in keys])
    found: dict[str, dict[str, Charge]] = {}
    for row in rows:
        found.setdefault(row["workspace_id"], {})[row["message_id"]] = _charge(row)
    return found


@lru_cache(256)
def _kinds(booked: tuple[str, ...]) -> frozenset[Kind]:
    return frozenset(map(Kind, booked))


def _charge(row: asyncpg.Record) -> Charge:
    return Charge(
        row["message_id"],
        price(row["price"], row["category"], row["calling_code"], row["assumed"]),
        row["origin_kind"],
        row["origin_id"],
        _kinds(tuple(row["booked"])),
        row["receipt"],
        row["failed"],
        row["country"],
        meta=_meta(row),
    )


def _meta(row: asyncpg.Record) -> MetaPricing | None:
    if row["meta_receipt"] is None:
        return None
    return MetaPricing(
        row["meta_category"], row["meta_type"], row["meta_model"], row["meta_billable"], row["meta_receipt"]
    )


def charges_saved(changed: Mapping[MessageKey, Charge]) -> Write:
    return _SAVE_CHARGES, (
        [workspace_id for workspace_id, _ in changed],
        [message_id for _, message_id in changed],
        [",".join(sorted(charge.booked)) for charge in changed.values()],
        [charge.receipt for charge in changed.values()],
        [charge.failed for charge in changed.values()],
        [charge.meta and charge.meta.category for charge in changed.values()],
        [charge.meta and charge.meta.type for charge in changed.values()],
        [charge.meta and charge.meta.model for charge in changed.values()],
        [None if charge.meta is None else charge.meta.billable for charge in changed.values()],
        [None if charge.meta is None else charge.meta.receipt for charge in changed.values()],
    )


_TALLIES = """
select t.workspace_id, t.origin_kind, nullif(t.origin_id, '') as origin_id, t.funded, t.refused
from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, origin_kind, origin_id)
join tally t using (workspace_id, origin_kind, origin_id)
"""
_RAISE_TALLIES = """
insert into tally (workspace_id, origin_kind, origin_id, funded, refused)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
on conflict (workspace_id, origin_kind, origin_id)
do update set funded = tally.funded + excluded.funded, refused = tally.refused + excluded.refused
"""
Tallies = dict[str, dict[OriginKey, Tally]]


async def tallies_of(connection: Connection, origins: Iterable[tuple[str, OriginKey]]) -> Tallies:
    """The tallies of these origins that have any, by workspace. Only exact under the accounts' locks."""
    asked = set(origins)
    rows = await connection.fetch(
        _TALLIES,
        [workspace for workspace, _ in asked],
        [kind for _, (kind, _) in asked],
        [name or "" for _, (_, name) in asked],
    )
    found: Tallies = {}
    for row in rows:
        key = (row["origin_kind"], row["origin_id"])
        found.setdefault(row["workspace_id"], {})[key] = Tally(row["funded"], row["refused"])
    return found


def tallies_raised(by: Mapping[str, Mapping[OriginKey, Tally]]) -> Write:
    rows = [(workspace, *key, tally) for workspace, each in by.items() for key, tally in each.items()]
    return _RAISE_TALLIES, (
        [workspace for workspace, _, _, _ in rows],
        [kind for _, kind, _, _ in rows],
        [name or "" for _, _, name, _ in rows],
        [tally.funded for _, _, _, tally in rows],
        [tally.refused for _, _, _, tally in rows],
    )


class LedgerEntry(Wire):
    """An entry as the API and account.updated show it. `amount` and `price` in credits; `cause` is the event's id, or
    the reference or reason given over HTTP; `cause_kind` the event's topic (with `/` and the status of a
    status.updated), top_up or adjustment; `cause_reason` the code of the reason that the event carried; `country` as
    ISO 3166 letters; `price_calling_code` and `price_valid_from` name the price row of a `reserve`; `actor` the first
    digits of the SHA-256 of the token that booked it."""

    entry_id: int
    version: int
    kind: Kind
    amount: int
    balance_after: int
    cause: str
    cause_kind: str | None
    cause_reason: str | None
    actor: str | None
    message_id: str | None
    category: str | None
    calling_code: str | None
    price: int | None
    assumed: bool | None
    origin_kind: str | None
    origin_id: str | None
    country: str | None
    price_calling_code: str | None
    price_valid_from: Moment | None
    at: Moment


_ENTRY_COLUMNS = """
entry_id, version, kind, amount, balance_after, cause, cause_kind, cause_reason, actor, message_id, category,
calling_code, price, assumed, origin_kind, origin_id, country, price_calling_code, price_valid_from, at
"""
_LEDGER = f"""
select {_ENTRY_COLUMNS} from ledger
where workspace_id = $1 and ($2::bigint is null or version < $2)
  and ($3::text is null or message_id = $3) and ($4::text is null or kind = $4)
order by version desc limit $5
"""  # noqa: S608 - the columns are a constant

_LAST_ENTRIES = """
select a.balance, a.last_top_up, a.low_balance_percent, a.workspace_id, l.*
from account a join ledger l on l.workspace_id = a.workspace_id and l.version = a.version
where a.workspace_id = any($1::text[])
order by a.workspace_id
"""


def _entry(row: asyncpg.Record) -> LedgerEntry:
    return LedgerEntry(
        **{name: row[name] for name in LedgerEntry.model_fields if name != "kind"}, kind=Kind(row["kind"])
    )


async def ledger_page(
    connection: Connection,
    workspace: str,
    *,
    before: int | None = None,
    message_id: str | None = None,
    kind: str | None = None,
    limit: int,
) -> list[LedgerEntry]:
    """Entries with a version below `before`, the latest first."""
    return [_entry(row) for row in await connection.fetch(_LEDGER, workspace, before, message_id, kind, limit)]


_ENTRIES_OF = f"""
select {_ENTRY_COLUMNS} from ledger where workspace_id = $1 and message_id = any($2::text[]) order by version
"""  # noqa: S608 - the columns are a constant


async def entries_of(connection: Connection, workspace: str, message_ids: Sequence[str]) -> list[LedgerEntry]:
    return [_entry(row) for row in await connection.fetch(_ENTRIES_OF, workspace, list(message_ids))]


async def account_events(connection: Connection, workspaces: Iterable[str]) -> list[AccountUpdated]:
    """The accounts' whole state as events: one version always gives the same event, byte by byte."""
    rows = await connection.fetch(_LAST_ENTRIES, list(workspaces))
    return [_account_event(row, row["balance"], row["last_top_up"], row["low_balance_percent"]) for row in rows]


async def book(
    connection: Connection, entries: Sequence[Entry], accounts: Iterable[Account], *others: Write, at: datetime
) -> list[AccountUpdated]:
    """Add entries with their accounts as they are after them, and `others` in the same go; returns `account_events`."""
    after = {account.workspace_id: account for account in accounts}
    writes = (entries_added(entries, at=at), accounts_saved(list(after.values())), *others)
    last = await write_together(connection, *writes, told=_LAST_ADDED)
    told = ((row, after[row["workspace_id"]]) for row in last)
    return [_account_event(row, one.balance, one.last_top_up, one.low_balance_percent) for row, one in told]


def _account_event(
    last: asyncpg.Record, balance: int, last_top_up: int | None, low_balance_percent: int | None
) -> AccountUpdated:
    return AccountUpdated(
        event_id=event_id_of(f"{last['workspace_id']}/{last['version']}", "account.updated"),
        occurred_at=last["at"],
        workspace_id=last["workspace_id"],
        version=last["version"],
        balance=balance,
        last_top_up=last_top_up,
        low_balance_percent=low_balance_percent,
        last_entry=_entry(last).model_dump(mode="json"),
    )


_PRICES = """
select workspace_id, category, calling_code, credits, valid_from from price where workspace_id = any($1::text[])
order by workspace_id, category, calling_code nulls first, valid_from
"""
_REPLACE_PRICES = """
insert into price (workspace_id, category, calling_code, credits, valid_from)
select $1, * from unnest($2::text[], $3::text[], $4::int[], $5::timestamptz[])
"""


async def prices_of(connection: Connection, workspaces: Iterable[str]) -> dict[str, list[PriceRow]]:
    found: dict[str, list[PriceRow]] = {}
    for row in await connection.fetch(_PRICES, list(workspaces)):
        price = PriceRow(row["category"], row["calling_code"], row["credits"], row["valid_from"])
        found.setdefault(row["workspace_id"], []).append(price)
    return found


async def replace_prices(connection: Connection, workspace: str, rows: Sequence[PriceRow]) -> None:
    """Make `rows` the workspace's price list. Charges keep the price that they were made with."""
    await lock_or_open_accounts(connection, [workspace])
    await connection.execute("delete from price where workspace_id = $1", workspace)
    await connection.execute(
        _REPLACE_PRICES,
        workspace,
        [row.category for row in rows],
        [row.calling_code for row in rows],
        [row.credits for row in rows],
        [row.valid_from for row in rows],
    )


@value_class
class TemplateUse:
    """A template as a request names it; without a sender that of the workspace's default sender is meant."""

    workspace_id: str
    sender_id: str | None
    name: str
    language: str


_CATEGORIES = """
select distinct on (asked.position) asked.position, t.category
from unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[])
    as asked(position, workspace_id, sender_id, name, language)
join sender s on s.workspace_id = asked.workspace_id
    and case when asked.sender_id is null then s.is_default else s.sender_id = asked.sender_id end
join template t on t.waba_id = s.waba_id and t.name = asked.name and t.language = asked.language
order by asked.position, s.sender_id
"""


async def categories_of(connection: Connection, uses: Iterable[TemplateUse]) -> dict[TemplateUse, str]:
    """The categories, in Meta's capitals, of the templates that are known."""
    asked = list(dict.fromkeys(uses))
    if not asked:
        return {}
    rows = await connection.fetch(
        _CATEGORIES,
        list(range(len(asked))),
        [use.workspace_id for use in asked],
        [use.sender_id for use in asked],
        [use.name for use in asked],
        [use.language for use in asked],
    )
    return {asked[row["position"]]: row["category"] for row in rows}


_KEEP_SENDERS = """
insert into sender (sender_id, workspace_id, waba_id, is_default, version)
select * from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::bigint[])
on conflict (sender_id) do update
set workspace_id = excluded.workspace_id, waba_id = excluded.waba_id, is_default = excluded.is_default,
    version = excluded.version
where excluded.version >= sender.version
"""
_KEEP_TEMPLATES = """
insert into template (waba_id, name, language, category, version)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
on conflict (waba_id, name, language) do update
set category = excluded.category, version = excluded.version
where excluded.version >= template.version
"""
_FORGET_TEMPLATES = """
delete from template where (waba_id || '/' || name || '/' || language) = any($1::text[])
"""


async def keep_senders(connection: Connection, states: Mapping[str, SenderUpdated | None]) -> None:
    """Take over senders' states by their id; None deletes."""
    await connection.execute("delete from sender where sender_id = any($1::text[])", _deleted(states))
    kept = [states[key] for key in sorted(states)]
    rows = [state for state in kept if state is not None]
    await connection.execute(
        _KEEP_SENDERS,
        [row.sender_id for row in rows],
        [row.workspace_id for row in rows],
        [row.waba_id for row in rows],
        [row.default for row in rows],
        [row.version for row in rows],
    )


async def keep_templates(connection: Connection, states: Mapping[str, TemplateUpdated | None]) -> None:
    """Take over templates' states by their topic's key; None deletes."""
    await connection.execute(_FORGET_TEMPLATES, _deleted(states))
    kept = [states[key] for key in sorted(states)]
    rows = [state for state in kept if state is not None]
    await connection.execute(
        _KEEP_TEMPLATES,
        [row.waba_id for row in rows],
        [row.name for row in rows],
        [row.language for row in rows],
        [row.category for row in rows],
        [row.version for row in rows],
    )


def _deleted(states: Mapping[str, Any]) -> list[str]:
    return [key for key, state in states.items() if state is None]
