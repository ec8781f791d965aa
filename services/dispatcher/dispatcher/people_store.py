"""The SQL on people: windows, copies of contacts, caps. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sendwhy.events import ContactUpdated
from sendwhy.postgres import Connection

from dispatcher.store import Key
from dispatcher.windows import Window


async def open_windows(connection: Connection, opened: Mapping[tuple[str, str], Window]) -> None:
    """Note messages from people, by (sender_id, phone or user id): a window only ever moves forward."""
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


_CONTACTS = """
select c.workspace_id, c.contact_id, c.body from contact c
join unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
  on c.workspace_id = asked.workspace_id and c.contact_id = asked.contact_id
"""
_UNSUBSCRIBED = f"{_CONTACTS} where c.marketing_state <> 'SUBSCRIBED'"


async def contacts(connection: Connection, keys: Iterable[Key]) -> dict[Key, ContactUpdated]:
    return await _contacts(connection, keys, _CONTACTS)


async def unsubscribed(connection: Connection, keys: Iterable[Key]) -> dict[Key, ContactUpdated]:
    """Those of these contacts that are not subscribed: few, of all whom messages go to."""
    return await _contacts(connection, keys, _UNSUBSCRIBED)


async def _contacts(connection: Connection, keys: Iterable[Key], statement: str) -> dict[Key, ContactUpdated]:
    asked = list(dict.fromkeys(keys))
    rows = await connection.fetch(statement, [key[0] for key in asked], [key[1] for key in asked])
    return {(row["workspace_id"], row["contact_id"]): ContactUpdated.model_validate_json(row["body"]) for row in rows}


async def save_contacts(connection: Connection, states: Iterable[ContactUpdated]) -> set[Key]:
    """Keep the latest state of each; returns for whom it was news."""
    rows = sorted(states, key=lambda state: (state.workspace_id, state.contact_id))
    changed = await connection.fetch(
        "insert into contact (workspace_id, contact_id, version, marketing_state, body, phone, user_id)"
        " select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bytea[], $6::text[],"
        " $7::text[])"
        " on conflict (workspace_id, contact_id) do update set version = excluded.version,"
        " marketing_state = excluded.marketing_state, body = excluded.body, phone = excluded.phone,"
        " user_id = excluded.user_id"
        " where contact.version < excluded.version returning contact.workspace_id, contact.contact_id",
        [row.workspace_id for row in rows],
        [row.contact_id for row in rows],
        [row.version for row in rows],
        [row.marketing_state.value for row in rows],
        [row.to_json() for row in rows],
        [row.phone for row in rows],
        [row.user_id for row in rows],
    )
    return {(row["workspace_id"], row["contact_id"]) for row in changed}


async def delete_contacts(connection: Connection, keys: Sequence[Key]) -> None:
    await connection.execute(
        "delete from contact using unnest($1::text[], $2::text[]) as gone(workspace_id, contact_id)"
        " where contact.workspace_id = gone.workspace_id and contact.contact_id = gone.contact_id",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )


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
