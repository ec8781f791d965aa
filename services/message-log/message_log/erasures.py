"""What the message log does with an order to erase a person, and how it knows them again in what comes later.

Events of a message are found by its id. What people wrote, and what was told of them, is found by keyed tags.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sendwhy.erasure import KEEP_ERASED, erase_alone, erased_people, keep_erasures_waiting, remember_person
from sendwhy.events import ContactUpdated, CustomerUpdated, ErasedRows, MessageReceived, PersonErasing
from sendwhy.postgres import Connection
from sendwhy.privacy import Tagger, spellings
from sendwhy.stage import Record

from message_log import store
from message_log.audience_store import KEPT_FOR
from message_log.decide import erased
from message_log.settings import MessageLogSettings
from message_log.store import EventRow

Told = MessageReceived | CustomerUpdated | ContactUpdated
Tag = tuple[str, bytes]

_MARK = """
insert into message (workspace_id, message_id, erased_at) select $1, *, $3 from unnest($2::text[])
on conflict (workspace_id, message_id) do update
set erased_at = greatest(message.erased_at, excluded.erased_at)
"""
_PHONES = """
select distinct phone from message where workspace_id = $1 and message_id = any($2::text[]) and phone is not null
"""
_KNOWN = "select message_id from message where workspace_id = $1 and message_id = any($2::text[]) and state is not null"
_EMPTY_EVENTS = """
update event set body = null where workspace_id = $1 and message_id = any($2::text[]) and body is not null
"""
_COUNT_EVENTS = "select count(*) from event where workspace_id = $1 and message_id = any($2::text[])"
_TAKE_TAGGED = """
delete from event_of where workspace_id = $1 and tag = any($2::bytea[]) and occurred_at <= $3
returning event_id, occurred_at
"""
_EMPTY_TAGGED = """
update event e set body = null from unnest($1::uuid[], $2::timestamptz[]) as gone(event_id, occurred_at)
where e.workspace_id = $3 and e.message_id is null and e.event_id = gone.event_id and e.occurred_at = gone.occurred_at
  and e.body is not null
"""
# An event may have tags that the order doesn't name.
_DELETE_TAGS = "delete from event_of where event_id = any($1::uuid[])"
_DELETE_TAGGED = "delete from inbound where event_id = any($1::uuid[])"
_DELETE_INBOUND = "delete from inbound where workspace_id = $1 and phone = any($2::text[]) and at <= $3"
_TAG = """
insert into event_of (workspace_id, tag, event_id, occurred_at)
select * from unnest($1::text[], $2::bytea[], $3::uuid[], $4::timestamptz[]) on conflict do nothing
"""
_UNKNOWN_CONTACTS = """
select asked.key from unnest($1::text[]) as asked(key)
where not exists (select from known_state k where k.topic = 'contact.updated' and k.key = asked.key)
"""
_PRUNE = (
    "delete from erased_person where erased_at < $1",
    "delete from message where state is null and erased_at < $1",
)


class People:
    """Knows whom events tell of, and carries out orders."""

    def __init__(self, settings: MessageLogSettings) -> None:
        self._tagger = Tagger(settings.privacy_key.get_secret_value())
        self._raw_kept = timedelta(days=settings.webhook_retention_days)

    async def rows(
        self, connection: Connection, records: Sequence[Record[Any]], row_of: Callable[[Record[Any], Any], EventRow]
    ) -> tuple[list[EventRow], set[UUID]]:
        """The rows of these events, tagged by whom they tell of; those of erased people without a body, and their ids.

        Within the caller's transaction no erasure runs in these workspaces.
        """
        told = [(row_of(record, record.event), record.event) for record in records]
        await keep_erasures_waiting(connection, {event.workspace_id for _, event in told if event.workspace_id})
        tags = {row.event_id: self._tags(event) for row, event in told}
        known = await erased_people(connection, (tag for several in tags.values() for tag in several))
        strangers = await _strangers(connection, [event for row, event in told if known.keys() & tags[row.event_id]])
        gone = {
            row.event_id
            for row, event in told
            if any(
                tag in known and (event.occurred_at <= known[tag] or _contact_key(event) in strangers)
                for tag in tags[row.event_id]
            )
        }
        kept = [(tag, row) for row, _ in told if row.event_id not in gone for tag in tags[row.event_id]]
        await connection.execute(
            _TAG,
            [tag[0] for tag, _ in kept],
            [tag[1] for tag, _ in kept],
            [row.event_id for _, row in kept],
            [row.occurred_at for _, row in kept],
        )
        return [row._replace(body=None) if row.event_id in gone else row for row, _ in told], gone

    def _tags(self, event: Told) -> list[Tag]:
        """A contact is known by its id: another one may share its number."""
        workspace = event.workspace_id
        if workspace is None:
            return []
        if not isinstance(event, MessageReceived) and event.contact_id is not None:
            return [(workspace, tag) for tag in self._tagger.of_person(workspace, contact_id=event.contact_id)]
        return [(workspace, tag) for tag in self._tagger.of_person(workspace, phone=event.phone, user_id=event.user_id)]

    async def erase(self, connection: Connection, order: PersonErasing) -> list[ErasedRows]:
        workspace, messages = order.workspace_id, sorted(set(order.message_ids))
        await erase_alone(connection, workspace)
        await remember_person(connection, order)
        # Marked first: from here on whoever folds something into them sees it, or was waited for.
        await connection.execute(_MARK, workspace, messages, order.erased_at)
        phones = [row["phone"] for row in await connection.fetch(_PHONES, workspace, messages)]
        known = [row["message_id"] for row in await connection.fetch(_KNOWN, workspace, messages)]
        await store.fold_messages(connection, {(workspace, one): erased(order.erased_at) for one in known})
        await connection.execute(_EMPTY_EVENTS, workspace, messages)
        events = await connection.fetchval(_COUNT_EVENTS, workspace, messages)
        told, wrote = await self._erase_told(connection, order, phones)
        return [
            ErasedRows(table="message", act="blurred", rows=len(known)),
            ErasedRows(table="event", act="erased", rows=events + told),
            ErasedRows(table="inbound", act="erased", rows=wrote),
            ErasedRows(table="known_state", act="erased", rows=0, ground="goes with contact.updated's tombstone"),
            ErasedRows(
                table="event, webhook_part",
                act="kept",
                rows=0,
                ground="ids of messages, ours and Meta's, and the codes of reasons: what became of each message",
            ),
            ErasedRows(
                table="webhook",
                act="kept",
                rows=0,
                ground="raw deliveries, which may hold other people's messages too",
                until=order.erased_at + self._raw_kept,
            ),
            ErasedRows(
                table="audience_line",
                act="kept",
                rows=0,
                ground="files that somebody checked before a send",
                until=order.erased_at + KEPT_FOR,
            ),
            ErasedRows(
                table="event (dead letters of no message)",
                act="kept",
                rows=0,
                ground="bytes that could not be read",
                until=order.erased_at + self._raw_kept,
            ),
        ]

    @staticmethod
    async def _erase_told(connection: Connection, order: PersonErasing, phones: Iterable[str]) -> tuple[int, int]:
        """Events of no message, and what the person wrote; returns how many of each."""
        tags = [bytes.fromhex(tag) for tag in order.tags]
        rows = await connection.fetch(_TAKE_TAGGED, order.workspace_id, tags, order.erased_at)
        events = {(row["event_id"], row["occurred_at"]) for row in rows}
        ids = sorted(event_id for event_id, _ in events)
        at = dict(events)
        await connection.execute(_EMPTY_TAGGED, ids, [at[one] for one in ids], order.workspace_id)
        await connection.execute(_DELETE_TAGS, ids)
        wrote = _count(await connection.execute(_DELETE_TAGGED, ids))
        forms = sorted({digits for phone in phones for digits in spellings(phone)})
        wrote += _count(await connection.execute(_DELETE_INBOUND, order.workspace_id, forms, order.erased_at))
        return len(events), wrote


async def _strangers(connection: Connection, events: Sequence[Told]) -> set[str]:
    """Contacts (`workspace/id`) whom shops still tell of after their erasure, and whom consent doesn't have again."""
    keys = sorted({_contact_key(event) for event in events if isinstance(event, CustomerUpdated) and event.contact_id})
    rows = await connection.fetch(_UNKNOWN_CONTACTS, keys) if keys else []
    return {row["key"] for row in rows}


def _contact_key(event: Told) -> str:
    return "" if isinstance(event, MessageReceived) else f"{event.workspace_id}/{event.contact_id}"


def _count(done: str) -> int:
    return int(done.rpartition(" ")[2])


async def prune(connection: Connection, now: datetime) -> None:
    for statement in _PRUNE:
        await connection.execute(statement, now - KEEP_ERASED)
