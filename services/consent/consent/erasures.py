"""Erasing people: what consent itself erases, the order to the other services, and the proof of what they did.

Orders go through the outbox in the erasing transaction; their ids follow from what asked for them, so a repeat of that
orders nothing twice.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from pydantic import TypeAdapter
from pydantic_core import to_json
from sendwhy.erasure import erase_alone, report
from sendwhy.events import CustomerUpdated, ErasedRows, PersonErased, PersonErasing, event_id_of
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.privacy import UNNUMBERED_ALIAS, alias_of, spellings
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, outgoing

from consent.contacts import Erased, Key, Mark, Origin
from consent.import_store import forget_import_rows

TagOf = Callable[[Mark], bytes]

# A refused request is no decision on its message: its step begins so, and whom it was for is noted apart.
REFUSAL = "invalid/"

MESSAGES_PER_ORDER = 1000
CAUSES: Mapping[Origin, str] = {
    Origin.ERASURE: "http",
    Origin.DELETED: "shopify customers/delete",
    Origin.REDACT: "shopify customers/redact",
}
KEEP_REQUESTS = timedelta(days=90)
REPORTED_WITHIN = timedelta(minutes=10)
_TABLES = TypeAdapter(list[ErasedRows])

_DELETE_CONTACTS = """
delete from contact c using unnest($2::text[]) as gone(contact_id)
where c.workspace_id = $1 and c.contact_id = gone.contact_id
"""
_BLUR_HISTORY = """
update contact_history h set contact_id = 'erased:' || gone.tag, proof = null, cause = h.id::text, note = null,
    fields = null, overwrote = null, others = '{}'
from unnest($2::text[], $3::text[]) as gone(contact_id, tag)
where h.workspace_id = $1 and h.contact_id = gone.contact_id
"""
# Where the history of another record of the person names these.
_BLUR_OTHERS = """
update contact_history h set others = array(select unnest(h.others) except select unnest($2::text[]))
where h.workspace_id = $1 and h.others && $2::text[] and h.others <> '{}'
"""
_FORGET_NAMES = """
delete from contact_name n using unnest($2::text[]) as gone(contact_id)
where n.workspace_id = $1 and n.contact_id = gone.contact_id
"""
_REDACT_DECISIONS = """
update decision d set body = null, headers = ''
from unnest($2::text[]) as gone(message_id)
where d.workspace_id = $1 and d.message_id = gone.message_id and d.body is not null
"""
_FORGET_MESSAGES = "delete from message_of where workspace_id = $1 and tag = any($2::bytea[]) returning message_id"
# Of refusals: which of these messages were decided for nobody else. A corrected request may be for another person.
_FORGET_REFUSED = """
with gone as (delete from message_of where workspace_id = $1 and tag = any($2::bytea[]) returning message_id)
select distinct g.message_id, exists (
    select from decision d
    where d.workspace_id = $1 and d.message_id = g.message_id and not starts_with(d.step, $3)
) as is_decided from gone g
"""
_REDACT_REFUSALS = """
update decision d set body = null, headers = ''
from unnest($2::text[]) as gone(message_id)
where d.workspace_id = $1 and d.message_id = gone.message_id and starts_with(d.step, $3) and d.body is not null
"""
_FORGET_ANSWERS = """
delete from idempotency_key
where workspace_id = $1 and position(convert_to($2, 'UTF8') in coalesce(answer, '')) > 0
"""
_FORGET_REQUESTS = """
update privacy_request set contact_id = null, erasure_id = $3
where workspace_id = $1 and contact_id = any($2::text[])
"""

_ADD_ERASURE = """
insert into erasure (workspace_id, erasure_id, tag, cause, asked_by, asked_at) values ($1, $2, $3, $4, $5, $6)
on conflict do nothing
"""
_ADD_COVERED = """
insert into erasure_of (workspace_id, erasure_id, tag) select $1, $2, * from unnest($3::bytea[]) on conflict do nothing
"""
_ADD_ORDERS = """
insert into erasure_order (workspace_id, erasure_id, order_id, messages, body, ordered_at)
select $1, $2, *, $6 from unnest($3::uuid[], $4::int[], $5::bytea[])
on conflict do nothing returning order_id
"""
_IS_GIVEN = "select exists (select from erasure_order where order_id = $1)"
_EARLIER_ORDERS = """
select body from erasure_order where workspace_id = $1 and erasure_id = $2 and body is not null
"""
_LAST_OF = """
select e.erasure_id from erasure_of o join erasure e on e.workspace_id = o.workspace_id and e.erasure_id = o.erasure_id
where o.workspace_id = $1 and o.tag = $2 order by e.number desc limit 1
"""
_ADD_REPORTS = """
insert into erasure_report (order_id, service, tables, reported_at)
select * from unnest($1::uuid[], $2::text[], $3::bytea[], $4::timestamptz[]) on conflict do nothing
"""
_ERASED_AT = """
select distinct on (m.workspace_id, m.tag) m.workspace_id, m.tag, m.erased_at, e.erasure_id
from unnest($1::text[], $2::bytea[]) as asked(workspace_id, tag)
join memory m on m.workspace_id = asked.workspace_id and m.tag = asked.tag
left join erasure_of o on o.workspace_id = m.workspace_id and o.tag = m.tag
left join erasure e on e.workspace_id = o.workspace_id and e.erasure_id = o.erasure_id
where m.erased_at is not null
order by m.workspace_id, m.tag, e.number desc nulls last
"""
_ADD_REQUESTS = """
insert into privacy_request (request_id, workspace_id, kind, contact_id, erasure_id, shop, asked_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::timestamptz[])
on conflict do nothing
"""
_COUNT_UNFINISHED = """
select count(distinct o.erasure_id) from erasure_order o
where o.ordered_at between $1 and $2
  and (select count(*) from erasure_report r where r.order_id = o.order_id) < $3
"""
_PRUNE = (
    "update privacy_request set contact_id = null where contact_id is not null and asked_at < $1",
    "update erasure_order set body = null where body is not null and ordered_at < $1",
)


@dataclass(frozen=True, slots=True)
class Earlier:
    """An identity's erasure; without a number where it was before erasures had one."""

    at: datetime
    erasure_id: UUID | None

    @property
    def alias(self) -> str:
        return alias_of(self.erasure_id) if self.erasure_id else UNNUMBERED_ALIAS


def refused_mark(mark: Mark) -> Mark:
    """The identity under which is noted that a refused request was for this one."""
    return Mark(mark.workspace_id, f"{REFUSAL}{mark.kind}", mark.value)


def order_tags(tag_of: TagOf, marks: Iterable[Mark]) -> list[str]:
    """The tags by which other services know a person again (privacy.Tagger.of_person)."""
    tags: list[bytes] = []
    for mark in marks:
        if mark.kind == "phone":
            tags += [tag_of(Mark(mark.workspace_id, "digits", digits)) for digits in spellings(mark.value)]
        else:
            tags.append(tag_of(mark))
    return list(dict.fromkeys(tag.hex() for tag in tags))


async def carry_out(connection: Connection, tag_of: TagOf, erased: Collection[Erased], now: datetime) -> None:
    """Erase these contacts here, and order it everywhere. All contacts of one `asked` are one person."""
    people: dict[str, list[Erased]] = {}
    for one in erased:
        people.setdefault(one.asked.cause, []).append(one)
    for contacts in people.values():
        await _erase_person(connection, tag_of, contacts, now)


async def _erase_person(connection: Connection, tag_of: TagOf, contacts: Sequence[Erased], now: datetime) -> None:
    workspace, change = contacts[0].key.workspace_id, contacts[0].asked
    await erase_alone(connection, workspace)
    contact_tags = [tag_of(Mark(workspace, "contact", one.key.contact_id)) for one in contacts]
    erasure_id = await _number_of(connection, workspace, contact_tags[0]) if contacts[0].told_again else None
    if erasure_id is None:
        seed = f"{contact_tags[0].hex()}/{contacts[0].at.isoformat()}"
        erasure_id = event_id_of(seed, "erasure")
        cause = CAUSES[change.origin]
        await connection.execute(_ADD_ERASURE, workspace, erasure_id, contact_tags[0], cause, change.by, now)
    elif await connection.fetchval(_IS_GIVEN, _order_id(erasure_id, change.cause, 0)):
        # The same record again.
        return
    else:
        await _order_again(connection, workspace, erasure_id)
    marks = list(dict.fromkeys(mark for one in contacts for mark in one.marks))
    tags = sorted({*contact_tags, *(tag_of(mark) for mark in marks)})
    await connection.execute(_ADD_COVERED, workspace, erasure_id, tags)
    messages, tables = await _erase_here(connection, tag_of, [one.key for one in contacts], marks, erasure_id)
    orders = _orders(workspace, erasure_id, change.cause, order_tags(tag_of, marks), messages, now)
    await _give(connection, orders, tables, now)


async def _order_again(connection: Connection, workspace: str, erasure_id: UUID) -> None:
    """Give what was ordered before once more: a service that has lost an order gets it, the others report the same."""
    rows = await connection.fetch(_EARLIER_ORDERS, workspace, erasure_id)
    orders = [PersonErasing.model_validate_json(row["body"]) for row in rows]
    await add_to_outbox(connection, [(uuid4(), outgoing(one, source=Service.CONSENT)) for one in orders])


async def _number_of(connection: Connection, workspace: str, contact_tag: bytes) -> UUID | None:
    found: UUID | None = await connection.fetchval(_LAST_OF, workspace, contact_tag)
    return found


async def url_of_last(connection: Connection, tag_of: TagOf, mark: Mark) -> str:
    """The address of the proof of an identity's last erasure."""
    return url_of(mark.workspace_id, await _number_of(connection, mark.workspace_id, tag_of(mark)))


def url_of(workspace: str, erasure_id: UUID | None) -> str:
    return f"/v1/workspaces/{workspace}/erasures/{erasure_id or ''}"


async def _erase_here(
    connection: Connection, tag_of: TagOf, keys: Sequence[Key], marks: Sequence[Mark], erasure_id: UUID
) -> tuple[list[str], list[ErasedRows]]:
    workspace = keys[0].workspace_id
    ids = sorted(key.contact_id for key in keys)
    tags = sorted(tag_of(mark) for mark in marks)
    own = [tag_of(Mark(workspace, "contact", contact_id)).hex() for contact_id in ids]
    rows = await connection.fetch(_FORGET_MESSAGES, workspace, tags)
    refused_tags = sorted(tag_of(refused_mark(mark)) for mark in marks)
    refused = await connection.fetch(_FORGET_REFUSED, workspace, refused_tags, REFUSAL)
    refusals = await connection.execute(_REDACT_REFUSALS, workspace, [row["message_id"] for row in refused], REFUSAL)
    undecided = {row["message_id"] for row in refused if not row["is_decided"]}
    messages = sorted({row["message_id"] for row in rows} | undecided)
    answers = 0
    for contact_id in ids:
        answers += _count(await connection.execute(_FORGET_ANSWERS, workspace, _named_in_json(contact_id)))
    names = await connection.execute(_FORGET_NAMES, workspace, ids)
    await connection.execute(_BLUR_OTHERS, workspace, ids)
    tables = [
        _rows("contact_name", "erased", names),
        _rows("contact", "erased", await connection.execute(_DELETE_CONTACTS, workspace, ids)),
        _rows("contact_history", "blurred", await connection.execute(_BLUR_HISTORY, workspace, ids, own)),
        _rows("decision", "blurred", await connection.execute(_REDACT_DECISIONS, workspace, messages)),
        _rows("decision", "blurred", refusals),
        ErasedRows(table="message_of", act="erased", rows=len(rows) + len(refused)),
        ErasedRows(table="idempotency_key", act="erased", rows=answers),
        _rows("contact_import_refused", "erased", await forget_import_rows(connection, workspace, tags)),
        _rows("privacy_request", "blurred", await connection.execute(_FORGET_REQUESTS, workspace, ids, erasure_id)),
        ErasedRows(
            table="memory",
            act="kept",
            rows=len(tags),
            ground="keyed tags: they keep a STOP in force and refuse a re-import by accident",
        ),
    ]
    return messages, tables


def _named_in_json(contact_id: str) -> str:
    """As an answer over HTTP names its contact: the id alone might be any word of another's answer."""
    return f'"contact_id":{to_json(contact_id).decode()}'


def _rows(table: str, act: str, done: str) -> ErasedRows:
    return ErasedRows.model_validate({"table": table, "act": act, "rows": _count(done)})


def _count(done: str) -> int:
    return int(done.rpartition(" ")[2])


def _orders(
    workspace: str, erasure_id: UUID, cause: str, tags: list[str], messages: Sequence[str], now: datetime
) -> list[PersonErasing]:
    starts = range(0, max(1, len(messages)), MESSAGES_PER_ORDER)
    return [
        PersonErasing(
            event_id=_order_id(erasure_id, cause, start),
            occurred_at=now,
            workspace_id=workspace,
            erasure_id=erasure_id,
            erased_at=now,
            tags=tags,
            message_ids=list(messages[start : start + MESSAGES_PER_ORDER]),
        )
        for start in starts
    ]


def _order_id(erasure_id: UUID, cause: str, start: int) -> UUID:
    return event_id_of(f"{erasure_id}/{cause}/{start}", "person.erasing")


async def _give(
    connection: Connection, orders: Sequence[PersonErasing], tables: Sequence[ErasedRows], now: datetime
) -> None:
    """Order the others, and report our own part with the first order."""
    first = orders[0]
    new = await connection.fetch(
        _ADD_ORDERS,
        first.workspace_id,
        first.erasure_id,
        [one.event_id for one in orders],
        [len(one.message_ids) for one in orders],
        [one.to_json() for one in orders],
        now,
    )
    given = {row["order_id"] for row in new}
    told = [(one.event_id, outgoing(one, source=Service.CONSENT)) for one in orders if one.event_id in given]
    if not told:
        return
    await add_to_outbox(connection, told)
    own = [report(one, Service.CONSENT, tables if one is first else (), now) for one in orders if one.event_id in given]
    await keep_reports(connection, own)
    await add_to_outbox(connection, [(one.event_id, outgoing(one, source=Service.CONSENT)) for one in own])


async def order_late(connection: Connection, late: Iterable[tuple[str, str, Earlier]], now: datetime) -> None:
    """Order the erasure of messages that had been requested before it and come to us after it, by (workspace, message,
    erasure)."""
    by_erasure: dict[tuple[str, UUID], list[str]] = {}
    for workspace, message_id, earlier in late:
        if earlier.erasure_id is not None:
            by_erasure.setdefault((workspace, earlier.erasure_id), []).append(message_id)
    for (workspace, erasure_id), messages in sorted(by_erasure.items()):
        orders = _orders(workspace, erasure_id, "/".join(sorted(messages)), [], sorted(messages), now)
        await _give(connection, orders, (), now)


async def erasures_of(connection: Connection, tag_of: TagOf, marks: Iterable[Mark]) -> dict[Mark, Earlier]:
    """The last erasure of those of these identities that stand erased."""
    by_tag = {(mark.workspace_id, tag_of(mark)): mark for mark in marks}
    rows = await connection.fetch(_ERASED_AT, [key[0] for key in by_tag], [key[1] for key in by_tag])
    return {by_tag[row["workspace_id"], row["tag"]]: Earlier(row["erased_at"], row["erasure_id"]) for row in rows}


def erased_since(at: datetime, marks: Iterable[Mark], known: Mapping[Mark, Earlier]) -> Earlier | None:
    """The erasure of one of these identities that came after what was told at that moment."""
    return next((known[mark] for mark in marks if mark in known and at <= known[mark].at), None)


async def note_requests(connection: Connection, tag_of: TagOf, told: Sequence[tuple[str, CustomerUpdated]]) -> None:
    """Keep what shops asked for, by (workspace, event), after it was carried out."""
    redacted = {
        Mark(workspace, "contact", event.contact_id)
        for workspace, event in told
        if event.contact_id is not None and event.action == "redact"
    }
    known = await erasures_of(connection, tag_of, redacted) if redacted else {}
    rows = []
    for workspace, event in told:
        earlier = known.get(Mark(workspace, "contact", event.contact_id or ""))
        contact_id = event.contact_id if event.action == "data_request" else None
        shop = event.detail
        rows.append(
            (
                event.event_id,
                workspace,
                event.action,
                contact_id,
                earlier and earlier.erasure_id,
                shop,
                event.occurred_at,
            )
        )
    await connection.execute(_ADD_REQUESTS, *map(list, zip(*rows, strict=True)))


async def count_unfinished(connection: Connection, now: datetime) -> int:
    """Erasures that some service should have reported on by now. Orders are on their topic no longer than 14 days."""
    oldest, latest = now - KEEP_REQUESTS, now - REPORTED_WITHIN
    return int(await connection.fetchval(_COUNT_UNFINISHED, oldest, latest, len(Service)))


async def prune(connection: Connection, now: datetime) -> None:
    for statement in _PRUNE:
        await connection.execute(statement, now - KEEP_REQUESTS)


async def keep_reports(connection: Connection, reports: Sequence[PersonErased]) -> None:
    await connection.execute(
        _ADD_REPORTS,
        [one.order_id for one in reports],
        [one.service.value for one in reports],
        [_TABLES.dump_json(one.tables) for one in reports],
        [one.occurred_at for one in reports],
    )


async def on_reports(connection: Connection, records: Sequence[Record[PersonErased]]) -> Sequence[Outgoing]:
    await keep_reports(connection, [record.event for record in records])
    return ()
