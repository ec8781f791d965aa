"""Suggested calling codes over HTTP: shown with their ground, applied only when an operator accepts them.

Whoever accepts says what was shown (phone and ground, or when the list was made). What has changed since is refused,
and what stands already is answered as accepted before: a repeat does no harm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NamedTuple, Self
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, model_validator
from sendwhy.access import Role
from sendwhy.events import ContactId, Line, Moment
from sendwhy.http import (
    Body,
    Caller,
    Cursor,
    IdempotencyKey,
    Operator,
    Viewer,
    body_schema,
    cursor_of,
    json_body,
    position_of,
)
from sendwhy.postgres import Connection
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from consent import people, store
from consent.api import Desk
from consent.contacts import Change, Contact, Origin
from consent.fields import NOTHING, Fields
from consent.phones import Ground, Suggestion

PAGE_MAX = 500
# So many contacts without a readable number are looked through for one page at most.
SCANNED_MAX = 5000

ShownPhone = Annotated[Line, Field(min_length=1, max_length=64)]
Note = Annotated[Line, Field(min_length=1, max_length=512)]
Country = Annotated[str, Field(pattern="^[A-Za-z]{2}$")]


class SuggestionView(BaseModel):
    """`phone`: what Meta would get (E.164), of which a viewer sees two digits. `text`: the ground in words."""

    phone: str
    calling_code: str
    ground: Ground
    country: str | None
    text: str


class Suggested(BaseModel):
    contact_id: str
    person_id: str
    phone_given: str | None
    suggestion: SuggestionView


class SuggestionPage(BaseModel):
    """A page may hold fewer than `limit`, also none, and still have a next one. `listed_at` goes into a bulk accept."""

    items: list[Suggested]
    next_cursor: str | None
    listed_at: Moment


class ContactSuggestion(BaseModel):
    """One contact's suggestion; null where its number can be read, or nothing is known to suggest."""

    contact_id: str
    suggestion: SuggestionView | None


class AcceptBody(Body):
    """The suggestion as it was shown, and what the operator has to say on it."""

    phone: ShownPhone
    ground: Annotated[Ground, Field(strict=False)]
    note: Note | None = None


class Chosen(AcceptBody):
    contact_id: ContactId


class ByGround(Body):
    """All suggestions of one ground (and country) that were on a list made at `listed_at`."""

    ground: Ground
    country: Country | None = None
    listed_at: Moment


class BulkBody(Body):
    """Either `items`, or `filter`, which takes up to `limit` contacts from `cursor` on."""

    items: Annotated[list[Chosen], Field(min_length=1, max_length=PAGE_MAX)] | None = None
    filter: ByGround | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_MAX
    note: Note | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.items is None) == (self.filter is None):
            raise ValueError("needs either items or filter")
        names = [item.contact_id for item in self.items or ()]
        if len(set(names)) < len(names):
            raise ValueError("names a contact twice")
        return self


class OutcomeKind(StrEnum):
    ACCEPTED = "accepted"
    ALREADY = "already_accepted"
    REFUSED = "refused"


class Outcome(BaseModel):
    """What was done for one contact. `phone`: its number now; `suggestion`: what is suggested now, if refused."""

    contact_id: str
    outcome: OutcomeKind
    why: str | None = None
    phone: str | None = None
    suggestion: SuggestionView | None = None


class BulkAnswer(BaseModel):
    accepted: int
    already_accepted: int
    refused: int
    items: list[Outcome]
    next_cursor: str | None


def routes(runtime: Runtime, desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}/contacts")

    @router.get("/suggestions", response_model=SuggestionPage)
    async def list_suggestions(
        caller: Viewer,
        ground: Ground | None = None,
        country: Country | None = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    ) -> SuggestionPage:
        now = datetime.now(UTC)
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            found, following = await _scan(
                connection, caller.workspace, _Wanted(ground, country and country.upper(), limit), cursor
            )
        return SuggestionPage(
            items=[_suggested(contact, suggestion, caller) for contact, suggestion in found],
            next_cursor=following,
            listed_at=now,
        )

    @router.post("/suggestions/accept", response_model=BulkAnswer, openapi_extra=body_schema(BulkBody))
    async def accept_many(
        caller: Operator,
        request: Request,
        body: Annotated[BulkBody, json_body(BulkBody)],
        key: IdempotencyKey = None,
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            answer = await _accept_many(connection, caller, desk, body)
            return 200, answer.model_dump_json().encode()

        return await desk.once(request, caller, key, act)

    @router.get("/{contact_id:path}/suggestion", response_model=ContactSuggestion)
    async def one_suggestion(caller: Viewer, contact_id: ContactId) -> ContactSuggestion:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            contact = await people.contact_named(connection, caller.workspace, contact_id)
            shop = (await store.shop_countries_of(connection, [caller.workspace])).get(caller.workspace)
        suggestion = contact.fields.suggestion(shop)
        clear = caller.token.may(Role.OPERATOR, caller.workspace)
        shown = _view(suggestion, clear=clear) if suggestion else None
        return ContactSuggestion(contact_id=contact.key.contact_id, suggestion=shown)

    @router.post("/{contact_id:path}/suggestion/accept", response_model=Outcome)
    async def accept(
        caller: Operator, contact_id: ContactId, body: AcceptBody, request: Request, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            chosen = Chosen(contact_id=contact_id, phone=body.phone, ground=body.ground, note=body.note)
            outcome = await _accept_one(connection, caller, desk, chosen)
            return 200, outcome.model_dump_json().encode()

        return await desk.once(request, caller, key, act)

    return router


class _Wanted(NamedTuple):
    """Which suggestions, and how many at most."""

    ground: Ground | None
    country: str | None
    limit: int

    def fits(self, suggestion: Suggestion) -> bool:
        return self.ground in (None, suggestion.ground) and self.country in (None, suggestion.country)


async def _scan(
    connection: Connection, workspace: str, wanted: _Wanted, cursor: str | None
) -> tuple[list[tuple[Contact, Suggestion]], str | None]:
    """Contacts whose suggestion is wanted, in the order of their ids, and the cursor for more."""
    after = position_of(cursor) if cursor else ""
    shop = (await store.shop_countries_of(connection, [workspace])).get(workspace)
    contacts = await store.unreadable_of(connection, workspace, after=after, limit=SCANNED_MAX)
    found: list[tuple[Contact, Suggestion]] = []
    for contact in contacts:
        suggestion = contact.fields.suggestion(shop)
        if suggestion is not None and wanted.fits(suggestion):
            found.append((contact, suggestion))
        if len(found) == wanted.limit:
            return found, cursor_of(contact.key.contact_id)
    more = len(contacts) == SCANNED_MAX
    return found, cursor_of(contacts[-1].key.contact_id) if more else None


class _Judged(NamedTuple):
    """One contact of an acceptance: the fields to write, or why not; `fields` is None too where nothing is to do."""

    contact: Contact
    suggestion: Suggestion | None
    fields: Fields | None
    refusal: str | None


def judge(contact: Contact, shop_country: str | None, phone: str, ground: Ground) -> _Judged:
    """Whether what was shown is what is suggested now."""
    suggestion = contact.fields.suggestion(shop_country)
    if suggestion is None and contact.fields.e164 == phone:
        return _Judged(contact, None, None, None)
    if suggestion is None:
        return _Judged(contact, None, None, "nothing is suggested for this contact any more")
    if (suggestion.phone, suggestion.ground) != (phone, ground):
        return _Judged(contact, suggestion, None, "the suggestion has changed since it was shown")
    return _Judged(contact, suggestion, _fields_of(contact, suggestion), None)


def _fields_of(contact: Contact, suggestion: Suggestion) -> Fields:
    """The phone stays as given where its calling code makes it readable, so that a sync of the same keeps the code."""
    with_code = replace(contact.fields, calling_code=suggestion.calling_code)
    phone = None if with_code.e164 == suggestion.phone else suggestion.phone
    return Fields(phone=phone, calling_code=suggestion.calling_code)


async def _accept_one(connection: Connection, caller: Caller, desk: Desk, chosen: Chosen) -> Outcome:
    await store.lock_workspaces(connection, [caller.workspace])
    await people.contact_named(connection, caller.workspace, chosen.contact_id)
    (outcome,) = await _accept_chosen(connection, caller, desk, [chosen], None)
    if outcome.outcome == OutcomeKind.REFUSED:
        now = f"; now it is {outcome.suggestion.phone} ({outcome.suggestion.text})" if outcome.suggestion else ""
        raise Problem(409, f"Refused: {outcome.why}{now}.", errors={"phone": outcome.why or ""})
    return outcome


async def _accept_many(connection: Connection, caller: Caller, desk: Desk, body: BulkBody) -> BulkAnswer:
    following = None
    if body.filter is not None:
        outcomes, following = await _accept_listed(connection, caller, desk, body, body.filter)
    else:
        outcomes = await _accept_chosen(connection, caller, desk, body.items or [], body.note)
    counts = Counter(one.outcome for one in outcomes)
    return BulkAnswer(
        accepted=counts[OutcomeKind.ACCEPTED],
        already_accepted=counts[OutcomeKind.ALREADY],
        refused=counts[OutcomeKind.REFUSED],
        items=outcomes,
        next_cursor=following,
    )


async def _accept_chosen(
    connection: Connection, caller: Caller, desk: Desk, items: Sequence[Chosen], note: str | None
) -> list[Outcome]:
    # What is judged must be what is written.
    await store.lock_workspaces(connection, [caller.workspace])
    shop = (await store.shop_countries_of(connection, [caller.workspace])).get(caller.workspace)
    found = await people.find_contacts(connection, caller.workspace, [item.contact_id for item in items])
    judged = [
        (item, judge(contact, shop, item.phone, item.ground))
        for item in items
        if (contact := found.get(item.contact_id)) is not None
    ]
    done = await _write(connection, caller, desk, [(one, item.note or note) for item, one in judged])
    by_name = {item.contact_id: outcome for (item, _), outcome in zip(judged, done, strict=True)}
    unknown = "no contact has this name"
    return [
        by_name.get(item.contact_id) or Outcome(contact_id=item.contact_id, outcome=OutcomeKind.REFUSED, why=unknown)
        for item in items
    ]


async def _accept_listed(
    connection: Connection, caller: Caller, desk: Desk, body: BulkBody, listed: ByGround
) -> tuple[list[Outcome], str | None]:
    await store.lock_workspaces(connection, [caller.workspace])
    wanted = _Wanted(listed.ground, listed.country and listed.country.upper(), body.limit)
    found, following = await _scan(connection, caller.workspace, wanted, body.cursor)
    setting = await store.setting_of(connection, caller.workspace)
    judged = []
    for contact, suggestion in found:
        is_new_ground = listed.ground == Ground.SHOP_COUNTRY and setting and setting["updated_at"] > listed.listed_at
        changed = "the shop's country was set" if is_new_ground else "the contact has changed"
        is_late = bool(is_new_ground) or contact.updated_at > listed.listed_at
        fields = None if is_late else _fields_of(contact, suggestion)
        refusal = f"{changed} since the list was made" if is_late else None
        judged.append((_Judged(contact, suggestion, fields, refusal), body.note))
    return await _write(connection, caller, desk, judged), following


async def _write(
    connection: Connection, caller: Caller, desk: Desk, judged: Sequence[tuple[_Judged, str | None]]
) -> list[Outcome]:
    """Apply what may be applied; an outcome for each."""
    now = datetime.now(UTC)
    changes = [_change(one, caller, note, now) for one, note in judged if one.fields is not None]
    contacts = (await desk.apply(connection, caller.workspace, changes))[0].contacts if changes else {}
    return [_outcome(one, contacts.get(one.contact.key, one.contact)) for one, _ in judged]


def _change(one: _Judged, caller: Caller, note: str | None, now: datetime) -> Change:
    ground = f"accepted +{one.suggestion.calling_code}: {one.suggestion.text}" if one.suggestion else None
    return Change(
        workspace_id=caller.workspace,
        cause=f"suggestion/{uuid4()}",
        at=now,
        by=caller.token.name,
        origin=Origin.SUGGESTION,
        contact_id=one.contact.key.contact_id,
        fields=one.fields or NOTHING,
        note="; ".join(filter(None, (ground, note))),
    )


def _outcome(one: _Judged, contact: Contact) -> Outcome:
    contact_id, phone = contact.key.contact_id, contact.fields.e164
    if one.refusal is not None:
        suggestion = _view(one.suggestion, clear=True) if one.suggestion else None
        kind = OutcomeKind.REFUSED
        return Outcome(contact_id=contact_id, outcome=kind, why=one.refusal, phone=phone, suggestion=suggestion)
    kind = OutcomeKind.ALREADY if one.fields is None else OutcomeKind.ACCEPTED
    return Outcome(contact_id=contact_id, outcome=kind, phone=phone)


def _suggested(contact: Contact, suggestion: Suggestion, caller: Caller) -> Suggested:
    clear = caller.token.may(Role.OPERATOR, caller.workspace)
    return Suggested(
        contact_id=contact.key.contact_id,
        person_id=str(contact.person.id),
        phone_given=people.shown_phone(contact.fields.phone, clear=clear),
        suggestion=_view(suggestion, clear=clear),
    )


def _view(suggestion: Suggestion, *, clear: bool) -> SuggestionView:
    return SuggestionView(
        phone=people.shown_phone(suggestion.phone, clear=clear) or "",
        calling_code=suggestion.calling_code,
        ground=suggestion.ground,
        country=suggestion.country,
        text=suggestion.text,
    )
