"""Consent over HTTP (contract.md): contacts, history, evaluate."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, JsonValue
from sendwhy.access import Role
from sendwhy.evaluation import EVALUATE_MAX, Evaluate, check_rights
from sendwhy.events import ContactId, Gate, Line, MarketingState, Moment, Name, Resolved, SendRequested
from sendwhy.http import (
    Admin,
    AnyToken,
    Body,
    Caller,
    Cursor,
    IdempotencyKey,
    Operator,
    Viewer,
    body_schema,
    cursor_of,
    json_body,
    once,
    position_of,
)
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime

from consent import erasures, people, store
from consent.contacts import UNSUBSCRIBED, Book, Change, Contact, Key, Mark, Origin, Word
from consent.decide import Verdict, evaluate
from consent.fields import Fields
from consent.past import Past, past_of
from consent.phones import read_phone
from consent.settings import Settings
from consent.stages import Surroundings, surroundings_of, told_by

PAGE_MAX = 500
EXTERNAL_IDS_MAX = 20
UUID_LENGTH = 36
KEPT = frozenset({"user_id", "external_ids", "language", "address_country"})

log = structlog.get_logger("sendwhy")


def _only_text(value: Any) -> Any:
    # FastAPI hands over parsed JSON, where a strict time or enum would refuse the text it came as.
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a text")
    return value


At = Annotated[Moment, Field(strict=False), BeforeValidator(_only_text)]
State = Annotated[MarketingState, Field(strict=False)]
Phone = Annotated[Line, Field(min_length=1, max_length=64)]
CountryCode = Annotated[str, Field(pattern="^[A-Za-z]{2}$")]
CallingCode = Annotated[str, Field(pattern=r"^\+?[0-9]{1,3}$")]
Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8})*$", max_length=16)]
Source = Annotated[Line, Field(min_length=1, max_length=64)]
Proof = Annotated[Line, Field(min_length=1, max_length=512)]


class ContactBody(Body):
    """A contact's fields: what is left out is emptied, but user_id, external_ids, language and address_country stay as
    they were (null empties them). Consent is only changed where it is told."""

    phone: Phone | None = None
    phone_country_code: CountryCode | None = None
    phone_calling_code: CallingCode | None = None
    name: Name | None = None
    user_id: Name | None = None
    external_ids: Annotated[list[ContactId], Field(max_length=EXTERNAL_IDS_MAX)] | None = None
    language: Language | None = None
    address_country: CountryCode | None = None
    marketing_state: State | None = None
    source: Source | None = None
    proof: Proof | None = None

    @property
    def fields(self) -> Fields:
        return Fields(
            phone=self.phone,
            country_code=self.phone_country_code,
            calling_code=self.phone_calling_code,
            user_id=self.user_id,
            name=self.name,
            language=self.language,
            address_country=self.address_country,
            external_ids=tuple(dict.fromkeys(self.external_ids or ())),
        )

    @property
    def kept(self) -> frozenset[str]:
        """Who the person is doesn't get lost by a write that says nothing of it."""
        return KEPT - self.model_fields_set


class WordBody(Body):
    """What an operator knows of a person's consent: where from, the proof, and since when (default now)."""

    source: Source = "operator"
    proof: Proof | None = None
    at: At | None = None


NOTHING_MORE = WordBody()


class ContactView(BaseModel):
    """`phone` in E.164 where it can be read, else as given, with `phone_fault`. Without the right to see numbers,
    only its last two digits. `person_id`: the person's own id, the same for all contacts that are one person, and
    `external_ids` are all names of theirs. `notes`: what of a write was not done, and why."""

    workspace_id: str
    contact_id: str
    person_id: str
    external_ids: list[str]
    version: int
    phone: str | None
    phone_given: str | None
    phone_fault: str | None
    phone_country_code: str | None
    phone_calling_code: str | None
    user_id: str | None
    name: str | None
    language: str | None
    address_country: str | None
    marketing_state: MarketingState
    since: Moment
    source: str
    proof: str | None
    updated_at: Moment
    notes: list[str] = Field(default_factory=list)


class ContactPage(BaseModel):
    items: list[ContactView]
    next_cursor: str | None


class EvaluateBody(Evaluate):
    """Read as everywhere; OpenAPI has promised no more of the requests than that they are objects. `resolved` may be
    given, so that one body can be asked of all three services; consent's answer is its own."""

    requests: Annotated[list[dict[str, JsonValue]], Field(max_length=EVALUATE_MAX)]
    resolved: list[JsonValue] | None = None


class EvaluateResult(BaseModel):
    message_id: str | None
    gates: list[Gate]
    resolved: Resolved | None


class EvaluateAnswer(BaseModel):
    results: list[EvaluateResult]


def routes(runtime: Runtime, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1")
    desk = Desk(runtime, settings)

    @router.put("/workspaces/{w}/contacts/{contact_id:path}", response_model=ContactView)
    async def put_contact(
        caller: Operator, contact_id: ContactId, body: ContactBody, request: Request, key: IdempotencyKey = None
    ) -> Response:
        return await desk.write(request, caller, key, lambda now: _put(caller, contact_id, body, now))

    @router.get("/workspaces/{w}/contacts/{contact_id:path}", response_model=ContactView)
    async def get_contact(caller: Viewer, contact_id: ContactId) -> ContactView:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            contact = await people.contact_named(connection, caller.workspace, contact_id)
            return _view(contact, caller, await people.records_of(connection, contact))

    @router.delete("/workspaces/{w}/contacts/{contact_id:path}", status_code=204)
    async def erase_contact(
        caller: Admin, contact_id: ContactId, request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Erase a person in all services. `Location` is the proof's address; a repeat has the same."""
        return await desk.erase(request, caller, key, contact_id)

    @router.post("/workspaces/{w}/contacts/{contact_id:path}/subscribe", response_model=ContactView)
    async def subscribe(
        caller: Operator,
        contact_id: ContactId,
        request: Request,
        body: WordBody = NOTHING_MORE,
        key: IdempotencyKey = None,
    ) -> Response:
        state = MarketingState.SUBSCRIBED
        return await desk.say(request, caller, key, contact_id, body, state)

    @router.post("/workspaces/{w}/contacts/{contact_id:path}/unsubscribe", response_model=ContactView)
    async def unsubscribe(
        caller: Operator,
        contact_id: ContactId,
        request: Request,
        body: WordBody = NOTHING_MORE,
        key: IdempotencyKey = None,
    ) -> Response:
        return await desk.say(request, caller, key, contact_id, body, UNSUBSCRIBED)

    @router.get("/workspaces/{w}/contacts", response_model=ContactPage)
    async def list_contacts(
        caller: Viewer,
        phone: Annotated[str | None, Query(max_length=64)] = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    ) -> ContactPage:
        phone_key = _phone_key(phone) if phone else None
        after = position_of(cursor) if cursor else ""
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            return await _page(connection, caller, after, phone_key, limit)

    @router.post("/evaluate", openapi_extra=body_schema(EvaluateBody))
    async def post_evaluate(token: AnyToken, body: Annotated[EvaluateBody, json_body(EvaluateBody)]) -> EvaluateAnswer:
        check_rights(token, body.requests)
        async with runtime.pool.acquire(timeout=30) as connection:
            return await desk.evaluate(connection, body)

    return router


class Desk:
    """Writes over HTTP: the lock, the book, the outbox, and the answer, in one transaction."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._believed = settings.believed_workspaces
        self._tagger = store.Tagger(settings.privacy_key.get_secret_value())

    async def write(self, request: Request, caller: Caller, key: str | None, make: Any) -> Response:
        """Apply the change that `make(now)` gives and answer with the contact's whole state."""

        async def act(connection: Connection) -> tuple[int, bytes]:
            change: Change = make(datetime.now(UTC))
            change = replace(change, contact_id=await _written_to(connection, change))
            return 200, await self._answer(connection, caller, change)

        return await self.once(request, caller, key, act)

    async def say(
        self, request: Request, caller: Caller, key: str | None, contact_id: str, body: WordBody, state: MarketingState
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            await store.lock_workspaces(connection, [caller.workspace])
            contact = await people.contact_named(connection, caller.workspace, contact_id)
            change = operators_word(contact, body, state, by=caller.token.name, now=datetime.now(UTC))
            return 200, await self._answer(connection, caller, change)

        return await self.once(request, caller, key, act)

    async def erase(self, request: Request, caller: Caller, key: str | None, contact_id: str) -> Response:
        # Also by another of their names; the contact may be gone already, and is erased once more by its id.
        name = contact_id

        async def act(connection: Connection) -> tuple[int, bytes]:
            nonlocal name
            await store.lock_workspaces(connection, [caller.workspace])
            if (found := await people.find_contact(connection, caller.workspace, contact_id)) is not None:
                name = found.key.contact_id
            cause, now = f"erase/{uuid4()}", datetime.now(UTC)
            change = Change(caller.workspace, cause, now, caller.token.name, Origin.ERASURE, name)
            await self.apply(connection, caller.workspace, [change])
            log.info("a contact was erased", workspace=caller.workspace, by=caller.token.name)
            return 204, b""

        answer = await self.once(request, caller, key, act)
        async with self._runtime.pool.acquire(timeout=30) as connection:
            mark = Mark(caller.workspace, "contact", name)
            answer.headers["location"] = await erasures.url_of_last(connection, self._tagger, mark)
        return answer

    async def once(self, request: Request, caller: Caller, key: str | None, act: Any) -> Response:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            response = await once(connection, request, caller, key, lambda: act(connection))
        self._runtime.publish_soon()
        return response

    async def _answer(self, connection: Connection, caller: Caller, change: Change) -> bytes:
        book, refusals = await self.apply(connection, caller.workspace, [change])
        if refusals:
            raise Problem(409, refusals[0][1])
        contact = book.contacts[Key(caller.workspace, change.contact_id or "")]
        records = [one for one in book.contacts.values() if one.person.id == contact.person.id]
        return _view(contact, caller, records, _notes(change, contact)).model_dump_json().encode()

    async def apply(
        self, connection: Connection, workspace: str, changes: Sequence[Change]
    ) -> tuple[Book, list[tuple[int, str]]]:
        """Apply changes; returns the book and which were refused, by their position, and why."""
        await store.lock_workspaces(connection, [workspace])
        book = await store.open_book(connection, self._tagger, changes, datetime.now(UTC))
        refusals = [(i, why) for i, change in enumerate(changes) if (why := book.apply(change)) is not None]
        if refusals and changes[0].origin == Origin.ERASURE:
            raise not_found("The contact")
        await store.save_book(connection, self._tagger, book)
        await add_to_outbox(connection, [(uuid4(), record) for record in told_by(book)])
        return book, refusals

    async def evaluate(self, connection: Connection, body: EvaluateBody) -> EvaluateAnswer:
        """All gates for each request; nothing is stored. A past `at` is judged by what was known then."""
        now = datetime.now(UTC)
        asked = body.read(now)
        requests = [one for one in asked if isinstance(one, SendRequested)]
        around = await surroundings_of(connection, self._tagger, requests, self._believed)
        past: Past | None = None
        if body.at is not None and body.asks_of_the_past(now):
            contacts = [contact for request in requests if (contact := around.contact_of(request))]
            past = await past_of(connection, contacts, body.at)
        judged = (_result(one, around, past) for one in requests)
        return EvaluateAnswer(results=body.answers(asked, judged, EvaluateResult))


def _result(request: SendRequested, around: Surroundings, past: Past | None) -> EvaluateResult:
    verdict = _verdict(request, around, past)
    gates = [Gate(gate="request", passed=True), *(gate.to_gate() for gate in verdict.gates)]
    return EvaluateResult(message_id=request.message_id, gates=gates, resolved=verdict.resolved)


def _verdict(request: SendRequested, around: Surroundings, past: Past | None) -> Verdict:
    facts = around.of(request)
    return evaluate(request, past.facts(facts) if past else facts)


def _put(caller: Caller, contact_id: str, body: ContactBody, now: datetime) -> Change:
    state = body.marketing_state
    return Change(
        workspace_id=caller.workspace,
        cause=f"put/{uuid4()}",
        at=now,
        by=caller.token.name,
        origin=Origin.PUT,
        contact_id=contact_id,
        fields=body.fields,
        kept=body.kept,
        word=Word(state, now, body.source or "api", body.proof) if state else None,
    )


def operators_word(contact: Contact, body: WordBody, state: MarketingState, *, by: str, now: datetime) -> Change:
    """An operator's subscribe or unsubscribe. Only a proof dated after a firm no undoes it.

    Raises Problem 422 or 409 where the proof is missing, too old, or dated in the future.
    """
    at = body.at or now
    if at > now + timedelta(minutes=1):
        raise Problem(422, "The proof is dated in the future.", errors={"at": "must not lie in the future"})
    firm = contact.person.firm
    if firm is not None and firm.state == UNSUBSCRIBED and state != UNSUBSCRIBED:
        if body.proof is None:
            raise Problem(422, "To undo an opt-out, a proof is needed.", errors={"proof": "is missing"})
        if body.at is None:
            at = max(at, firm.moment + timedelta(microseconds=1))
        elif at <= firm.moment:
            raise Problem(409, f"They opted out at {firm.at.isoformat()}; the proof is not dated after it.")
    return Change(
        workspace_id=contact.key.workspace_id,
        cause=f"operator/{uuid4()}",
        at=at,
        by=by,
        origin=Origin.OPERATOR,
        contact_id=contact.key.contact_id,
        word=Word(state, at, body.source, body.proof),
        firm=body.proof is not None or state == UNSUBSCRIBED,
    )


def _notes(change: Change, contact: Contact) -> list[str]:
    word = contact.word
    if change.word is None or change.word.state == word.state:
        return []
    stays = f"marketing_state stays {word.state}: said at {word.at.isoformat()} ({word.source})"
    if word != contact.person.firm:
        return [f"{stays} of another contact of the same person"]
    return [f"{stays}; only their own later message, or an operator with proof dated after it, changes that"]


async def _written_to(connection: Connection, change: Change) -> str:
    """A PUT under a person's own id goes to the record that it is the id of."""
    name = change.contact_id or ""
    found = await people.find_contact(connection, change.workspace_id, name) if len(name) == UUID_LENGTH else None
    return found.key.contact_id if found and name in (str(found.person.id), str(found.uid)) else name


def _view(contact: Contact, caller: Caller, records: Sequence[Contact], notes: Sequence[str] = ()) -> ContactView:
    """`records`: all of the contact's person."""
    word, fields, reading = contact.word, contact.fields, contact.fields.reading
    clear = caller.token.may(Role.OPERATOR, caller.workspace)
    return ContactView(
        workspace_id=contact.key.workspace_id,
        contact_id=contact.key.contact_id,
        person_id=str(contact.person.id),
        external_ids=people.external_ids_of(records),
        version=contact.version,
        phone=people.shown_phone(fields.e164 or fields.phone, clear=clear),
        phone_given=people.shown_phone(fields.phone, clear=clear),
        phone_fault=reading.fault if reading else None,
        phone_country_code=fields.country_code,
        phone_calling_code=fields.calling_code,
        user_id=fields.user_id,
        name=fields.name,
        language=fields.language,
        address_country=fields.address_country,
        marketing_state=word.state,
        since=word.at,
        source=word.source,
        proof=word.proof,
        updated_at=contact.updated_at,
        notes=list(notes),
    )


async def _page(connection: Connection, caller: Caller, after: str, phone_key: str | None, limit: int) -> ContactPage:
    found = await store.list_contacts(connection, caller.workspace, after=after, phone_key=phone_key, limit=limit)
    persons: dict[UUID, list[Contact]] = {one.person.id: [] for one in found}
    for record in await store.contacts_of_persons(connection, found):
        persons[record.person.id].append(record)
    last = found[-1].key.contact_id if len(found) == limit else None
    items = [_view(one, caller, persons[one.person.id]) for one in found]
    return ContactPage(items=items, next_cursor=cursor_of(last) if last else None)


def _phone_key(phone: str) -> str:
    # In a query string a plus is easily lost.
    reading = read_phone(phone.strip() if phone.strip().startswith("+") else f"+{phone.strip()}")
    if reading.phone is None:
        raise Problem(422, "The phone can't be read.", errors={"phone": reading.detail})
    return reading.phone.key
