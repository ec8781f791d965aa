"""The SQL on people: windows, copies of contacts, caps, and whom a portfolio has reached. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sendwhy.events import ContactUpdated
from sendwhy.postgres import Connection

from dispatcher.decide import Tier
from dispatcher.store import Key
from dispatcher.windows import Window

_DAY = timedelta(hours=24)


async def windows(connection: Connection, sender_id: str, phones: Iterable[str]) -> dict[str, Window]:
    rows = await connection.fetch(
        "select phone, opened_at, free_entry_at from conversation_window"
        " where sender_id = $1 and phone = any($2::text[])",
        sender_id,
        list(phones),
    )
    return {row["phone"]: Window(row["opened_at"], row["free_entry_at"]) for row in rows}


async def open_windows(connection: Connection, opened: Mapping[tuple[str, str], Window]) -> None:
    """Note messages from people, by (sender_id, phone): a window only ever moves forward."""
    keys = sorted(opened)
    await connection.execute(
        "insert into conversation_window (sender_id, phone, opened_at, free_entry_at)"
        " select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])"
        " on conflict (sender_id, phone) do update"
        " set opened_at = greatest(conversation_window.opened_at, excluded.opened_at),"
        " free_entry_at = greatest(conversation_window.free_entry_at, excluded.free_entry_at)",
        [key[0] for key in keys],
        [key[1] for key in keys],
        [opened[key].opened_at for key in keys],
        [opened[key].free_entry_at for key in keys],
    )


async def inbound_read_until(connection: Connection, partitions: int) -> datetime | None:
    """Up to when message.received has been read on all partitions; None while that isn't known of each."""
    row = await connection.fetchrow("select count(*) as known, min(read_until) as until from inbound_read")
    assert row is not None
    return row["until"] if row["known"] >= partitions else None


async def note_inbound_read(connection: Connection, read_until: Mapping[int, datetime]) -> None:
    partitions = sorted(read_until)
    await connection.execute(
        "insert into inbound_read (partition, read_until) select * from unnest($1::int[], $2::timestamptz[])"
        " on conflict (partition) do update set read_until = greatest(inbound_read.read_until, excluded.read_until)",
        partitions,
        [read_until[partition] for partition in partitions],
    )


async def contacts(connection: Connection, keys: Iterable[Key]) -> dict[Key, ContactUpdated]:
    asked = list(dict.fromkeys(keys))
    rows = await connection.fetch(
        "select c.workspace_id, c.contact_id, c.body from contact c"
        " join unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)"
        " on c.workspace_id = asked.workspace_id and c.contact_id = asked.contact_id",
        [key[0] for key in asked],
        [key[1] for key in asked],
    )
    return {(row["workspace_id"], row["contact_id"]): ContactUpdated.model_validate_json(row["body"]) for row in rows}


async def save_contacts(connection: Connection, states: Iterable[ContactUpdated]) -> set[Key]:
    """Keep the latest state of each; returns for whom it was news."""
    rows = sorted(states, key=lambda state: (state.workspace_id, state.contact_id))
    changed = await connection.fetch(
        "insert into contact (workspace_id, contact_id, version, marketing_state, body, phone)"
        " select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bytea[], $6::text[])"
        " on conflict (workspace_id, contact_id) do update set version = excluded.version,"
        " marketing_state = excluded.marketing_state, body = excluded.body, phone = excluded.phone"
        " where contact.version < excluded.version returning contact.workspace_id, contact.contact_id",
        [row.workspace_id for row in rows],
        [row.contact_id for row in rows],
        [row.version for row in rows],
        [row.marketing_state.value for row in rows],
        [row.to_json() for row in rows],
        [row.phone for row in rows],
    )
    return {(row["workspace_id"], row["contact_id"]) for row in changed}


async def stopped_at(connection: Connection, workspace_id: str, phones: Iterable[str]) -> dict[str, ContactUpdated]:
    """Who has opted out, by phone."""
    rows = await connection.fetch(
        "select phone, body from contact"
        " where workspace_id = $1 and phone = any($2::text[]) and marketing_state = 'UNSUBSCRIBED'",
        workspace_id,
        list(phones),
    )
    return {row["phone"]: ContactUpdated.model_validate_json(row["body"]) for row in rows}


async def delete_contacts(connection: Connection, keys: Sequence[Key]) -> None:
    await connection.execute(
        "delete from contact using unnest($1::text[], $2::text[]) as gone(workspace_id, contact_id)"
        " where contact.workspace_id = gone.workspace_id and contact.contact_id = gone.contact_id",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )


async def capped(connection: Connection, workspace_id: str, phones: Iterable[str]) -> dict[str, datetime]:
    rows = await connection.fetch(
        "select phone, until from marketing_cap where workspace_id = $1 and phone = any($2::text[])"
        " and until > clock_timestamp()",
        workspace_id,
        list(phones),
    )
    return {row["phone"]: row["until"] for row in rows}


async def set_caps(connection: Connection, told: Mapping[Key, datetime]) -> None:
    """No marketing to the people of these messages, by (workspace_id, message_id), until then."""
    keys = sorted(told)
    await connection.execute(
        "insert into marketing_cap (workspace_id, phone, until)"
        " select m.workspace_id, m.phone, max(t.until) from message m"
        " join unnest($1::text[], $2::text[], $3::timestamptz[]) as t(workspace_id, message_id, until)"
        " on m.workspace_id = t.workspace_id and m.message_id = t.message_id"
        " where m.phone is not null group by m.workspace_id, m.phone"
        " on conflict (workspace_id, phone) do update set until = greatest(marketing_cap.until, excluded.until)",
        [key[0] for key in keys],
        [key[1] for key in keys],
        [told[key] for key in keys],
    )


async def lock_tier(connection: Connection, portfolio_id: str, limit: int | None, now: datetime) -> Tier:
    """The portfolio's use of its messaging limit, under its row's lock; nothing is counted where there is no limit."""
    if limit is None:
        return Tier()
    await connection.execute("insert into portfolio (portfolio_id) values ($1) on conflict do nothing", portfolio_id)
    await connection.execute("select from portfolio where portfolio_id = $1 for update", portfolio_id)
    return await read_tier(connection, portfolio_id, limit, now)


async def read_tier(connection: Connection, portfolio_id: str, limit: int | None, now: datetime) -> Tier:
    if limit is None:
        return Tier()
    row = await connection.fetchrow(
        "select count(*) as used, min(reached_at) as oldest from reached_person"
        " where portfolio_id = $1 and reached_at > $2",
        portfolio_id,
        now - _DAY,
    )
    assert row is not None
    return Tier(limit, row["used"], room_at=row["oldest"] + _DAY if row["oldest"] else None)


async def reached_people(connection: Connection, portfolio_id: str, phones: Iterable[str], now: datetime) -> set[str]:
    rows = await connection.fetch(
        "select phone from reached_person where portfolio_id = $1 and phone = any($2::text[]) and reached_at > $3",
        portfolio_id,
        list(phones),
        now - _DAY,
    )
    return {row["phone"] for row in rows}


async def add_reached(connection: Connection, portfolio_id: str, phones: Iterable[str], now: datetime) -> None:
    await connection.execute(
        "insert into reached_person (portfolio_id, phone, reached_at) select $1, phone, $3"
        " from unnest($2::text[]) as phone"
        " on conflict (portfolio_id, phone) do update set reached_at = excluded.reached_at",
        portfolio_id,
        sorted(set(phones)),
        now,
    )
