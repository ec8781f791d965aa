"""Consent's tables. Every function works inside the caller's transaction, with one statement a table and batch."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from types import MappingProxyType
from typing import Any
from uuid import UUID

import asyncpg
from pydantic_core import to_json
from sendwhy import privacy
from sendwhy.events import GENERATED_ID_PREFIX, MarketingState, SenderUpdated, TemplateUpdated
from sendwhy.postgres import (
    Connection,
    Decision,
    MessageKey,
    decisions_added,
    delete_in_steps,
    stored,
    write_together,
)
from sendwhy.topics import Outgoing
from sendwhy.values import value_class

from consent import erasures
from consent.contacts import (
    OWN_ID_LENGTH,
    Book,
    Change,
    Contact,
    Entry,
    Key,
    Mark,
    Memory,
    Person,
    Word,
)
from consent.fields import Fields, PhoneSetter

MAX_HOPS = 64

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
_LISTING = """
select c.* from unnest($1::text[], $2::text[]) as asked(workspace_id, name)
join contact_name n on n.workspace_id = asked.workspace_id and n.name = asked.name
join contact c on c.workspace_id = n.workspace_id and c.contact_id = n.contact_id
"""

_MEMORIES = """
select m.* from unnest($1::text[], $2::bytea[]) as asked(workspace_id, tag)
join memory m on m.workspace_id = asked.workspace_id and m.tag = asked.tag
"""

_TOLD = {"state": "text", "at": "timestamptz", "source": "text", "proof": "text"}
_FIRM = {**_TOLD, "own": "boolean"}
_TEXTS = (
    *("workspace_id", "contact_id", "phone_given", "phone", "phone_key", "phone_country_code", "phone_calling_code"),
    *("user_id", "name", "language", "address_country", "external_ids"),
)
_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_TEXTS, "text"),
        **{f"firm_{name}": kind for name, kind in _FIRM.items()},
        **{f"told_{name}": kind for name, kind in _TOLD.items()},
        "version": "bigint",
        **dict.fromkeys(("created_at", "fields_at", "updated_at"), "timestamptz"),
        **dict.fromkeys(("uid", "person_id"), "uuid"),
        **{f"person_firm_{name}": kind for name, kind in _FIRM.items()},
        **{f"person_told_{name}": kind for name, kind in _TOLD.items()},
        "phone_set_origin": "text",
        "phone_set_by": "text",
        "phone_set_at": "timestamptz",
    }
)
# An array can't be unnested as one cell: external ids come as lines, and none of them holds a line break.
_LINES = "string_to_array(external_ids, chr(10))"
_SAVE_CONTACTS = f"""
insert into contact ({", ".join(_COLUMNS)})
select {", ".join(_LINES if name == "external_ids" else name for name in _COLUMNS)}
from unnest({", ".join(f"${i}::{kind}[]" for i, kind in enumerate(_COLUMNS.values(), 1))}) as new({", ".join(_COLUMNS)})
on conflict (workspace_id, contact_id) do update set
    {", ".join(f"{name} = excluded.{name}" for name in list(_COLUMNS)[2:] if name != "uid")}
"""  # noqa: S608 - names of our own columns

_DELETE_NAMES = """
delete from contact_name n using unnest($1::text[], $2::text[]) as renamed(workspace_id, contact_id)
where n.workspace_id = renamed.workspace_id and n.contact_id = renamed.contact_id
"""
_ADD_NAMES = """
insert into contact_name (workspace_id, name, contact_id) select * from unnest($1::text[], $2::text[], $3::text[])
"""

_SAVE_MEMORIES = """
insert into memory (workspace_id, tag, word_state, word_at, word_source, word_own, erased_at, version, user_id)
select * from unnest($1::text[], $2::bytea[], $3::text[], $4::timestamptz[], $5::text[], $6::boolean[],
                     $7::timestamptz[], $8::bigint[], $9::text[])
on conflict (workspace_id, tag) do update set word_state = excluded.word_state, word_at = excluded.word_at,
    word_source = excluded.word_source, word_own = excluded.word_own, erased_at = excluded.erased_at,
    version = excluded.version, user_id = excluded.user_id
"""

_ADD_HISTORY = """
insert into contact_history (workspace_id, contact_id, cause, said_state, said_at, source, proof,
                             stood_state, stood_at, stood_source, by, recorded_at, kind, origin, note, fields,
                             overwrote, others)
select workspace_id, contact_id, cause, said_state, said_at, source, proof, stood_state, stood_at, stood_source, by,
       recorded_at, kind, origin, note, fields, overwrote, string_to_array(others, chr(10))
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
            $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[], $13::text[], $14::text[], $15::text[],
            $16::jsonb[], $17::jsonb[], $18::text[])
  as new(workspace_id, contact_id, cause, said_state, said_at, source, proof, stood_state, stood_at, stood_source, by,
         recorded_at, kind, origin, note, fields, overwrote, others)
on conflict do nothing
"""

_REFUSALS = """
select d.step, d.topic, d.key, d.body, d.headers
from unnest($1::text[], $2::text[], $3::text[]) as asked(workspace_id, message_id, step)
join decision d on d.workspace_id = asked.workspace_id and d.message_id = asked.message_id and d.step = asked.step
"""
# Of messages whose decisions are added as the first of several writes.
_ADD_MESSAGES = """
insert into message_of (workspace_id, tag, message_id, prune_after)
select new.* from unnest($1::text[], $2::bytea[], $3::text[], $4::timestamptz[])
    as new(workspace_id, tag, message_id, prune_after)
where exists (
    select 1 from write_0 added where added.workspace_id = new.workspace_id and added.message_id = new.message_id
)
on conflict do nothing
"""
_ADDED = "select workspace_id, message_id from write_0"

_SHOP_COUNTRIES = """
select workspace_id, shop_country from workspace_setting
where workspace_id = any($1::text[]) and shop_country is not null
"""
_SETTING = "select * from workspace_setting where workspace_id = $1"
_SAVE_SETTING = """
insert into workspace_setting (workspace_id, shop_country, updated_by, updated_at)
values ($1, $2, $3, clock_timestamp())
on conflict (workspace_id) do update set shop_country = excluded.shop_country, updated_by = excluded.updated_by,
    updated_at = excluded.updated_at
where workspace_setting.shop_country is distinct from excluded.shop_country
"""
_SENDERS_AND_TEMPLATES = """
select workspace_id, sender_id, is_default, waba_id, null as name, null as language, null as category
from sender where workspace_id = any($1::text[])
union all
select null, null, null, t.waba_id, t.name, t.language, t.category
from unnest($2::text[], $3::text[]) as asked(name, language)
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

_PRUNE_MESSAGES = """
delete from message_of where ctid = any(array(select ctid from message_of where prune_after < $1 limit $2))
"""

# What one cause did to the consent of several records of a person is told once.
_HISTORY = """
select h.* from contact_history h
where h.workspace_id = $1 and h.contact_id = any($2::text[]) and h.id < $3
  and ($4::timestamptz is null or h.recorded_at <= $4)
  and (h.fields is not null or not exists (
    select 1 from contact_history o
    where o.workspace_id = $1 and o.contact_id = any($2::text[]) and o.cause = h.cause
      and (o.id > h.id or o.fields is not null)
  ))
order by h.id desc limit $5
"""
_STOOD_AT = """
select distinct on (h.workspace_id, h.contact_id)
       h.workspace_id, h.contact_id, h.stood_state, h.stood_at, h.stood_source
from unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
join contact_history h on h.workspace_id = asked.workspace_id and h.contact_id = asked.contact_id
where h.recorded_at <= $3
order by h.workspace_id, h.contact_id, h.id desc
"""
_CHANGED_SINCE = """
select distinct on (h.workspace_id, h.contact_id, f.field) h.workspace_id, h.contact_id, f.field, f.old
from unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
join contact_history h on h.workspace_id = asked.workspace_id and h.contact_id = asked.contact_id
cross join lateral jsonb_to_recordset(h.fields) as f(field text, old text)
where h.recorded_at > $3 and h.fields is not null
order by h.workspace_id, h.contact_id, f.field, h.id
"""
# Records that a message made are left out where another record of the person has a name.
_LIST = f"""
select * from contact c where workspace_id = $1 and contact_id > $2 and ($3::text is null or phone_key = $3)
  and (not starts_with(contact_id, '{GENERATED_ID_PREFIX}') or not exists (
    select 1 from contact o where o.person_id = c.person_id
      and not starts_with(o.contact_id, '{GENERATED_ID_PREFIX}')
  ))
order by contact_id limit $4
"""  # noqa: S608 - a constant of ours
_UNREADABLE = """
select * from contact
where workspace_id = $1 and contact_id > $2 and phone_given is not null and phone_key is null
order by contact_id limit $3
"""
_OF_PERSONS = "select * from contact where person_id = any($1::uuid[])"
_BY_OWN_ID = """
select c.* from unnest($1::text[], $2::uuid[]) as asked(workspace_id, uid)
join contact o on o.uid = asked.uid and o.workspace_id = asked.workspace_id
join contact c on c.person_id = o.person_id
"""


class Tagger:
    """Keyed tags of identities: without the key, nobody can try out phone numbers against them."""

    def __init__(self, privacy_key: str) -> None:
        self._tag = privacy.Tagger(privacy_key)

    def __call__(self, mark: Mark) -> bytes:
        return self._tag(*mark)


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


async def contacts_named(connection: Connection, marks: Iterable[Mark]) -> list[Contact]:
    """As `contacts_of`; a name that is no contact's id may be one of its external ids or the person's own id."""
    asked = sorted(set(marks))
    found = await contacts_of(connection, asked)
    ids = {contact.key for contact in found}
    others = [mark for mark in asked if mark.kind == "contact" and Key(mark.workspace_id, mark.value) not in ids]
    if not others:
        return found
    uids = [(mark.workspace_id, uid) for mark in others if (uid := _as_uuid(mark.value)) is not None]
    rows = await connection.fetch(_BY_OWN_ID, *_columns(uids, 2)) if uids else []
    return [*found, *await _contacts_listing(connection, others), *map(contact_from, rows)]


async def _contacts_listing(connection: Connection, marks: Iterable[Mark]) -> list[Contact]:
    """The contacts that have these ids among their external ids."""
    asked = sorted({(mark.workspace_id, mark.value) for mark in marks if mark.kind == "contact"})
    rows = await connection.fetch(_LISTING, *_columns(asked, 2)) if asked else []
    return [contact_from(row) for row in rows]


async def contacts_of_persons(connection: Connection, contacts: Iterable[Contact]) -> list[Contact]:
    """All records of the persons that these contacts are."""
    persons = sorted({contact.person.id for contact in contacts})
    return [contact_from(row) for row in await connection.fetch(_OF_PERSONS, persons)]


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) == OWN_ID_LENGTH else None
    except ValueError:
        return None


async def open_book(connection: Connection, tagger: Tagger, changes: Sequence[Change], now: datetime) -> Book:
    """Load all that `changes` reach: contacts found by one identity may share another one with further contacts."""
    book = Book(now)
    seen: set[Mark] = set()
    for _ in range(MAX_HOPS):
        new = book.marks_for(changes) - seen
        if not new:
            break
        seen |= new
        contacts = await contacts_of(connection, new) + await _contacts_listing(connection, new)
        book.load(contacts, await memories_of(connection, tagger, new))
    return book


async def memories_of(connection: Connection, tagger: Tagger, marks: Iterable[Mark]) -> dict[Mark, Memory]:
    """What is kept of these identities beside their contacts."""
    by_tag = {(mark.workspace_id, tagger(mark)): mark for mark in marks}
    rows = await connection.fetch(_MEMORIES, [key[0] for key in by_tag], [key[1] for key in by_tag])
    return {by_tag[row["workspace_id"], row["tag"]]: _memory(row) for row in rows}


async def save_book(connection: Connection, tagger: Tagger, book: Book) -> None:
    """Write what changed: contacts, memories, history, erasures."""
    await erasures.carry_out(connection, tagger, book.erased.values(), book.now)
    if contacts := sorted(book.changed(), key=lambda contact: contact.key):
        await connection.execute(_SAVE_CONTACTS, *_columns([_row(contact) for contact in contacts], len(_COLUMNS)))
    if renamed := sorted(book.renamed(), key=lambda contact: contact.key):
        await connection.execute(_DELETE_NAMES, *_columns([contact.key for contact in renamed], 2))
        names = [
            (one.key.workspace_id, name, one.key.contact_id) for one in renamed for name in one.fields.external_ids
        ]
        await connection.execute(_ADD_NAMES, *_columns(names, 3))
    if memories := book.changed_memories():
        rows = [(mark.workspace_id, tagger(mark), *_memory_row(memory)) for mark, memory in memories.items()]
        await connection.execute(_SAVE_MEMORIES, *_columns(sorted(rows, key=itemgetter(0, 1)), 9))
    if book.history:
        rows = [_entry_row(entry) for _, entry in sorted(book.history.items())]
        await connection.execute(_ADD_HISTORY, *_columns(rows, 18))


async def add_decided(
    connection: Connection,
    tagger: Tagger,
    decisions: Sequence[Decision],
    messages: Iterable[tuple[MessageKey, Iterable[Mark], datetime]],
) -> set[MessageKey]:
    """As `add_decisions`; of those that are added, note for whom they were decided: ((workspace, message), identities,
    when it may be forgotten)."""
    rows = sorted(
        (workspace, tagger(mark), message_id, prune_after)
        for (workspace, message_id), marks, prune_after in messages
        for mark in marks
    )
    messages_added = (_ADD_MESSAGES, _columns(rows, 4))
    added = await write_together(connection, decisions_added(decisions), messages_added, told=_ADDED)
    return {(row["workspace_id"], row["message_id"]) for row in added}


async def refusals_of(connection: Connection, asked: Sequence[tuple[str, str, str]]) -> dict[str, Outgoing]:
    """The refusals that stand, by step; of (workspace, message, step)."""
    rows = await connection.fetch(_REFUSALS, *_columns(asked, 3))
    return {row["step"]: stored(row) for row in rows}


async def shop_countries_of(connection: Connection, workspaces: Iterable[str]) -> dict[str, str]:
    rows = await connection.fetch(_SHOP_COUNTRIES, sorted(set(workspaces)))
    return {row["workspace_id"]: row["shop_country"] for row in rows}


async def setting_of(connection: Connection, workspace: str) -> asyncpg.Record | None:
    return await connection.fetchrow(_SETTING, workspace)


async def save_setting(connection: Connection, workspace: str, shop_country: str | None, by: str) -> None:
    await connection.execute(_SAVE_SETTING, workspace, shop_country, by)


@value_class
class Senders:
    """The default sender of each workspace; the WABA of each sender, by workspace and sender; the category of each
    template, by WABA, name and language."""

    defaults: dict[str, str]
    wabas: dict[tuple[str, str], str]
    categories: dict[tuple[str, str, str], str]


async def senders_of(
    connection: Connection, workspaces: Iterable[str], templates: Iterable[tuple[str, str]]
) -> Senders:
    """The senders of these workspaces, and the templates of these names and languages in all accounts."""
    asked = sorted(set(templates))
    rows = await connection.fetch(_SENDERS_AND_TEMPLATES, sorted(set(workspaces)), *_columns(asked, 2))
    found = Senders({}, {}, {})
    for workspace, sender_id, is_default, waba, name, language, category in rows:
        if workspace is None:
            found.categories[waba, name, language] = category
            continue
        found.wabas[workspace, sender_id] = waba
        if is_default:
            found.defaults[workspace] = sender_id
    return found


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


async def history_of(
    connection: Connection, keys: Sequence[Key], *, before: int, until: datetime | None, limit: int
) -> list[asyncpg.Record]:
    """The history of one person's records, newest first, of ids below `before`, as far as recorded by `until`."""
    ids = [key.contact_id for key in keys]
    return list(await connection.fetch(_HISTORY, keys[0].workspace_id, ids, before, until, limit))


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


async def phone_fields_at(
    connection: Connection, keys: Iterable[Key], moment: datetime
) -> dict[Key, dict[str, str | None]]:
    """What those of the phone's fields were at `moment` that have changed since."""
    rows = await connection.fetch(_CHANGED_SINCE, *_columns(sorted(set(keys)), 2), moment)
    olds: dict[Key, dict[str, str | None]] = {}
    for row in rows:
        olds.setdefault(Key(row["workspace_id"], row["contact_id"]), {})[row["field"]] = row["old"]
    return olds


async def unreadable_of(connection: Connection, workspace: str, *, after: str, limit: int) -> list[Contact]:
    """Contacts whose phone can't be read as it is, in the order of their ids."""
    return [contact_from(row) for row in await connection.fetch(_UNREADABLE, workspace, after, limit)]


async def list_contacts(
    connection: Connection, workspace: str, *, after: str, phone_key: str | None, limit: int
) -> list[Contact]:
    return [contact_from(row) for row in await connection.fetch(_LIST, workspace, after, phone_key, limit)]


async def prune(connection: Connection, now: datetime) -> None:
    await delete_in_steps(connection, _PRUNE_MESSAGES, now)


def contact_from(row: asyncpg.Record) -> Contact:
    return Contact(
        key=Key(row["workspace_id"], row["contact_id"]),
        fields=Fields(
            phone=row["phone_given"],
            country_code=row["phone_country_code"],
            calling_code=row["phone_calling_code"],
            user_id=row["user_id"],
            name=row["name"],
            language=row["language"],
            address_country=row["address_country"],
            external_ids=tuple(row["external_ids"]),
        ),
        firm=_word_in(row, "firm"),
        told=_word_in(row, "told"),
        version=row["version"],
        created_at=row["created_at"],
        fields_at=row["fields_at"],
        updated_at=row["updated_at"],
        uid=row["uid"],
        person=Person(row["person_id"], _word_in(row, "person_firm"), _word_in(row, "person_told")),
        phone_setter=_setter(row),
    )


def _setter(row: asyncpg.Record) -> PhoneSetter | None:
    if row["phone_set_origin"] is None:
        return None
    return PhoneSetter(row["phone_set_origin"], row["phone_set_by"], row["phone_set_at"])


def _word_in(row: asyncpg.Record, prefix: str) -> Word | None:
    if (state := row[prefix + "_state"]) is None:
        return None
    own = row[prefix + "_own"] if prefix.endswith("firm") else False
    return _word(state, row[prefix + "_at"], row[prefix + "_source"], row[prefix + "_proof"], own=own)


def _word(
    state: str | None, at: datetime | None, source: str | None, proof: str | None, *, own: bool | None
) -> Word | None:
    if state is None or at is None or source is None:
        return None
    return Word(MarketingState(state), at, source, proof, bool(own))


def _memory(row: asyncpg.Record) -> Memory:
    word = _word(row["word_state"], row["word_at"], row["word_source"], None, own=row["word_own"])
    return Memory(word, row["erased_at"], row["version"], row["user_id"])


def _row(contact: Contact) -> tuple[Any, ...]:
    fields, person, setter = contact.fields, contact.person, contact.phone_setter
    return (
        *contact.key,
        *(fields.phone, fields.e164, fields.phone_key, fields.country_code, fields.calling_code),
        *(fields.user_id, fields.name, fields.language, fields.address_country, "\n".join(fields.external_ids)),
        *_firm_row(contact.firm),
        *_told_row(contact.told),
        *(contact.version, contact.created_at, contact.fields_at, contact.updated_at, contact.uid, person.id),
        *_firm_row(person.firm),
        *_told_row(person.told),
        *((setter.origin, setter.by, setter.at) if setter else (None,) * 3),
    )


def _firm_row(word: Word | None) -> tuple[Any, ...]:
    return (*_told_row(word), word.own if word else None)


def _told_row(word: Word | None) -> tuple[Any, ...]:
    return (word.state, word.at, word.source, word.proof) if word else (None,) * 4


def _memory_row(memory: Memory) -> tuple[Any, ...]:
    word = memory.word
    said = (word.state, word.at, word.source, word.own) if word else (None,) * 4
    return (*said, memory.erased_at, memory.version, memory.user_id)


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    said, stood = entry.said, entry.stood
    return (
        *entry.key,
        entry.cause,
        *(said.state, said.at, said.source, said.proof),
        *(stood.state, stood.at, stood.source),
        *(entry.by, entry.recorded_at, entry.kind, entry.origin, entry.note),
        *(_json(entry.fields or None), _json(entry.overwrote), "\n".join(entry.others)),
    )


def _json(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows as columns, as unnest takes them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
