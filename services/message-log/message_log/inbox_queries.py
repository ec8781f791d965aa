"""The inbox: who wrote and who was answered, by person; a thread's two directions; templates to answer with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncpg import Record
from pydantic import ValidationError
from sendwhy.events import ContactUpdated, TemplateUpdated
from sendwhy.postgres import Connection
from sendwhy.privacy import spellings

from message_log.queries import as_uuid, from_cursor, to_cursor

WINDOW = timedelta(hours=24)
TEMPLATES_MAX = 500


@dataclass(frozen=True, slots=True)
class Whom:
    """The person at the other end: a contact, or only numbers (digits) of which no contact is known. `phones` has all
    forms that stand for their numbers, and their WhatsApp user ids; `number` is the one to show, and to answer a
    stranger at."""

    contact_id: str | None
    phones: Sequence[str]
    name: str | None = None
    number: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Until when free text may be sent from this number: 24 hours after the person last wrote to it."""

    sender_id: str
    until: datetime

    def is_open(self, now: datetime) -> bool:
        return now < self.until


@dataclass(frozen=True, slots=True)
class Head:
    """A thread in the list: the last that the person wrote, and the last answer (a row of message_now)."""

    whom: Whom
    wrote: Record | None
    sent: Record | None

    @property
    def at(self) -> datetime:
        return max(_at(row) for row in (self.wrote, self.sent) if row is not None)

    @property
    def waits_for_answer(self) -> bool:
        return self.wrote is not None and self.wrote["at"] == self.at


_CONTACTS_BY_PHONE = """
select k.phone, k.user_id, substr(k.key, length($1) + 2) as contact_id, k.body from known_state k
where k.topic = 'contact.updated' and k.workspace_id = $1 and k.phone = any($2::text[]) order by k.phone, k.key
"""
_CONTACTS_BY_USER = """
select distinct on (k.user_id) k.user_id, k.phone, substr(k.key, length($1) + 2) as contact_id, k.body
from known_state k
where k.topic = 'contact.updated' and k.workspace_id = $1 and k.user_id = any($2::text[])
order by k.user_id, k.phone is null, k.key
"""
_CONTACTS_BY_MESSAGE = """
select distinct on (m.phone) m.phone, m.contact_id from message m
where m.workspace_id = $1 and m.phone = any($2::text[]) and m.contact_id is not null order by m.phone, m.at desc
"""
_CONTACTS = """
select substr(k.key, length($1) + 2) as contact_id, k.phone, k.user_id, k.body from known_state k
where k.topic = 'contact.updated' and k.key = any($2::text[])
"""
_PHONES_USED = """
select asked.contact_id, used.phone from unnest($2::text[]) as asked(contact_id)
cross join lateral (
    select distinct phone from message
    where workspace_id = $1 and contact_id = asked.contact_id and phone is not null limit 20
) used
"""
_USERS_AT = """
select distinct phone, user_id from known_state
where topic = 'contact.updated' and workspace_id = $1 and phone = any($2::text[]) and user_id is not null
"""


async def contacts_at(connection: Connection, workspace: str, writers: Iterable[str]) -> dict[str, Whom]:
    """Who these are (numbers' digits and user ids), as far as known: by the contacts' own numbers, else by where
    messages went. A user id is its contact's, and with a number it is as if they had written under that."""
    asked = set(writers)
    users = sorted(one for one in asked if not one.isdigit())
    rows = await connection.fetch(_CONTACTS_BY_USER, workspace, users) if users else []
    by_user = {row["user_id"]: row for row in rows}
    phones = {one for one in asked if one.isdigit()} | {row["phone"] for row in rows if row["phone"]}
    found = await _contacts_at(connection, workspace, phones)
    for user in users:
        row = by_user.get(user)
        if row is None:
            found[user] = Whom(None, [user])
        elif row["phone"]:
            found[user] = found[row["phone"]]
        else:
            found[user] = Whom(row["contact_id"], [user], _name_in(row["body"]))
    return found


async def _contacts_at(connection: Connection, workspace: str, phones: Iterable[str]) -> dict[str, Whom]:
    forms = {phone: spellings(phone) for phone in phones}
    asked = sorted({form for several in forms.values() for form in several})
    known: dict[str, tuple[str, str | None]] = {
        row["phone"]: (row["contact_id"], None)
        for row in await connection.fetch(_CONTACTS_BY_MESSAGE, workspace, asked)
    }
    rows = await connection.fetch(_CONTACTS_BY_PHONE, workspace, asked)
    # The first of each number.
    known |= {row["phone"]: (row["contact_id"], _name_in(row["body"])) for row in reversed(rows)}
    found: dict[str, Whom] = {}
    for phone, several in forms.items():
        own = next((form for form in several if form in known), None)
        names = [*several, *sorted({row["user_id"] for row in rows if row["phone"] in several and row["user_id"]})]
        found[phone] = Whom(known[own][0], names, known[own][1], own) if own else Whom(None, names, None, phone)
    return found


async def contact_called(connection: Connection, workspace: str, contact: str) -> Whom:
    return (await contacts_called(connection, workspace, [contact]))[contact]


async def contacts_called(connection: Connection, workspace: str, contacts: Iterable[str]) -> dict[str, Whom]:
    """These contacts with all numbers that they have or had; without any where nobody knows one."""
    phones: dict[str, set[str]] = {contact: set() for contact in sorted(contacts)}
    keys = [f"{workspace}/{contact}" for contact in phones]
    rows = {row["contact_id"]: row for row in await connection.fetch(_CONTACTS, workspace, keys)}
    used = await connection.fetch(_PHONES_USED, workspace, list(phones))
    for one in (*rows.values(), *used):
        if one["phone"]:
            phones[one["contact_id"]].add(one["phone"])
    forms = {contact: sorted({form for phone in own for form in spellings(phone)}) for contact, own in phones.items()}
    asked = sorted({form for own in forms.values() for form in own})
    users_at = await connection.fetch(_USERS_AT, workspace, asked) if asked else []
    found: dict[str, Whom] = {}
    for contact, own in forms.items():
        row = rows.get(contact)
        users = {each["user_id"] for each in users_at if each["phone"] in own}
        users |= {row["user_id"]} if row and row["user_id"] else set()
        number = row["phone"] if row and row["phone"] else min(phones[contact], default=None)
        found[contact] = Whom(contact, [*own, *sorted(users)], _name_in(row["body"]) if row else None, number)
    return found


_STRANGER = "select phone from inbound where workspace_id = $1 and event_id = $2"


async def who_wrote(connection: Connection, workspace: str, event_id: str) -> Whom | None:
    """The person behind something that was written; None where nobody is."""
    key = as_uuid(event_id)
    phone = None if key is None else await connection.fetchval(_STRANGER, workspace, key)
    return None if phone is None else (await contacts_at(connection, workspace, [phone]))[phone]


def _name_in(body: bytes) -> str | None:
    try:
        return ContactUpdated.model_validate_json(body).name
    except ValidationError:
        return None


# Each stands where its latest word is: read along the index, so that a page costs what it shows.
_WROTE = """
select i.event_id, i.phone, i.at, i.kind, i.text, i.sender_id from inbound i
where i.workspace_id = $1 and i.phone is not null
  and ($2::timestamptz is null or (i.at, i.event_id::text) < ($2, $3))
  and not exists (select from inbound n where n.workspace_id = $1 and n.phone = i.phone
                  and (n.at, n.event_id) > (i.at, i.event_id))
order by i.at desc, i.event_id desc limit $4
"""
_ANSWERED = """
select m.message_id, m.contact_id, m.phone, m.at from message m
where m.workspace_id = $1 and m.origin_kind = 'inbox' and coalesce(m.contact_id, m.phone) is not null
  and ($2::timestamptz is null or (m.at, m.message_id) < ($2, $3))
  and not exists (select from message n where n.workspace_id = $1 and n.origin_kind = 'inbox'
                  and coalesce(n.contact_id, n.phone) = coalesce(m.contact_id, m.phone)
                  and (n.at, n.message_id) > (m.at, m.message_id))
order by m.at desc, m.message_id desc limit $4
"""
_LAST_WROTE = """
select distinct on (phone) event_id, phone, at, kind, text, sender_id from inbound
where workspace_id = $1 and phone = any($2::text[]) order by phone, at desc
"""
_LAST_ANSWERS = """
select distinct on (coalesce(m.contact_id, m.phone)) m.* from message_now m
where m.workspace_id = $1 and m.origin_kind = 'inbox' and (m.contact_id = any($2::text[]) or m.phone = any($3::text[]))
order by coalesce(m.contact_id, m.phone), m.at desc
"""


@dataclass(frozen=True, slots=True)
class HeadPage:
    heads: Sequence[Head]
    next_cursor: str | None


async def list_heads(connection: Connection, workspace: str, *, cursor: str | None, limit: int) -> HeadPage:
    """Threads, the one with the latest word first. Each stands where its latest word is, once."""
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    wrote = await connection.fetch(_WROTE, workspace, at, key, limit + 1)
    answered = await connection.fetch(_ANSWERED, workspace, at, key, limit + 1)
    people = await contacts_at(connection, workspace, {row["phone"] for row in (*wrote, *answered) if row["phone"]})
    # An answer to somebody without a number was refused, or went to their user id; it stands in their contact's thread.
    nowhere = {row["contact_id"] for row in answered if row["contact_id"] is not None and not row["phone"]}
    called = await contacts_called(connection, workspace, nowhere) if nowhere else {}
    found = [(row["at"], str(row["event_id"]), people[row["phone"]]) for row in wrote]
    found += [(row["at"], row["message_id"], _answered_whom(row, people, called)) for row in answered]
    found.sort(key=lambda each: each[:2], reverse=True)
    more = to_cursor(*found[limit - 1][:2]) if len(found) > limit else None
    heads = await _heads(connection, workspace, [whom for _, _, whom in found[:limit]])
    shown: dict[str, Head] = {}
    for moment, _, whom in found[:limit]:
        head = heads.get(_key_of(whom))
        # Where its other direction is later, it stood further up, here or on a page before.
        if head is not None and head.at == moment:
            shown.setdefault(_key_of(whom), head)
    return HeadPage(list(shown.values()), more)


def _answered_whom(row: Record, people: dict[str, Whom], called: dict[str, Whom]) -> Whom:
    if row["contact_id"] in called:
        return called[row["contact_id"]]
    known = people.get(row["phone"] or "")
    if row["contact_id"] is None:
        return known or Whom(None, [])
    name = known.name if known is not None and known.contact_id == row["contact_id"] else None
    return Whom(row["contact_id"], known.phones if known else [], name, row["phone"])


def _key_of(whom: Whom) -> str:
    return f"contact {whom.contact_id}" if whom.contact_id is not None else f"phone {whom.phones[0]}"


async def _heads(connection: Connection, workspace: str, people: Sequence[Whom]) -> dict[str, Head]:
    phones = sorted({phone for whom in people for phone in whom.phones})
    contacts = sorted({whom.contact_id for whom in people if whom.contact_id is not None})
    wrote = await connection.fetch(_LAST_WROTE, workspace, phones)
    sent = await connection.fetch(_LAST_ANSWERS, workspace, contacts, phones)
    heads = {}
    for whom in people:
        own = [row for row in wrote if row["phone"] in whom.phones]
        answers = [row for row in sent if _is_to(row, whom)]
        head = Head(whom, max(own, key=_at, default=None), max(answers, key=_at, default=None))
        if head.wrote is not None or head.sent is not None:
            heads[_key_of(whom)] = head
    return heads


def _is_to(row: Record, whom: Whom) -> bool:
    return row["contact_id"] == whom.contact_id if row["contact_id"] is not None else row["phone"] in whom.phones


def _at(row: Record) -> datetime:
    moment: datetime = row["at"]
    return moment


_WINDOW = """
select sender_id, at from inbound where workspace_id = $1 and phone = any($2::text[]) order by at desc limit 1
"""


async def window_of(connection: Connection, workspace: str, whom: Whom) -> Window | None:
    """That of the number to which the person wrote last; None where they never wrote."""
    row = await connection.fetchrow(_WINDOW, workspace, list(whom.phones))
    return None if row is None else Window(row["sender_id"], row["at"] + WINDOW)


_SENT_TO = """
select m.* from message_now m where m.workspace_id = $1 and {whose}
  and ($3::timestamptz is null or (m.at, m.message_id) < ($3, $4))
order by m.at desc, m.message_id desc limit $5
"""
_SENT_TO_CONTACT = _SENT_TO.format(whose="m.contact_id = $2")
_SENT_TO_PHONES = _SENT_TO.format(whose="m.phone = any($2::text[])")


async def sent_to(
    connection: Connection, workspace: str, whom: Whom, *, cursor: str | None, limit: int
) -> Sequence[Record]:
    """What was sent to the person, the newest first."""
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    statement: str
    asked: str | list[str]
    if whom.contact_id is not None:
        statement, asked = _SENT_TO_CONTACT, whom.contact_id
    else:
        statement, asked = _SENT_TO_PHONES, list(whom.phones)
    rows: list[Record] = await connection.fetch(statement, workspace, asked, at, key, limit)
    return rows


_REQUESTS = """
select distinct on (message_id) message_id, body from event
where workspace_id = $1 and message_id = any($2::text[]) and kind = 'requested' and body is not null
order by message_id, occurred_at
"""


async def requests_of(connection: Connection, workspace: str, message_ids: Sequence[str]) -> dict[str, bytes]:
    """The requests of these messages as they came; an erased person's, and those past retention, are missing."""
    rows = await connection.fetch(_REQUESTS, workspace, list(message_ids))
    return {row["message_id"]: row["body"] for row in rows}


_TEMPLATES = """
select k.body from known_state k
where k.topic = 'template.updated' and split_part(k.key, '/', 1) in (select waba_id from sender where workspace_id = $1)
  and ($2::text is null or split_part(k.key, '/', 1) = (select waba_id from sender where sender_id = $2))
order by k.key limit $3
"""


async def templates_of(connection: Connection, workspace: str, sender_id: str | None = None) -> list[TemplateUpdated]:
    """The templates of the workspace's accounts, or of the account that a number belongs to."""
    rows = await connection.fetch(_TEMPLATES, workspace, sender_id, TEMPLATES_MAX)
    return [TemplateUpdated.model_validate_json(row["body"]) for row in rows]
