"""A contact's history over HTTP: what was said of the person's consent, what became of the phone, who merged with whom.

It is the union over all records of the person; what one cause did to several of them is told once.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, TypeAdapter
from sendwhy.access import Role
from sendwhy.events import ContactId, MarketingState, Moment
from sendwhy.http import Caller, Cursor, Viewer, cursor_of, position_of
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from consent import people, store
from consent.contacts import EntryKind
from consent.fields import FieldChange, PhoneSetter

PAGE_MAX = 500
_FIELDS: TypeAdapter[tuple[FieldChange, ...]] = TypeAdapter(tuple[FieldChange, ...])
_SETTER: TypeAdapter[PhoneSetter] = TypeAdapter(PhoneSetter)


def _spaces_are_pluses(value: Any) -> Any:
    # In a query string a plus is easily lost, and a time zone has one.
    return value.replace(" ", "+") if isinstance(value, str) and "T" in value else value


PastMoment = Annotated[Moment, BeforeValidator(_spaces_are_pluses)]


class PhoneFieldChange(BaseModel):
    """`field`: phone (as given), phone_country_code or phone_calling_code. Without the right to see numbers, a phone's
    last two digits only."""

    field: str
    old: str | None
    new: str | None


class Overwrote(BaseModel):
    """The correction by hand that a change undid: who had made it, when, and whether by put or by suggestion."""

    by: str
    at: Moment
    origin: str


class HistoryEntry(BaseModel):
    """`said`: the state that somebody told; `stood`: the one that held after it.

    `kind`: consent, phone (nothing was said of consent), merged (`others` became one person with `contact_id`) or
    parted. `cause` names what led to it: a wamid, import/<id>/<row>, put/…, operator/…, suggestion/….
    """

    contact_id: str
    kind: EntryKind
    said: MarketingState
    at: Moment
    source: str
    proof: str | None
    note: str | None
    stood: MarketingState
    by: str
    origin: str
    cause: str
    fields: list[PhoneFieldChange]
    overwrote: Overwrote | None
    others: list[str]
    recorded_at: Moment


class Standing(BaseModel):
    """The state that held, since when, and who had said it."""

    marketing_state: MarketingState
    since: Moment | None
    source: str


class HistoryPage(BaseModel):
    """Newest first. With `at`: what was recorded up to that moment, and `standing`, the contact's state at it."""

    items: list[HistoryEntry]
    next_cursor: str | None
    standing: Standing | None = None


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}/contacts")

    @router.get("/{contact_id:path}/history", response_model=HistoryPage)
    async def get_history(
        caller: Viewer,
        contact_id: ContactId,
        at: PastMoment | None = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    ) -> HistoryPage:
        before = _position(cursor) if cursor else 2**63 - 1
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            contact = await people.contact_named(connection, caller.workspace, contact_id)
            records = await people.records_of(connection, contact)
            keys = [record.key for record in records]
            rows = await store.history_of(connection, keys, before=before, until=at, limit=limit)
            words = await store.words_at(connection, [contact.key], at) if at else {}
        standing = None
        if at:
            word = words.get(contact.key)
            standing = Standing(
                marketing_state=word.state if word else MarketingState.UNKNOWN,
                since=word.at if word else None,
                source=word.source if word else "unknown",
            )
        last = cursor_of(str(rows[-1]["id"])) if len(rows) == limit else None
        return HistoryPage(items=_entries(rows, caller), next_cursor=last, standing=standing)

    return router


def _position(cursor: str) -> int:
    position = position_of(cursor)
    if not position.isdecimal() or len(position) > 18:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return int(position)


def _entries(rows: Sequence[asyncpg.Record], caller: Caller) -> list[HistoryEntry]:
    clear = caller.token.may(Role.OPERATOR, caller.workspace)
    return [_entry(row, clear=clear) for row in rows]


def _entry(row: asyncpg.Record, *, clear: bool) -> HistoryEntry:
    setter = _SETTER.validate_json(row["overwrote"]) if row["overwrote"] else None
    return HistoryEntry(
        contact_id=row["contact_id"],
        kind=row["kind"],
        said=row["said_state"],
        at=row["said_at"],
        source=row["source"],
        proof=row["proof"],
        note=row["note"],
        stood=row["stood_state"],
        by=row["by"],
        origin=row["origin"],
        cause=row["cause"],
        fields=phone_fields_in(row, clear=clear),
        overwrote=Overwrote(by=setter.by, at=setter.at, origin=setter.origin) if setter else None,
        others=row["others"],
        recorded_at=row["recorded_at"],
    )


def phone_fields_in(row: asyncpg.Record, *, clear: bool) -> list[PhoneFieldChange]:
    """What a row of the history says of the phone's fields."""
    return [
        PhoneFieldChange(field=one.field, old=_shown(one, one.old, clear), new=_shown(one, one.new, clear))
        for one in (_FIELDS.validate_json(row["fields"]) if row["fields"] else ())
    ]


def _shown(change: FieldChange, value: str | None, clear: bool) -> str | None:
    return people.shown_phone(value, clear=clear) if change.field == "phone" else value
