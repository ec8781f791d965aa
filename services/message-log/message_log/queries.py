"""What pages and API read. Every query names its workspace; lists are paged by key, never by offset."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from sendwhy.events import Line, Moment, OriginKind
from sendwhy.postgres import Connection
from sendwhy.privacy import digits_of, spellings
from sendwhy.problems import Problem
from sendwhy.reasons import ReasonCode, Service

from message_log.names import code_of_country, prefix_query

STATUSES = ("sending", "waiting", "sent", "delivered", "read", "failed")
_EVENTS_MAX = 500
_RANGES = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}

_CURSOR: TypeAdapter[tuple[datetime, str]] = TypeAdapter(tuple[datetime, str])


_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_WITHOUT_ZONE = re.compile(_DAY.pattern + r"T\d\d:\d\d(:\d\d(\.\d+)?)?")

Text = Annotated[Line, StringConstraints(max_length=256)]


def _calling_code(given: str) -> str:
    code = code_of_country(given)
    if code is None:
        raise ValueError("must be a country, as MX, or its calling code, as 52")
    return code


def _utc_unless_told(given: Any) -> Any:
    """A form's date and time has no zone; its label says UTC. A day is its beginning."""
    if not isinstance(given, str):
        return given
    if _DAY.fullmatch(given):
        return f"{given}T00:00:00Z"
    return f"{given}Z" if _WITHOUT_ZONE.fullmatch(given) else given


When = Annotated[Moment, BeforeValidator(_utc_unless_told)]
CallingCode = Annotated[str, AfterValidator(_calling_code)]


class Filters(BaseModel):
    """The filters of a message list: the same names in the API, in the pages' addresses and in CSV exports.

    `origin` is its kind; `reason!=X` excludes a reason; `country` is that of the phone's calling code; `q` is any id
    (message, wamid, contact, campaign, phone), or the beginnings of a contact's names.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="ignore")

    status: Literal["sending", "waiting", "sent", "delivered", "read", "failed"] | None = None
    reason: ReasonCode | None = None
    reason_not: ReasonCode | None = Field(default=None, alias="reason!")
    service: Service | None = None
    origin: OriginKind | None = None
    campaign: Text | None = None
    automation: Text | None = None
    template: Text | None = None
    country: CallingCode | None = None
    contact: Text | None = None
    phone: Text | None = None
    sender: Text | None = None
    q: Text | None = None
    since: When | None = Field(default=None, alias="from")
    until: When | None = Field(default=None, alias="to")
    _named: tuple[str, ...] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        """A form sends every field, the empty ones too."""
        return {name: value or None for name, value in given.items()} if isinstance(given, dict) else given

    @property
    def named(self) -> tuple[str, ...] | None:
        """The contacts that `q` names, NAMED_MAX at most; None where nobody has looked yet."""
        return self._named

    def naming(self, contacts: Sequence[str]) -> "Filters":
        filters = self.model_copy()
        filters._named = tuple(contacts)
        return filters

    @property
    def active(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    @property
    def is_in_cells(self) -> bool:
        """Whether cells tell how many there are: they know no single person or message, and not the clock."""
        return not (self.contact or self.phone or self.q or self.status in ("sending", "waiting"))

    @property
    def is_in_hours(self) -> bool:
        """Whether all that the filters ask is what became of messages, and when they were asked for."""
        return not self.active.keys() - {"status", "reason", "reason_not", "service", "since", "until"}

    @property
    def is_plain(self) -> bool:
        """Whether all messages fit, but for their time."""
        return not self.active.keys() - {"since", "until"}


# The test of each filter, `{}` for its parameter. Statuses are tested on `outcome` too: that has an index.
_TESTS = {
    "reason": "m.reason = {}",
    "reason_not": "m.reason is distinct from {}",
    "service": "m.service = {}",
    "origin": "m.origin_kind = {}",
    "campaign": "(m.origin_kind = 'campaign' and m.origin_id = {})",
    "automation": "(m.origin_kind = 'automation' and m.origin_id = {})",
    "template": "m.template = {}",
    "country": "m.calling_code = {}",
    "contact": "m.contact_id = {}",
    "phone": "m.phone = any({}::text[])",
    "sender": "m.sender_id = {}",
    "since": "m.at >= {}",
    "until": "m.at < {}",
}
_STATUS_TESTS = {
    "sending": "(m.outcome in ('open', 'accepted') and m.status = 'sending')",
    "waiting": "(m.outcome = 'open' and m.status = 'waiting')",
    "sent": "m.outcome = 'sent'",
    "delivered": "m.outcome = 'delivered'",
    "read": "m.outcome = 'read'",
    "failed": "m.outcome = 'failed'",
}


NAMED_MAX = 200
# An array that is made once, so that each column's index can still be asked (migration 0015).
_NAMED = f"array(select contacts_named({{0}}, {{1}}, {NAMED_MAX}))"


# The cells with the columns of a message; `at` is the hour. Those by what became of messages alone are far fewer.
_HOURS = """(
    select workspace_id, hour as at, outcome, reason, service, count from message_hour
    union all
    select workspace_id, hour, outcome, reason, service, count from message_cell_change)"""
CELLS = """(
    select workspace_id, hour as at, outcome, reason, service, origin_kind, origin_id, sender_id, template,
           calling_code, count from message_cell
    union all
    select workspace_id, hour, outcome, reason, service, origin_kind, origin_id, sender_id, template,
           calling_code, count from message_cell_change)"""


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """How many messages failed for a reason, as said by a service."""

    reason: str
    service: str | None
    count: int


# What the index by origin begins with.
_OF_ANY_KIND = f"m.origin_kind = any(array[{', '.join(repr(str(kind)) for kind in OriginKind)}])"


class Where:
    """Conditions with their parameters, numbered as they are added. `hours`: those on the cells' hours in which such
    messages may be; `edges`: moments within whose hours not all messages fit."""

    def __init__(self, workspace: str, filters: Filters) -> None:
        self.values: list[Any] = []
        self._workspace = self.add(workspace)
        self._tests = [f"m.workspace_id = {self._workspace}", "m.at is not null"]
        self._hours = [*self._tests]
        self.edges: list[str] = []
        # Each alone finds what a search for any id finds, by an index of its own.
        self.any_of: list[str] = []
        for name, value in filters.active.items():
            self._tests.append(self._any_id(filters) if name == "q" else self._test(name, value))
            self._hours.append(self._tests[-1])
            if name == "since":
                self._hours[-1] = f"m.at >= cell_hour(${len(self.values)})"
            elif name == "until":
                self.edges.append(f"${len(self.values)}")

    def before(self, at: datetime, message_id: str) -> None:
        """Only what stands behind that message in a list."""
        moment = self.add(at)
        self._tests.append(f"(m.at, m.message_id) < ({moment}, {self.add(message_id)})")
        self._hours.append(f"m.at <= {moment}")
        self.edges.append(moment)

    @property
    def hours(self) -> str:
        return " and ".join(self._hours)

    def add(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def also(self, test: str) -> None:
        self._tests.append(test)

    def _test(self, name: str, value: Any) -> str:
        if name == "status":
            return _STATUS_TESTS[value]
        return _TESTS[name].format(self.add(spellings(value) if name == "phone" else value))

    def _any_id(self, filters: Filters) -> str:
        value = filters.q or ""
        given = self.add(value)
        tests = [f"m.{column} = {given}" for column in ("message_id", "wamid", "contact_id")]
        tests.append(f"({_OF_ANY_KIND} and m.origin_id = {given})")
        digits = digits_of(value)
        if digits is not None and len(digits) >= 7:
            tests.append(f"m.phone = any({self.add(spellings(digits))}::text[])")
        names = prefix_query(value)
        if filters.named:
            tests.append(f"m.contact_id = any({self.add(list(filters.named))}::text[])")
        elif filters.named is None and names is not None:
            tests.append(f"m.contact_id = any({_NAMED.format(self._workspace, self.add(names))})")
        self.any_of = tests
        return f"({' or '.join(tests)})"

    def __str__(self) -> str:
        return " and ".join(self._tests)


def source_of(filters: Filters) -> str:
    """What a list or a count is read from: the table, whose index has it all, unless it is the clock that says which
    messages fit."""
    return "message_now" if filters.status in ("sending", "waiting") else "message"


def cells_of(filters: Filters) -> str:
    """The cells that tell how many fit the filters: the fewest that know what is asked."""
    return _HOURS if filters.is_in_hours else CELLS


@dataclass(frozen=True, slots=True)
class Page:
    rows: Sequence[asyncpg.Record]
    next_cursor: str | None


def to_cursor(at: datetime, key: str) -> str:
    return base64.urlsafe_b64encode(_CURSOR.dump_json((at, key))).decode().rstrip("=")


def from_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        at, key = _CURSOR.validate_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValidationError, binascii.Error, ValueError) as error:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "unknown"}) from error
    if at.tzinfo is None or "\x00" in key:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "unknown"})
    return at, key


def page_of(rows: Sequence[asyncpg.Record], limit: int, at: str, key: str) -> Page:
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, to_cursor(rows[-1][at], str(rows[-1][key])) if more else None)


# First which ones, then what is known of them.
_LIST = """
with page as materialized ({page})
select m.* from page join message_now m on m.workspace_id = page.workspace_id and m.message_id = page.message_id
order by m.at desc, m.message_id desc
"""
_PAGE = """
select m.workspace_id, m.message_id from {source} m where {where}
order by m.at desc, m.message_id desc limit {limit}
"""
# The newest of each kind of id: in the order of time, an "or" of them all would have the whole log read.
_PAGE_OF_ANY = """
select workspace_id, message_id from ({parts}) found
group by workspace_id, message_id, at order by at desc, message_id desc limit {limit}
"""
_PART_OF_ANY = """(
select m.workspace_id, m.message_id, m.at from {source} m where {where} and {test}
order by m.at desc, m.message_id desc limit {limit})"""
# Only the hours are looked at in which there is something, as many as fill the page: else a list of what is rare would
# read the whole log. Of an hour that is cut nobody knows how much of it fits.
_PAGE_BY_HOURS = """
select p.workspace_id, p.message_id from (
    select at, sum(certain) over (order by at desc) - certain as before from (
        select m.at, case when m.at = any(array[{edges}]) then 0 else sum(m.count) end as certain
        from {cells} m where {hours} group by m.at having sum(m.count) > 0) told
) h cross join lateral (
    select m.workspace_id, m.message_id, m.at from message m
    where {where} and m.at >= h.at and m.at < h.at + interval '1 hour'
    order by m.at desc, m.message_id desc limit {limit}) p
where h.before < {limit}
order by p.at desc, p.message_id desc limit {limit}
"""


def _page(filters: Filters, where: Where, limit: str) -> str:
    if where.any_of:
        parts = [
            _PART_OF_ANY.format(source=source_of(filters), where=where, test=test, limit=limit) for test in where.any_of
        ]
        return _PAGE_OF_ANY.format(parts=" union all ".join(parts), limit=limit)
    if filters.is_plain or not filters.is_in_cells:
        return _PAGE.format(source=source_of(filters), where=where, limit=limit)
    edges = ", ".join(["null::timestamptz", *(f"cell_hour({moment})" for moment in where.edges)])
    return _PAGE_BY_HOURS.format(cells=cells_of(filters), hours=where.hours, edges=edges, where=where, limit=limit)


async def list_messages(
    connection: Connection, workspace: str, filters: Filters, *, cursor: str | None = None, limit: int = 50
) -> Page:
    """The newest first."""
    where = Where(workspace, filters)
    if cursor is not None:
        where.before(*from_cursor(cursor))
    statement = _LIST.format(page=_page(filters, where, where.add(limit + 1)))
    return page_of(await connection.fetch(statement, *where.values), limit, "at", "message_id")


_NAMES = f"select {_NAMED.format('$1', '$2')}"
_KINDS_OF_ORIGIN = """
select k.kind from unnest($3::text[]) as k(kind)
where exists (select from message m where m.workspace_id = $1 and m.origin_kind = k.kind and m.origin_id = $2)
"""


async def meant(connection: Connection, workspace: str, filters: Filters) -> Filters:
    """A search for what is a campaign's or an automation's id as a filter by it: those may have a million messages.
    Any other with the contacts of that name, so that a page with several statements looks for them once."""
    if filters.q is None:
        return filters
    kinds = [row[0] for row in await connection.fetch(_KINDS_OF_ORIGIN, workspace, filters.q, list(OriginKind))]
    told = {"campaign": filters.campaign, "automation": filters.automation}
    # An id that two kinds have is searched for as any other: by one of them half of what is meant would be missing.
    if len(kinds) == 1 and kinds[0] in told and told[kinds[0]] in (None, filters.q):
        return filters.model_copy(update={"q": None, kinds[0]: filters.q})
    names = prefix_query(filters.q)
    found = [] if names is None else await connection.fetchval(_NAMES, workspace, names)
    return filters.naming(found)


def since_of(range_name: str | None) -> datetime | None:
    """Where a relative range begins; None for no bound."""
    length = _RANGES.get(range_name or "")
    return None if length is None else datetime.now(UTC) - length


async def has_messages(connection: Connection, workspace: str) -> bool:
    return bool(await connection.fetchval("select exists (select from message where workspace_id = $1)", workspace))


async def read_message(connection: Connection, workspace: str, message_id: str) -> asyncpg.Record | None:
    return await connection.fetchrow(
        "select * from message_now where workspace_id = $1 and message_id = $2", workspace, message_id
    )


_EVENTS = """
select event_id, occurred_at, service, kind, note, body, message_id, workspace_id from event
where workspace_id = $1 and message_id = $2
union all
select event_id, occurred_at, service, kind, note, body, message_id, workspace_id from event
where $3::text is not null and message_id is null and wamid = $3 and workspace_id = $1
union all
select event_id, occurred_at, service, kind, note, body, message_id, workspace_id from nobodys_events($3)
order by occurred_at, kind limit $4
"""


async def events_of(
    connection: Connection, workspace: str, message_id: str, wamid: str | None, sender_id: str | None = None
) -> Sequence[asyncpg.Record]:
    """The timeline: events that name the message, and those that only knew Meta's id for it. Of these, what nobody's
    number told is only believed of the number that the message went out by: any app may speak of any id."""
    rows: list[asyncpg.Record] = await connection.fetch(_EVENTS, workspace, message_id, wamid, _EVENTS_MAX)
    return [row for row in rows if row["workspace_id"] is not None or _tells_of(row["body"], sender_id)]


def _tells_of(body: bytes | None, sender_id: str | None) -> bool:
    """Whether an event without a workspace is of this number."""
    return body is not None and sender_id is not None and from_json(body).get("sender_id") == sender_id


_WEBHOOKS_OF = """
select webhook_id, received_at, source, kind from (
    select w.webhook_id, w.received_at, w.source, p.kind
    from webhook_part p join webhook w on w.webhook_id = p.webhook_id and w.received_at = p.received_at
    where p.workspace_id = $1 and (p.message_id = $2 or $3::text is not null and p.wamid = $3)
    union
    select webhook_id, received_at, source, kind from nobodys_webhooks($3, $4)
) told
order by received_at limit 100
"""


async def webhooks_of(
    connection: Connection, workspace: str, message_id: str, wamid: str | None, sender_id: str | None = None
) -> Sequence[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(_WEBHOOKS_OF, workspace, message_id, wamid, sender_id)
    return rows


def as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


_CONTACT = "select phone, body from known_state where topic = 'contact.updated' and key = $1"
_INBOUND = """
select event_id, at, kind, text, wamid, sender_id from inbound
where workspace_id = $1 and phone = any($2::text[])
  and ($3::timestamptz is null or (at, event_id::text) < ($3, $4))
order by at desc, event_id::text desc limit $5
"""


async def contact_is_known(connection: Connection, workspace: str, contact: str) -> bool:
    return await connection.fetchrow(_CONTACT, f"{workspace}/{contact}") is not None


async def inbound_of(
    connection: Connection, workspace: str, phones: Sequence[str], *, cursor: str | None, limit: int
) -> Sequence[asyncpg.Record]:
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    rows: list[asyncpg.Record] = await connection.fetch(_INBOUND, workspace, list(phones), at, key, limit)
    return rows


# A transaction's changes become visible with its commit, not in the order of its number: only those are read below
# which no transaction is still open, so that a position once passed never gets company.
_CHANGES = """
select m.* from message_now m
where {where} and (m.changed_by, m.message_id) > ({by}, {message_id})
  and m.changed_by < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
order by m.changed_by, m.message_id limit {limit}
"""
_POSITION = "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1"


async def changes_after(
    connection: Connection, workspace: str, filters: Filters, position: tuple[int, str], limit: int
) -> Sequence[asyncpg.Record]:
    where = Where(workspace, filters)
    by, message_id, most = where.add(position[0]), where.add(position[1]), where.add(limit)
    statement = _CHANGES.format(where=where, by=by, message_id=message_id, limit=most)
    rows: list[asyncpg.Record] = await connection.fetch(statement, *where.values)
    return rows


async def position_now(connection: Connection) -> tuple[int, str]:
    """Behind everything that is visible now."""
    return (int(await connection.fetchval(_POSITION)), "\uffff")


_WORKSPACES = """
with recursive seen as (
    (select workspace_id from message order by workspace_id limit 1)
    union all
    select (select m.workspace_id from message m where m.workspace_id > seen.workspace_id
            order by m.workspace_id limit 1)
    from seen where seen.workspace_id is not null
)
select workspace_id from seen where workspace_id is not null
union select workspace_id from known_state where workspace_id is not null and topic <> 'contact.updated'
order by workspace_id limit 1000
"""


async def workspaces_seen(connection: Connection) -> list[str]:
    return [row["workspace_id"] for row in await connection.fetch(_WORKSPACES)]


_SENDERS = "select sender_id from sender where workspace_id = $1 order by is_default desc, sender_id limit 200"
_TEMPLATES = """
select distinct split_part(t.key, '/', 2) as name from known_state t
where t.topic = 'template.updated' and split_part(t.key, '/', 1) in (select waba_id from sender where workspace_id = $1)
order by name limit 500
"""


async def senders_of(connection: Connection, workspace: str) -> list[str]:
    return [row["sender_id"] for row in await connection.fetch(_SENDERS, workspace)]


async def templates_of(connection: Connection, workspace: str) -> list[str]:
    """The names of the templates of this workspace's accounts."""
    return [row["name"] for row in await connection.fetch(_TEMPLATES, workspace)]


_ADD_SESSION = "insert into session (id_hash, token_digest, account, expires_at) values ($1, $2, $3, $4)"
_READ_SESSION = "select token_digest, account from session where id_hash = $1 and expires_at > now()"


async def add_session(
    connection: Connection, id_hash: bytes, token_digest: str | None, account: str | None, expires_at: Moment
) -> None:
    await connection.execute(_ADD_SESSION, id_hash, token_digest, account, expires_at)


async def read_session(connection: Connection, id_hash: bytes) -> asyncpg.Record | None:
    """Whose session it is: token_digest or account."""
    return await connection.fetchrow(_READ_SESSION, id_hash)


async def end_session(connection: Connection, id_hash: bytes) -> None:
    await connection.execute("delete from session where id_hash = $1", id_hash)
