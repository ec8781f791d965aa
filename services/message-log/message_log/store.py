"""The projection's tables: one statement per table and batch."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import field, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from asyncpg import Record as Row
from asyncpg import UniqueViolationError
from msgspec.json import Decoder, Encoder
from msgspec.json import encode as json_of
from pydantic_core import to_json
from sendwhy.postgres import Connection
from sendwhy.privacy import digits_of
from sendwhy.values import value_class

from message_log.decide import MessageState, erased, merge
from message_log.deliveries import Part
from message_log.names import calling_code_of, folded

MessageKey = tuple[str, str]
PARTITIONED = {"event": "occurred_at", "webhook": "received_at", "webhook_part": "received_at"}
DAYS_AHEAD = 3
PRUNE_BATCH = 5000
# In bytes: the widest entry of an index has at most the 2,704 that PostgreSQL has room for. Nothing of a template that
# exists is cut off, as Meta's names are ASCII; the state has all of what was asked for.
TEMPLATE_BYTES, NODE_BYTES = 512, 768
# Between so many records, whoever else waits for the process gets a turn.
AT_ONCE = 200
ROWS_AT_ONCE = 500
T = TypeVar("T")


def _model_as_json(value: Any) -> Any:
    """Of what a state holds only reasons are models."""
    return value.model_dump(mode="json", exclude_defaults=True)


def _model_of_json(kind: type[Any], value: Any) -> Any:
    return kind.model_validate_json(json_of(value))


_ENCODER, _DECODER = Encoder(enc_hook=_model_as_json), Decoder(MessageState, dec_hook=_model_of_json)

_LOCK_MESSAGES = """
select m.workspace_id, m.message_id, m.state, m.erased_at
from unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)
join message m on m.workspace_id = asked.workspace_id and m.message_id = asked.message_id
order by m.workspace_id, m.message_id
for update of m
"""
_COLUMNS = {
    "state": "bytea",
    "at": "timestamptz",
    "updated_at": "timestamptz",
    "left_at": "timestamptz",
    "outcome": "text",
    "reason": "text",
    "service": "text",
    "origin_kind": "text",
    "origin_id": "text",
    "node_id": "text",
    "contact_id": "text",
    "phone": "text",
    "calling_code": "text",
    "sender_id": "text",
    "template": "text",
    "purpose": "text",
    "wamid": "text",
    "waiting_cause": "text",
    "waiting_since": "timestamptz",
    "waiting_until": "timestamptz",
    "resend_of": "text",
}
_SET = ", ".join(f"{name} = n.{name}" for name in _COLUMNS)
_ARRAYS = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_COLUMNS.values(), start=3))
_ADD_MESSAGES = f"""
insert into message (workspace_id, message_id, {", ".join(_COLUMNS)})
select * from unnest($1::text[], $2::text[], {_ARRAYS})
on conflict do nothing
returning workspace_id, message_id
"""  # noqa: S608 - only names from the table above
_UPDATE_MESSAGES = f"""
update message m set changed_by = pg_current_xact_id()::text::bigint, {_SET}
from unnest($1::text[], $2::text[], {_ARRAYS}) as n(workspace_id, message_id, {", ".join(_COLUMNS)})
where m.workspace_id = n.workspace_id and m.message_id = n.message_id
"""  # noqa: S608 - as above


_SEE_CODES = """
insert into calling_code_seen (workspace_id, calling_code) select * from unnest($1::text[], $2::text[])
on conflict do nothing
"""


def bytes_of(state: MessageState) -> bytes:
    return _ENCODER.encode(state)


def state_of(stored: bytes) -> MessageState:
    return _DECODER.decode(stored)


class Fold(NamedTuple):
    """What became of a message's state; before: None, nothing was known."""

    key: MessageKey
    before: MessageState | None
    after: MessageState


async def fold_messages(
    connection: Connection, told: Mapping[MessageKey, MessageState], note: Callable[[Fold], None] | None = None
) -> set[MessageKey]:
    """Join what a batch told into the stored states; returns the messages whose person is erased. `note` is called
    with each change.

    Replicas meet on one message: rows are locked in order of their key before those that aren't there are added, so
    that none waits for another in a circle. What another adds or forgets meanwhile is looked for again.
    """
    without_person: set[MessageKey] = set()
    left = sorted(told)
    while left:
        folds = await _fold_into(await connection.fetch(_LOCK_MESSAGES, *map(list, zip(*left, strict=True))), told)
        changed = [fold for fold in folds if fold.after != fold.before]
        for some in _parts_of(changed):
            await connection.execute(_UPDATE_MESSAGES, *_rows_of(some))
        there = {fold.key for fold in folds}
        new = [Fold(key, None, told[key]) for key in left if key not in there]
        added = await _add_messages(connection, new)
        changed += [fold for fold in new if fold.key in added]
        if note is not None:
            for fold in changed:
                note(fold)
        without_person |= {fold.key for fold in (*folds, *changed) if fold.after.erased}
        left = [fold.key for fold in new if fold.key not in added]
    return without_person


async def _fold_into(rows: Iterable[Row], told: Mapping[MessageKey, MessageState]) -> list[Fold]:
    folds: list[Fold] = []
    for row in rows:
        key = (row["workspace_id"], row["message_id"])
        before = None if row["state"] is None else state_of(row["state"])
        after = told[key] if before is None else merge(before, told[key])
        if row["erased_at"] is not None:
            after = merge(after, erased(row["erased_at"]))
        folds.append(Fold(key, before, after))
        if len(folds) % AT_ONCE == 0:
            await asyncio.sleep(0)
    return folds


async def _add_messages(connection: Connection, folds: Sequence[Fold]) -> set[MessageKey]:
    """Returns those that weren't there."""
    added: set[MessageKey] = set()
    for some in _parts_of(folds):
        rows = await connection.fetch(_ADD_MESSAGES, *_rows_of(some))
        added |= {(row["workspace_id"], row["message_id"]) for row in rows}
    return added


def _rows_of(folds: Iterable[Fold]) -> Iterator[list[Any]]:
    return map(list, zip(*((*fold.key, *_columns_of(fold.after)) for fold in folds), strict=True))


def _parts_of(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """In parts whose making doesn't hold up whoever else waits for the process."""
    return (rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE))


_WITHOUT_PERSON = """
select m.workspace_id, m.message_id from unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)
join message m on m.workspace_id = asked.workspace_id and m.message_id = asked.message_id
where m.erased_at is not null
"""


async def without_person(connection: Connection, keys: Iterable[MessageKey]) -> set[MessageKey]:
    """Those of these messages whose person is erased."""
    asked = sorted(keys)
    rows = await connection.fetch(_WITHOUT_PERSON, [key[0] for key in asked], [key[1] for key in asked])
    return {(row["workspace_id"], row["message_id"]) for row in rows}


async def see_codes(connection: Connection, codes: Set[tuple[str, str]]) -> None:
    """Note the calling codes (by workspace) that there are."""
    if codes:
        await connection.execute(_SEE_CODES, *map(list, zip(*sorted(codes), strict=True)))


_NO_ORIGIN: Mapping[str, Any] = {}


def calling_code(phone: str | None) -> str | None:
    """Of a number in international form; one without a plus may begin with anything."""
    return _code_of(digits_of(phone)) if phone and phone.startswith("+") else None


def _code_of(digits: str | None) -> str | None:
    return _code_of_start(digits[:3]) if digits else None


# No calling code is longer than three digits.
_code_of_start = lru_cache(maxsize=1024)(calling_code_of)


def _at_most(length: int, text: str | None) -> str | None:
    """As many of its characters as fit into so many bytes."""
    if text is None or len(text) * 4 <= length:
        return text
    return text.encode()[:length].decode(errors="ignore")


def _columns_of(state: MessageState) -> tuple[Any, ...]:
    """The values of _COLUMNS, in their order."""
    known = {name: fact.value for name, fact in state.facts.items()}.get
    origin = known("origin", _NO_ORIGIN)
    verdict, waiting = state.verdict, state.waits
    return (
        bytes_of(state),
        state.first_at,
        state.updated_at,
        state.left_at,
        state.outcome,
        verdict.reason.code if verdict else None,
        verdict.service if verdict else None,
        origin.get("kind"),
        origin.get("id"),
        _at_most(NODE_BYTES, origin.get("node_id")),
        known("contact_id"),
        digits_of(known("phone")),
        calling_code(known("phone")),
        known("sender_id"),
        _at_most(TEMPLATE_BYTES, known("template")),
        known("purpose"),
        known("wamid"),
        waiting.cause if waiting else None,
        waiting.since if waiting else None,
        waiting.until if waiting else None,
        known("resend_of"),
    )


class EventRow(NamedTuple):
    """As the columns of `_ADD_EVENTS`."""

    event_id: UUID
    occurred_at: datetime
    workspace_id: str | None
    message_id: str | None
    wamid: str | None
    service: str
    kind: str
    body: bytes | None
    note: str | None = None


_ADD_EVENTS = """
insert into event (event_id, occurred_at, workspace_id, message_id, wamid, service, kind, body, note)
select * from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                     $8::bytea[], $9::text[])
"""


async def add_events(connection: Connection, rows: Sequence[EventRow]) -> None:
    if rows:
        ordered = sorted(rows, key=lambda row: (row.occurred_at, row.event_id.int))
        await _add_new(connection, [(_ADD_EVENTS, some) for some in _parts_of(ordered)])


_UNLESS_THERE = "on conflict do nothing"


async def _add_new(connection: Connection, inserts: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
    """Add rows of which hardly ever one is there: PostgreSQL takes less where it needn't look for each first,
    and confirm it afterwards. If one is there, as in a batch that is read again, each is looked for after all."""
    try:
        async with connection.transaction():
            await _insert(connection, inserts)
    except UniqueViolationError:
        await _insert(connection, inserts, _UNLESS_THERE)


async def _insert(
    connection: Connection, inserts: Sequence[tuple[str, Sequence[tuple[Any, ...]]]], unless: str = ""
) -> None:
    for insert, rows in inserts:
        if rows:
            await connection.execute(insert + unless, *map(list, zip(*rows, strict=True)))


_DEAD_LETTERS_KNOWN = """
select event_id, occurred_at from event where event_id = any($1::uuid[]) and kind = 'dead_letter'
"""
_DELETE_DEAD_LETTERS = """
delete from event e using unnest($1::uuid[], $2::timestamptz[]) as gone(event_id, occurred_at)
where e.event_id = gone.event_id and e.occurred_at = gone.occurred_at and e.kind = 'dead_letter'
"""


async def add_dead_letters(connection: Connection, rows: Sequence[EventRow]) -> None:
    """Each record that was put aside once, as it was first: also if it was read, and put aside, again."""
    await connection.execute("select pg_advisory_xact_lock(hashtext('dead letters'))")
    found = await connection.fetch(_DEAD_LETTERS_KNOWN, [row.event_id for row in rows])
    known = {row["event_id"]: row["occurred_at"] for row in found}
    first: dict[UUID, EventRow] = {}
    for row in sorted(rows, key=lambda row: row.occurred_at, reverse=True):
        if row.event_id not in known or row.occurred_at < known[row.event_id]:
            first[row.event_id] = row
    later = sorted(first.keys() & known.keys())
    await connection.execute(_DELETE_DEAD_LETTERS, later, [known[one] for one in later])
    await add_events(connection, list(first.values()))


@value_class
class WebhookRow:
    webhook_id: UUID
    received_at: datetime
    source: str
    app: str | None
    refused: str | None
    size: int
    body: bytes | None
    parts: tuple[Part, ...]
    headers: dict[str, str] = field(default_factory=dict)


_ADD_WEBHOOKS = """
insert into webhook (webhook_id, received_at, source, app, refused, size, body, headers)
select * from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bytea[],
                     $8::jsonb[])
"""
# Whose a part is changes with the senders (`set_senders`), which would not see what is added beside that transaction.
_SENDERS_STAY = "select pg_advisory_xact_lock_shared(hashtext('senders'))"
_SENDERS_CHANGE = "select pg_advisory_xact_lock(hashtext('senders'))"
# A number speaks through its app, as webhook-ingest has it (one of which nobody told that: through any, since then
# only one is configured), and for its own workspace.
_SPEAKS = """({0}.app_id is null or {0}.app_id = n.app)
    and {0}.workspace_id = coalesce(n.named_workspace_id, {0}.workspace_id)"""
# A part belongs to the workspace whose number it names, or, if none, to that of its account's first number that speaks.
_WHOSE = f"""coalesce(s.workspace_id, (
    select w.workspace_id from sender w
    where n.sender_id is null and w.waba_id = n.waba_id and {_SPEAKS.format("w")} order by w.sender_id limit 1))"""  # noqa: S608 - as above
_NUMBER = f"left join sender s on s.sender_id = n.sender_id and {_SPEAKS.format('s')}"
_ADD_PARTS = f"""
insert into webhook_part (webhook_id, received_at, position, kind, workspace_id, sender_id, waba_id, wamid, message_id,
                          named_workspace_id)
select n.webhook_id, n.received_at, n.position, n.kind, coalesce(n.workspace_id, {_WHOSE}), n.sender_id, n.waba_id,
       n.wamid, n.message_id, n.named_workspace_id
from unnest($1::uuid[], $2::timestamptz[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::text[])
    as n(webhook_id, received_at, position, kind, workspace_id, sender_id, waba_id, wamid, message_id,
         named_workspace_id, app)
{_NUMBER}
"""  # noqa: S608 - only the texts above


async def add_webhooks(connection: Connection, rows: Sequence[WebhookRow]) -> None:
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: (row.received_at, row.webhook_id.int))
    values = [
        (r.webhook_id, r.received_at, r.source, r.app, r.refused, r.size, r.body, to_json(r.headers).decode())
        for r in ordered
    ]
    parts = [
        (
            r.webhook_id,
            r.received_at,
            n,
            p.kind,
            p.workspace_id,
            p.sender_id,
            p.waba_id,
            p.wamid,
            p.message_id,
            p.named_workspace_id,
            r.app,
        )
        for r in ordered
        for n, p in enumerate(r.parts)
    ]
    if parts:
        await connection.execute(_SENDERS_STAY)
    await _add_new(connection, [(_ADD_WEBHOOKS, values), (_ADD_PARTS, parts)])


@value_class
class InboundRow:
    event_id: UUID
    workspace_id: str
    sender_id: str
    phone: str | None
    wamid: str
    at: datetime
    kind: str
    text: str | None
    user_id: str | None = None

    @property
    def writer(self) -> str | None:
        """By what the person is known in `inbound`: their number's digits, else their WhatsApp user id."""
        return digits_of(self.phone) or self.user_id


def joined(before: InboundRow, row: InboundRow) -> InboundRow:
    """Two readings of one message as one: the last stands, but for what only an earlier one told."""
    return replace(
        row,
        phone=row.phone if row.phone is not None else before.phone,
        user_id=row.user_id if row.user_id is not None else before.user_id,
        at=min(before.at, row.at),
        kind=before.kind if row.kind == "other" else row.kind,
        text=row.text if row.text is not None else before.text,
    )


# As `joined` does it.
_ADD_INBOUND = """
insert into inbound as i (event_id, workspace_id, sender_id, phone, wamid, at, kind, text)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
                     $8::text[])
on conflict (sender_id, wamid) do update
set event_id = excluded.event_id, workspace_id = excluded.workspace_id, phone = coalesce(excluded.phone, i.phone),
    at = least(i.at, excluded.at), kind = case when excluded.kind = 'other' then i.kind else excluded.kind end,
    text = coalesce(excluded.text, i.text)
"""


async def add_inbound(connection: Connection, rows: Sequence[InboundRow]) -> None:
    """What people wrote: each message once, however many events tell of it."""
    last: dict[tuple[str, str], InboundRow] = {}
    for row in rows:
        before = last.get((row.sender_id, row.wamid))
        last[(row.sender_id, row.wamid)] = row if before is None else joined(before, row)
    if last:
        values = [
            (r.event_id, r.workspace_id, r.sender_id, r.writer, r.wamid, r.at, r.kind, r.text)
            for _, r in sorted(last.items())
        ]
        await connection.execute(_ADD_INBOUND, *map(list, zip(*values, strict=True)))


@value_class
class HoldRow:
    workspace_id: str
    scope: str
    scope_id: str
    event_id: UUID
    told_at: datetime
    cause: str
    since: datetime
    until: datetime | None


_SET_HOLDS = """
insert into hold (workspace_id, scope, scope_id, event_id, told_at, cause, since, until)
select * from unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::text[], $7::timestamptz[],
                     $8::timestamptz[])
on conflict (workspace_id, scope, scope_id) do update
set (event_id, told_at, cause, since, until)
    = row (excluded.event_id, excluded.told_at, excluded.cause, excluded.since, excluded.until)
where (excluded.told_at, excluded.event_id) > (hold.told_at, hold.event_id)
"""


async def set_holds(connection: Connection, rows: Sequence[HoldRow]) -> None:
    """Keep the last hold of each scope."""
    last: dict[tuple[str, str, str], HoldRow] = {}
    for row in sorted(rows, key=lambda row: (row.told_at, row.event_id)):
        last[(row.workspace_id, row.scope, row.scope_id)] = row
    if last:
        values = [(*key, r.event_id, r.told_at, r.cause, r.since, r.until) for key, r in sorted(last.items())]
        await connection.execute(_SET_HOLDS, *map(list, zip(*values, strict=True)))


@value_class
class KnownState:
    """One value of a compacted topic; `body` None is a tombstone."""

    key: str
    version: int
    workspace_id: str | None
    phone: str | None
    body: bytes | None
    name: str | None = None
    user_id: str | None = None


_SET_STATES = """
insert into known_state (topic, key, version, workspace_id, phone, body, name, user_id)
select $1, * from unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::text[])
on conflict (topic, key) do update
set version = excluded.version, workspace_id = excluded.workspace_id, phone = excluded.phone, body = excluded.body,
    name = excluded.name, user_id = excluded.user_id
where excluded.version > known_state.version
"""
_DELETE_STATES = "delete from known_state where topic = $1 and key = any($2::text[])"


async def set_states(connection: Connection, topic: str, states: Sequence[KnownState]) -> None:
    """Apply a batch in its order: one key's records stand in one partition, so a tombstone really is the last word."""
    last: dict[str, KnownState] = {}
    for state in states:
        before = last.get(state.key)
        if before is None or None in (before.body, state.body) or state.version > before.version:
            last[state.key] = state
    gone = sorted(key for key, state in last.items() if state.body is None)
    if gone:
        await connection.execute(_DELETE_STATES, topic, gone)
    values = [
        (s.key, s.version, s.workspace_id, digits_of(s.phone), s.body, folded(s.name), s.user_id)
        for _, s in sorted(last.items())
        if s.body
    ]
    if values:
        await connection.execute(_SET_STATES, topic, *map(list, zip(*values, strict=True)))


@value_class
class SenderRow:
    sender_id: str
    workspace_id: str
    waba_id: str
    version: int
    is_default: bool
    free_since: datetime | None
    app_id: str | None = None


_SET_SENDERS = """
insert into sender (sender_id, workspace_id, waba_id, version, is_default, free_since, app_id)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::timestamptz[], $7::text[])
on conflict (sender_id) do update
set (workspace_id, waba_id, version, is_default, free_since, app_id)
    = row (excluded.workspace_id, excluded.waba_id, excluded.version, excluded.is_default, excluded.free_since,
           excluded.app_id)
where excluded.version > sender.version
"""
_SPEAKERS = "select sender_id, workspace_id, waba_id, app_id from sender where sender_id = any($1::text[])"
# What names these numbers ($1) is nobody's, or stands under the workspaces that they were of ($2); what names none is
# of their accounts ($3). Rows from before 0018 that name a message name the workspace where they stand.
_ASSIGN = f"""
update webhook_part t set workspace_id = now.workspace_id, named_workspace_id = now.named_workspace_id from (
    select n.webhook_id, n.received_at, n.position, n.named_workspace_id, {_WHOSE} as workspace_id from (
        select p.webhook_id, p.received_at, p.position, p.sender_id, p.waba_id, w.app,
               coalesce(p.named_workspace_id, case when p.message_id is not null then p.workspace_id end)
                   as named_workspace_id
        from (select * from webhook_part where workspace_id is null and sender_id = any($1::text[])
              union all
              select * from webhook_part where workspace_id = any($2::text[]) and sender_id = any($1::text[])
              union all
              select * from webhook_part where sender_id is null and waba_id = any($3::text[])) p
        join webhook w on w.webhook_id = p.webhook_id and w.received_at = p.received_at) n
    {_NUMBER}) now
where t.webhook_id = now.webhook_id and t.received_at = now.received_at and t.position = now.position
  and t.workspace_id is distinct from now.workspace_id
"""  # noqa: S608 - only the texts above


async def set_senders(connection: Connection, senders: Sequence[SenderRow], gone: Sequence[str]) -> None:
    """Whose the stored deliveries are follows, so that it is the same whichever of the two was read first."""
    await connection.execute(_SENDERS_CHANGE)
    last = {sender.sender_id: sender for sender in senders}
    told = sorted({*last, *gone})
    before = {tuple(row) for row in await connection.fetch(_SPEAKERS, told)}
    if gone:
        await connection.execute("delete from sender where sender_id = any($1::text[])", sorted(gone))
    values = [
        (s.sender_id, s.workspace_id, s.waba_id, s.version, s.is_default, s.free_since, s.app_id)
        for _, s in sorted(last.items())
    ]
    if values:
        await connection.execute(_SET_SENDERS, *map(list, zip(*values, strict=True)))
    after = {tuple(row) for row in await connection.fetch(_SPEAKERS, told)}
    if changed := before ^ after:
        numbers, _, accounts, _ = map(set, zip(*changed, strict=True))
        left = {workspace for _, workspace, _, _ in before - after}
        await connection.execute(_ASSIGN, sorted(numbers), sorted(left), sorted(accounts))


# Partitions are attached, not created in place: that locks out no reader and no writer of the other days. What had
# fallen into the default partition meanwhile moves over.
_MAKE_PARTITION = """
create table {name} (like {table} including defaults including constraints including indexes);
with moved as (delete from {table}_default where {column} >= '{start}' and {column} < '{end}' returning *)
insert into {name} select * from moved;
alter table {table} attach partition {name} for values from ('{start}') to ('{end}');
"""
_PARTITIONS = "select relid::text as name from pg_partition_tree($1) where isleaf"


async def keep_partitions(connection: Connection, retention_days: Mapping[str, int], today: date) -> list[str]:
    """Create the coming days' partitions, and those of days that landed in the default one; drop what is past
    retention. Returns the names that were made or dropped. Safe to run anywhere, any number of times."""
    done: list[str] = []
    for table, column in PARTITIONED.items():
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(hashtext($1))", f"partitions of {table}")
            done += await _keep_partitions_of(connection, table, column, today, retention_days[table])
    return done


async def _keep_partitions_of(
    connection: Connection, table: str, column: str, today: date, retention_days: int
) -> list[str]:
    rows = await connection.fetch(_PARTITIONS, table)
    there = {row["name"] for row in rows}
    oldest = today - timedelta(days=retention_days)
    await connection.execute(f"delete from {table}_default where {column} < $1", _start_of(oldest))  # noqa: S608
    wanted = {today + timedelta(days=ahead) for ahead in range(-1, DAYS_AHEAD + 1)}
    # Days beyond the horizon stay in the default partition: a sender with a wrong clock makes no tables.
    stray = f"select distinct ({column} at time zone 'utc')::date from {table}_default where {column} < $1 limit 100"  # noqa: S608
    horizon = _start_of(today + timedelta(days=DAYS_AHEAD + 1))
    wanted |= {row[0] for row in await connection.fetch(stray, horizon)}
    missing = sorted(day for day in wanted if day >= oldest and _name(table, day) not in there)
    if missing:
        # A row that a stage adds between the moving of a day's rows and its partition would belong to both.
        await connection.execute(f"lock table {table}_default in access exclusive mode")
    for day in missing:
        await connection.execute(_partition_script(table, column, day))
    dropped = sorted(name for name in there if name != f"{table}_default" and name < _name(table, oldest))
    for name in dropped:
        await connection.execute(f"drop table {name}")
    return [*(_name(table, day) for day in missing), *dropped]


def _partition_script(table: str, column: str, day: date) -> str:
    start, end = _start_of(day).isoformat(), _start_of(day + timedelta(days=1)).isoformat()
    return _MAKE_PARTITION.format(name=_name(table, day), table=table, column=column, start=start, end=end)


def _name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


def _start_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


_PRUNE = (
    "delete from event_of where (workspace_id, tag, event_id) in"
    " (select workspace_id, tag, event_id from event_of where occurred_at < $1 limit {limit})",
    "delete from inbound where event_id in (select event_id from inbound where at < $1 limit {limit})",
    "delete from session where id_hash in (select id_hash from session where expires_at < now() limit {limit})",
)


async def prune(connection: Connection, before: datetime) -> None:
    """Delete what people wrote before that moment, and sessions that are over; a bounded part at a time."""
    for statement in _PRUNE:
        arguments = (before,) if "$1" in statement else ()
        await connection.execute(statement.format(limit=PRUNE_BATCH), *arguments)


_EMPTY_DEAD_LETTERS = """
update event set body = null where kind = 'dead_letter' and body is not null and occurred_at < $1
"""


async def empty_dead_letters(connection: Connection, before: datetime) -> None:
    await connection.execute(_EMPTY_DEAD_LETTERS, before)
