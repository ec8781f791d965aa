"""What pages and API read of contacts and templates: the whole states that consent and dispatcher published.

Names stand within states and in no index, so a search looks through a bounded number of contacts and says how far.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from asyncpg import Record
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from sendwhy.events import ContactUpdated, MarketingState, Moment, TemplateUpdated
from sendwhy.http import cursor_of, position_of
from sendwhy.postgres import Connection
from sendwhy.privacy import digits_of, spellings
from sendwhy.problems import Problem

from message_log.queries import Text
from message_log.view import Viewer

# So many contacts are looked through for one page at most.
SCANNED_MAX = 50_000
_DIGITS_MIN = 4


class ContactFilters(BaseModel):
    """`q`: a part of the id, the name or the phone. `unreadable`: only whose phone can't be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    q: Text | None = None
    state: MarketingState | None = None
    unreadable: Literal["yes"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        return {name: value or None for name, value in given.items()} if isinstance(given, dict) else given

    @property
    def is_active(self) -> bool:
        return any((self.q, self.state, self.unreadable))


class ContactRow(BaseModel):
    """A contact as last told by consent. `phone` in E.164, masked for viewers; null where `phone_given` can't be
    read."""

    contact_id: str
    name: str | None
    phone: str | None
    phone_given: str | None
    marketing_state: MarketingState
    since: Moment
    source: str


@dataclass(frozen=True, slots=True)
class ContactPage:
    """`scanned`: how many contacts were looked through for it."""

    items: list[ContactRow]
    next_cursor: str | None
    scanned: int


# JSON text with an escaped NUL can't be turned into PostgreSQL's text, so such a state is found by its key alone.
_LIST = """
with looked as (
    select key, phone, body from known_state
    where topic = 'contact.updated' and workspace_id = $1 and key > $2 order by key limit $7
), told as (
    select key, phone, body, case when position('\\u0000'::text in convert_from(body, 'UTF8')) = 0
                                  then convert_from(body, 'UTF8')::json end as state
    from looked
)
select (select max(key) from looked) as last_key, (select count(*) from looked) as scanned, found.key, found.body
from (values (1)) one left join lateral (
    select key, body from told
    where ($3::text is null or position(lower($3) in lower(substr(key, length($1) + 2))) > 0
           or position(lower($3) in lower(state ->> 'name')) > 0
           or phone = any($9::text[]) or position($4::text in phone) > 0)
      and ($5::text is null or state ->> 'marketing_state' = $5)
      and (not $6 or state ->> 'phone' is null and state ->> 'phone_given' is not null)
    order by key limit $8
) found on true
order by found.key
"""


async def list_contacts(
    connection: Connection,
    workspace: str,
    filters: ContactFilters,
    viewer: Viewer,
    *,
    cursor: str | None = None,
    limit: int = 50,
) -> ContactPage:
    """In the order of their keys."""
    after = _after(cursor, workspace) if cursor else f"{workspace}/"
    digits = digits_of(filters.q) if filters.q else None
    is_phone = digits is not None and len(digits) >= _DIGITS_MIN
    rows = await connection.fetch(
        _LIST,
        workspace,
        after,
        filters.q,
        # Parts of numbers only for those who see numbers: one digit after the other, a mask could be guessed away.
        digits if is_phone and viewer.sees_phones else None,
        filters.state,
        filters.unreadable is not None,
        SCANNED_MAX if filters.is_active else limit + 1,
        limit + 1,
        spellings(filters.q) if filters.q and is_phone else [],
    )
    found = [row for row in rows if row["key"] is not None]
    shown = found[:limit]
    if len(found) > limit:
        following = cursor_of(shown[-1]["key"])
    elif filters.is_active and rows[0]["scanned"] == SCANNED_MAX:
        following = cursor_of(rows[0]["last_key"])
    else:
        following = None
    items = [one for row in shown if (one := _contact(row, viewer)) is not None]
    return ContactPage(items, following, rows[0]["scanned"])


async def all_contacts(
    connect: Callable[[], Any], workspace: str, filters: ContactFilters, viewer: Viewer, limit: int
) -> AsyncIterator[list[ContactRow]]:
    """Page by page, each with a connection of its own."""
    cursor: str | None = None
    while True:
        async with connect() as connection:
            page = await list_contacts(connection, workspace, filters, viewer, cursor=cursor, limit=limit)
        yield page.items
        if (cursor := page.next_cursor) is None:
            return


def _after(cursor: str, workspace: str) -> str:
    key = position_of(cursor)
    if not key.startswith(f"{workspace}/") or "\x00" in key:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "unknown"})
    return key


def _contact(row: Record, viewer: Viewer) -> ContactRow | None:
    try:
        told = ContactUpdated.model_validate_json(row["body"])
    except ValidationError:
        return None
    return ContactRow(
        contact_id=told.contact_id,
        name=told.name,
        phone=viewer.phone(told.phone),
        phone_given=viewer.phone(told.phone_given),
        marketing_state=told.marketing_state,
        since=told.since,
        source=told.source,
    )


_TEMPLATES = """
select k.body from known_state k
where k.topic = 'template.updated' and split_part(k.key, '/', 1) = any(
    array(select waba_id from sender where workspace_id = $1))
order by k.key limit 2000
"""
_SENDERS = """
select sender_id, waba_id, is_default from sender where workspace_id = $1 order by not is_default, sender_id
"""


@dataclass(frozen=True, slots=True)
class Sendable:
    """What a message of a workspace can be sent with: its numbers with their accounts, the default first, and all
    templates of those accounts."""

    accounts: dict[str, str]
    templates: list[TemplateUpdated]

    @property
    def senders(self) -> list[str]:
        return list(self.accounts)

    def templates_of(self, sender_id: str | None) -> list[TemplateUpdated]:
        """Those of a number's account, of the default number's where none is named."""
        account = self.accounts.get(sender_id or next(iter(self.accounts), ""))
        return [one for one in self.templates if one.waba_id == account]


async def sendable(connection: Connection, workspace: str) -> Sendable:
    rows = await connection.fetch(_TEMPLATES, workspace)
    senders = await connection.fetch(_SENDERS, workspace)
    return Sendable(
        accounts={row["sender_id"]: row["waba_id"] for row in senders},
        templates=[one for row in rows if (one := _template(row["body"])) is not None],
    )


def _template(body: bytes) -> TemplateUpdated | None:
    try:
        return TemplateUpdated.model_validate_json(body)
    except ValidationError:
        return None
