"""Consent's tables. Every function works inside the caller's transaction, with one statement a table and batch."""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

import asyncpg
from pydantic_core import to_json
from sendwhy.events import MarketingState, SenderUpdated, TemplateUpdated
from sendwhy.postgres import Connection, MessageKey

from consent.contacts import Book, Change, Contact, Entry, Erased, Fields, Key, Mark, Memory, Word
from consent.import_store import forget_import_rows

MAX_HOPS = 4
PRUNE_ROWS = 10_000

_LOCK_WORKSPACE = "select pg_advisory_xact_lock(hashtextextended('consent/' || $1, 0))"

_CONTACTS = """
select c.* from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, kind, value)
join contact c on c.workspace_id = asked.workspace_id and c.contact_id = asked.value where asked.kind = 'contact'
union all
select c.* from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, kind, value)
join contact c on c.workspace_id = asked.workspace_id and c.phone_key = asked.value where asked.kind = 'phone'
union all
select c.* from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, kind, value)
join contact c on c.workspace_id = asked.workspace_id and c.user_id = asked.value where asked.kind = 'user'
"""

_MEMORIES = """
select m.* from unnest($1::text[], $2::bytea[]) as asked(workspace_id, tag)
join memory m on m.workspace_id = asked.workspace_id and m.tag = asked.tag
"""

_COLUMNS = (
    *("workspace_id", "contact_id", "phone_given", "phone", "phone_key", "phone_country_code", "phone_calling_code"),
    *("user_id", "name", "firm_state", "firm_at", "firm_source", "firm_proof", "firm_own"),
    *("told_state", "told_at", "told_source", "told_proof", "version", "created_at", "fields_at", "updated_at"),
)
_SAVE_CONTACTS = f"""
insert into contact ({", ".join(_COLUMNS)})
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::text[], $11::timestamptz[], $12::text[], $13::text[], $14::boolean[],
                     $15::text[], $16::timestamptz[], $17::text[], $18::text[], $19::bigint[],
                     $20::timestamptz[], $21::timestamptz[], $22::timestamptz[])
on conflict (workspace_id, contact_id) do update set
    {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])}
"""  # noqa: S608 - names of our own columns

_SAVE_MEMORIES = """
insert into memory (workspace_id, tag, word_state, word_at, word_source, word_own, erased_at, version)
select * from unnest($1::text[], $2::bytea[], $3::text[], $4::timestamptz[], $5::text[], $6::boolean[],
                     $7::timestamptz[], $8::bigint[])
on conflict (workspace_id, tag) do update set word_state = excluded.word_state, word_at = excluded.word_at,
    word_source = excluded.word_source, word_own = excluded.word_own, erased_at = excluded.erased_at,
    version = excluded.version
"""

_ADD_HISTORY = """
insert into contact_history (workspace_id, contact_id, cause, said_state, said_at, source, proof,
                             stood_state, stood_at, stood_source, by, recorded_at)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[],
                     $8::text[], $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[])
on conflict do nothing
"""

_DELETE_CONTACT = "delete from contact where workspace_id = $1 and contact_id = $2"
_BLUR_HISTORY = """
update contact_history set contact_id = $3, proof = null, cause = id::text where workspace_id = $1 and contact_id = $2
"""
_REDACT_DECISIONS = """
update decision d set body = null, headers = ''
from message_of m
where m.workspace_id = $1 and m.tag = any($2::bytea[]) and d.workspace_id = m.workspace_id
  and d.message_id = m.message_id
"""
_FORGET_MESSAGES = "delete from message_of where workspace_id = $1 and tag = any($2::bytea[])"
_FORGET_ANSWERS = """
delete from idempotency_key where workspace_id = $1 and position(convert_to($2, 'UTF8') in coalesce(answer, '')) > 0
"""

_ADD_MESSAGES = """
insert into message_of (workspace_id, tag, message_id, prune_after)
select * from unnest($1::text[], $2::bytea[], $3::text[], $4::timestamptz[]) on conflict do nothing
"""

_SENDERS = "select sender_id, workspace_id, waba_id, is_default from sender where workspace_id = any($1::text[])"
_WORKSPACES = "select sender_id, workspace_id from sender where sender_id = any($1::text[])"
_TEMPLATES = """
select t.waba_id, t.name, t.language, t.category from unnest($1::text[], $2::text[]) as asked(name, language)
join template t on t.name = asked.name and t.language = asked.language
"""

_SAVE_SENDERS = """
insert into sender (sender_id, workspace_id, waba_id, is_default, version)
select * from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::bigint[])
on conflict (sender_id) do update set workspace_id = excluded.workspace_id, waba_id = excluded.waba_id,
    is_default = excluded.is_default, version = excluded.version
where sender.version < excluded.version
"""
_DELETE_SENDERS = "delete from sender where sender_id = any($1::text[])"
_SAVE_TEMPLATES = """
insert into template (waba_id, name, language, category, version)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
on conflict (waba_id, name, language) do update set category = excluded.category, version = excluded.version
where template.version < excluded.version
"""
_DELETE_TEMPLATES = """
delete from template where waba_id || '/' || name || '/' || language = any($1::text[])
"""

_PRUNE = (
    "delete from decision where ctid in (select ctid from decision where prune_after < $1 limit $2)",
    "delete from message_of where ctid in (select ctid from message_of where prune_after < $1 limit $2)",
    "delete from idempotency_key where ctid in"
    " (select ctid from idempotency_key where created_at < $1::timestamptz - interval '7 days' limit $2)",
)

_HISTORY = """
select * from contact_history where workspace_id = $1 and contact_id = $2 and id < $3 order by id desc limit $4
"""
_STOOD_AT = """
select distinct on (h.workspace_id, h.contact_id)
       h.workspace_id, h.contact_id, h.stood_state, h.stood_at, h.stood_source
from unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
join contact_history h on h.workspace_id = asked.workspace_id and h.contact_id = asked.contact_id
where h.recorded_at <= $3
order by h.workspace_id, h.contact_id, h.id desc
"""
_LIST = """
select * from contact where workspace_id = $1 and contact_id > $2 and ($3::text is null or phone_key = $3)
order by contact_id limit $4
"""


class Tagger:
    """Keyed tags of identities: without the key, nobody can try out phone numbers against them."""

    def __init__(self, privacy_key: str) -> None:
        self._key = privacy_key.encode()

    def __call__(self, mark: Mark) -> bytes:
        text = f"{mark.workspace_id}\0{mark.kind}\0{mark.value}"
        return hmac.digest(self._key, text.encode(), "sha256")[:16]


async def lock_workspaces(connection: Connection, workspaces: Iterable[str]) -> None:
    """Let nobody else change these workspaces' contacts until the transaction ends.

    Else a STOP and an import of the same person that run at once would each miss the other.
    """
    for workspace in sorted(set(workspaces)):
        await connection.execute(_LOCK_WORKSPACE, workspace)


async def contacts_of(connection: Connection, marks: Iterable[Mark]) -> list[Contact]:
    columns = _columns(sorted(set(marks)), 3)
    rows = await connection.fetch(_CONTACTS, *columns)
    return list({contact.key: contact for contact in map(contact_from, rows)}.values())


async def open_book(connection: Connection, tagger: Tagger, changes: Sequence[Change], now: datetime) -> Book:
    """Load all that `changes` reach: contacts found by one identity may share another one with further contacts."""
    book = Book(now)
    seen: set[Mark] = set()
    for _ in range(MAX_HOPS):
        new = book.marks_for(changes) - seen
        if not new:
            break
        seen |= new
        book.load(await contacts_of(connection, new), await _memories_of(connection, tagger, new))
    return book


async def _memories_of(connection: Connection, tagger: Tagger, marks: Iterable[Mark]) -> dict[Mark, Memory]:
    by_tag = {(mark.workspace_id, tagger(mark)): mark for mark in marks}
    rows = await connection.fetch(_MEMORIES, [key[0] for key in by_tag], [key[1] for key in by_tag])
    return {by_tag[row["workspace_id"], row["tag"]]: _memory(row) for row in rows}


async def save_book(connection: Connection, tagger: Tagger, book: Book) -> None:
    """Write what changed: contacts, memories, history, erasures."""
    for erased in book.erased.values():
        await _erase(connection, tagger, erased)
    if contacts := sorted(book.changed(), key=lambda contact: contact.key):
        await connection.execute(_SAVE_CONTACTS, *_columns([_row(contact) for contact in contacts], len(_COLUMNS)))
    if memories := book.changed_memories():
        rows = [(mark.workspace_id, tagger(mark), *_memory_row(memory)) for mark, memory in memories.items()]
        await connection.execute(_SAVE_MEMORIES, *_columns(sorted(rows, key=itemgetter(0, 1)), 8))
    if book.history:
        rows = [_entry_row(entry) for entry in sorted(book.history, key=lambda entry: (entry.key, entry.cause))]
        await connection.execute(_ADD_HISTORY, *_columns(rows, 12))


async def _erase(connection: Connection, tagger: Tagger, erased: Erased) -> None:
    workspace, contact_id = erased.key
    tags = [tagger(mark) for mark in erased.marks]
    await connection.execute(_DELETE_CONTACT, workspace, contact_id)
    own_tag = tagger(Mark(workspace, "contact", contact_id)).hex()
    await connection.execute(_BLUR_HISTORY, workspace, contact_id, f"erased:{own_tag}")
    await connection.execute(_REDACT_DECISIONS, workspace, tags)
    await connection.execute(_FORGET_MESSAGES, workspace, tags)
    await forget_import_rows(connection, workspace, tags)
    await connection.execute(_FORGET_ANSWERS, workspace, to_json(contact_id).decode())


async def add_messages(
    connection: Connection, tagger: Tagger, messages: Iterable[tuple[MessageKey, Iterable[Mark], datetime]]
) -> None:
    """Note for whom messages were decided: ((workspace, message), identities, when it may be forgotten)."""
    rows = sorted(
        (workspace, tagger(mark), message_id, prune_after)
        for (workspace, message_id), marks, prune_after in messages
        for mark in marks
    )
    if rows:
        await connection.execute(_ADD_MESSAGES, *_columns(rows, 4))


async def senders_of(connection: Connection, workspaces: Iterable[str]) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SENDERS, sorted(set(workspaces))))


async def workspaces_of(connection: Connection, sender_ids: Iterable[str]) -> dict[str, str]:
    rows = await connection.fetch(_WORKSPACES, sorted(set(sender_ids)))
    return {row["sender_id"]: row["workspace_id"] for row in rows}


async def categories_of(
    connection: Connection, templates: Iterable[tuple[str, str]]
) -> dict[tuple[str, str, str], str]:
    """Categories by (waba, name, language), for these names and languages in all accounts."""
    asked = sorted(set(templates))
    if not asked:
        return {}
    rows = await connection.fetch(_TEMPLATES, *_columns(asked, 2))
    return {(row["waba_id"], row["name"], row["language"]): row["category"] for row in rows}


async def save_senders(connection: Connection, senders: Mapping[str, SenderUpdated | None]) -> None:
    known = [event for _, event in sorted(senders.items()) if event is not None]
    rows = [(event.sender_id, event.workspace_id, event.waba_id, event.default, event.version) for event in known]
    if rows:
        await connection.execute(_SAVE_SENDERS, *_columns(rows, 5))
    if gone := [key for key, event in senders.items() if event is None]:
        await connection.execute(_DELETE_SENDERS, gone)


async def save_templates(connection: Connection, templates: Mapping[str, TemplateUpdated | None]) -> None:
    known = [event for _, event in sorted(templates.items()) if event is not None]
    rows = [(event.waba_id, event.name, event.language, event.category, event.version) for event in known]
    if rows:
        await connection.execute(_SAVE_TEMPLATES, *_columns(rows, 5))
    if gone := [key for key, event in templates.items() if event is None]:
        await connection.execute(_DELETE_TEMPLATES, gone)


async def history_of(connection: Connection, key: Key, before: int, limit: int) -> list[asyncpg.Record]:
    """A contact's history, newest first, of ids below `before`."""
    return list(await connection.fetch(_HISTORY, *key, before, limit))


async def words_at(connection: Connection, keys: Iterable[Key], moment: datetime) -> dict[Key, Word]:
    """What stood for these contacts at an earlier moment, by when we had learned of it."""
    asked = sorted(set(keys))
    rows = await connection.fetch(_STOOD_AT, [key[0] for key in asked], [key[1] for key in asked], moment)
    return {
        Key(row["workspace_id"], row["contact_id"]): Word(
            MarketingState(row["stood_state"]), row["stood_at"], row["stood_source"]
        )
        for row in rows
    }


async def list_contacts(
    connection: Connection, workspace: str, *, after: str, phone_key: str | None, limit: int
) -> list[Contact]:
    return [contact_from(row) for row in await connection.fetch(_LIST, workspace, after, phone_key, limit)]


async def prune(connection: Connection, now: datetime) -> None:
    for statement in _PRUNE:
        await connection.execute(statement, now, PRUNE_ROWS)


def contact_from(row: asyncpg.Record) -> Contact:
    return Contact(
        key=Key(row["workspace_id"], row["contact_id"]),
        fields=Fields(
            phone=row["phone_given"],
            country_code=row["phone_country_code"],
            calling_code=row["phone_calling_code"],
            user_id=row["user_id"],
            name=row["name"],
        ),
        firm=_word(row["firm_state"], row["firm_at"], row["firm_source"], row["firm_proof"], own=row["firm_own"]),
        told=_word(row["told_state"], row["told_at"], row["told_source"], row["told_proof"], own=False),
        version=row["version"],
        created_at=row["created_at"],
        fields_at=row["fields_at"],
        updated_at=row["updated_at"],
    )


def _word(
    state: str | None, at: datetime | None, source: str | None, proof: str | None, *, own: bool | None
) -> Word | None:
    if state is None or at is None or source is None:
        return None
    return Word(MarketingState(state), at, source, proof, bool(own))


def _memory(row: asyncpg.Record) -> Memory:
    word = _word(row["word_state"], row["word_at"], row["word_source"], None, own=row["word_own"])
    return Memory(word, row["erased_at"], row["version"])


def _row(contact: Contact) -> tuple[Any, ...]:
    fields, firm, told = contact.fields, contact.firm, contact.told
    return (
        *contact.key,
        *(fields.phone, fields.e164, fields.phone_key, fields.country_code, fields.calling_code),
        *(fields.user_id, fields.name),
        *((firm.state, firm.at, firm.source, firm.proof, firm.own) if firm else (None,) * 5),
        *((told.state, told.at, told.source, told.proof) if told else (None,) * 4),
        *(contact.version, contact.created_at, contact.fields_at, contact.updated_at),
    )


def _memory_row(memory: Memory) -> tuple[Any, ...]:
    word = memory.word
    said = (word.state, word.at, word.source, word.own) if word else (None,) * 4
    return (*said, memory.erased_at, memory.version)


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    said, stood = entry.said, entry.stood
    return (
        *entry.key,
        entry.cause,
        *(said.state, said.at, said.source, said.proof),
        *(stood.state, stood.at, stood.source),
        *(entry.by, entry.recorded_at),
    )


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows as columns, as unnest takes them."""
    return [[row[i] for row in rows] for i in range(width)]
