"""Erasure over HTTP: the proof of what was erased where and when, what shops asked for, and what consent holds of a
person (for the export that message-log makes of all services)."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import quote
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query
from pydantic import BaseModel, TypeAdapter
from sendwhy.events import ContactId, ErasedRows, Moment
from sendwhy.http import Cursor, Operator, Viewer, cursor_of, position_of
from sendwhy.postgres import Connection
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.topics import TOPICS, Topic

from consent import history as timeline
from consent import people, store
from consent.contacts import Contact, EntryKind, Key, Mark
from consent.erasures import url_of
from consent.settings import Settings

PAGE_MAX = 200
HISTORY_MAX = 1000
MESSAGES_MAX = 50_000
# Shopify's rule for customers/data_request.
ANSWER_WITHIN = timedelta(days=30)
# Whose records may name a person.
PERSONAL_TOPICS: Mapping[Topic, str] = {
    Topic.SEND_REQUESTED: "requests as upstream systems wrote them",
    Topic.SEND_CONSENTED: "requests on their way",
    Topic.SEND_FUNDED: "requests on their way",
    Topic.SEND_REJECTED: "whom a rejected message was for",
    Topic.SEND_RECALLED: "messages that were taken out of the queue",
    Topic.STATUS_UPDATED: "whom an accepted message was for",
    Topic.WEBHOOK_RECEIVED: "raw deliveries of Meta and of shops",
    Topic.WEBHOOK_REFUSED: "the first 2 KB of refused deliveries",
    Topic.MESSAGE_RECEIVED: "what the person wrote",
    Topic.CUSTOMER_UPDATED: "what shops and Meta told of the person",
    Topic.CONTACT_UPDATED: "former states until they are compacted; then the key, by which the tombstone is known",
    Topic.DEAD_LETTERS: "records that could not be read",
}
_TABLES = TypeAdapter(list[ErasedRows])
_END = 2**63 - 1

_ERASURES = """
select erasure_id, tag, cause, asked_by, asked_at, number from erasure
where workspace_id = $1 and number < $2 and ($3::uuid is null or erasure_id = $3)
order by number desc limit $4
"""
_ORDERS = """
select erasure_id, order_id, messages, ordered_at from erasure_order
where workspace_id = $1 and erasure_id = any($2::uuid[]) order by ordered_at, order_id
"""
_REPORTS = """
select order_id, service, tables, reported_at from erasure_report where order_id = any($1::uuid[]) order by reported_at
"""
_REQUESTS = """
select request_id, kind, contact_id, erasure_id, shop, asked_at, number from privacy_request
where workspace_id = $1 and number < $2 order by number desc limit $3
"""
_MESSAGES_OF = """
select distinct message_id from message_of where workspace_id = $1 and tag = any($2::bytea[]) order by 1 limit $3
"""


class OrderView(BaseModel):
    """An order to all services; `missing`: those that have not reported on it yet."""

    order_id: UUID
    ordered_at: Moment
    messages: int
    missing: list[Service]


class TableView(BaseModel):
    """Rows of one table. `blurred`: kept without the person. `recalled`: taken out of the queue. `kept`: with a ground,
    and until when at the latest (null: for as long as the service has data)."""

    table: str
    act: Literal["erased", "blurred", "recalled", "kept"]
    rows: int
    ground: str | None
    until: Moment | None


class ServiceView(BaseModel):
    service: Service
    reported_at: Moment
    tables: list[TableView]


class TopicView(BaseModel):
    """A topic that may still name the person, and when what it held at the last order is gone at the latest."""

    topic: Topic
    holds: str
    until: Moment


class ErasureView(BaseModel):
    """One erasure. `contact_tag` is keyed: it can be compared, not read. `cause`: http, or Shopify's webhook."""

    erasure_id: UUID
    workspace_id: str
    contact_tag: str
    cause: str
    asked_by: str
    asked_at: Moment
    state: Literal["complete", "running"]
    missing: list[Service]
    completed_at: Moment | None
    url: str


class ErasureProof(ErasureView):
    orders: list[OrderView]
    services: list[ServiceView]
    topics: list[TopicView]


class ErasurePage(BaseModel):
    items: list[ErasureView]
    next_cursor: str | None


class PrivacyRequestView(BaseModel):
    """What a shop asked for. data_request: fetch `export_url` (of message-log) until `answer_by`; without it the
    contact was erased meanwhile. redact: `erasure_url` has the proof. shop_redact: the shop has left; nothing is erased
    by itself."""

    request_id: UUID
    kind: Literal["data_request", "redact", "shop_redact"]
    asked_at: Moment
    webhook: str | None
    contact_id: str | None
    export_url: str | None
    answer_by: Moment | None
    erasure_url: str | None


class PrivacyRequestPage(BaseModel):
    items: list[PrivacyRequestView]
    next_cursor: str | None


class ContactData(BaseModel):
    contact_id: str
    person_id: str
    external_ids: list[str]
    phone: str | None
    phone_given: str | None
    phone_country_code: str | None
    phone_calling_code: str | None
    user_id: str | None
    name: str | None
    language: str | None
    address_country: str | None
    marketing_state: str
    since: Moment
    source: str
    proof: str | None
    created_at: Moment
    updated_at: Moment


class WordData(BaseModel):
    """`kind`, `note` and `fields` as in the contact's history."""

    contact_id: str
    kind: EntryKind
    note: str | None
    fields: list[timeline.PhoneFieldChange]
    said: str
    at: Moment
    source: str
    proof: str | None
    stood: str
    by: str
    recorded_at: Moment


class DataAnswer(BaseModel):
    """What consent holds of a person, all their contacts, newest history first (`history_left_out`: how many lines are
    older). `message_ids`: of the decisions that were made for them."""

    contacts: list[ContactData]
    history: list[WordData]
    history_left_out: int
    message_ids: list[str]
    messages_left_out: bool


def routes(runtime: Runtime, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}")
    tagger = store.Tagger(settings.privacy_key.get_secret_value())

    @router.get("/erasures")
    async def list_erasures(
        caller: Viewer,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    ) -> ErasurePage:
        """Erasures, the latest first."""
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            rows = await connection.fetch(_ERASURES, caller.workspace, _before(cursor), None, limit + 1)
            proofs = await _proofs(connection, caller.workspace, rows[:limit])
        more = cursor_of(str(rows[limit - 1]["number"])) if len(rows) > limit else None
        items = [ErasureView(**{name: getattr(one, name) for name in ErasureView.model_fields}) for one in proofs]
        return ErasurePage(items=items, next_cursor=more)

    @router.get("/erasures/{erasure_id}")
    async def get_erasure(caller: Viewer, erasure_id: UUID) -> ErasureProof:
        """The proof: what was erased, blurred or kept, where, when and why. Nothing in it is personal."""
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            rows = await connection.fetch(_ERASURES, caller.workspace, _END, erasure_id, 1)
            proofs = await _proofs(connection, caller.workspace, rows)
        if not proofs:
            raise not_found("The erasure")
        return proofs[0]

    @router.get("/privacy-requests")
    async def list_requests(
        caller: Operator,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    ) -> PrivacyRequestPage:
        """What shops asked for by customers/data_request, customers/redact and shop/redact, the latest first."""
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            rows = await connection.fetch(_REQUESTS, caller.workspace, _before(cursor), limit + 1)
        more = cursor_of(str(rows[limit - 1]["number"])) if len(rows) > limit else None
        return PrivacyRequestPage(items=[_request(caller.workspace, row) for row in rows[:limit]], next_cursor=more)

    @router.get("/contacts/{contact_id:path}/data")
    async def get_data(caller: Operator, contact_id: ContactId) -> DataAnswer:
        """What consent holds of a person, for message-log's export."""
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            return await _data(connection, tagger, caller.workspace, contact_id)

    return router


def _before(cursor: str | None) -> int:
    if cursor is None:
        return _END
    position = position_of(cursor)
    if not (position.isascii() and position.isdigit() and len(position) <= 18):
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return int(position)


async def _proofs(connection: Connection, workspace: str, rows: Sequence[asyncpg.Record]) -> list[ErasureProof]:
    orders = await connection.fetch(_ORDERS, workspace, [row["erasure_id"] for row in rows])
    reports = await connection.fetch(_REPORTS, [row["order_id"] for row in orders])
    by_order: dict[UUID, list[asyncpg.Record]] = {}
    for one in reports:
        by_order.setdefault(one["order_id"], []).append(one)
    by_erasure: dict[UUID, list[asyncpg.Record]] = {}
    for one in orders:
        by_erasure.setdefault(one["erasure_id"], []).append(one)
    return [_proof(workspace, row, by_erasure.get(row["erasure_id"], []), by_order) for row in rows]


def _proof(
    workspace: str,
    row: asyncpg.Record,
    orders: Sequence[asyncpg.Record],
    reports: Mapping[UUID, Sequence[asyncpg.Record]],
) -> ErasureProof:
    shown = [
        OrderView(
            order_id=one["order_id"],
            ordered_at=one["ordered_at"],
            messages=one["messages"],
            missing=_missing(reports.get(one["order_id"], ())),
        )
        for one in orders
    ]
    told = [one for order in orders for one in reports.get(order["order_id"], ())]
    missing = [service for service in Service if any(service in order.missing for order in shown)]
    last = max((order.ordered_at for order in shown), default=row["asked_at"])
    return ErasureProof(
        erasure_id=row["erasure_id"],
        workspace_id=workspace,
        contact_tag=row["tag"].hex(),
        cause=row["cause"],
        asked_by=row["asked_by"],
        asked_at=row["asked_at"],
        state="running" if missing else "complete",
        missing=missing,
        completed_at=None if missing else max((one["reported_at"] for one in told), default=None),
        url=url_of(workspace, row["erasure_id"]),
        orders=shown,
        services=_services(told),
        topics=[
            TopicView(topic=topic, holds=holds, until=last + TOPICS[topic].gone_after)
            for topic, holds in PERSONAL_TOPICS.items()
        ],
    )


def _missing(reports: Iterable[asyncpg.Record]) -> list[Service]:
    told = {one["service"] for one in reports}
    return [service for service in Service if service not in told]


def _services(reports: Sequence[asyncpg.Record]) -> list[ServiceView]:
    """Each service's tables, added up over all orders; of what is kept the last word counts."""
    found: list[ServiceView] = []
    for service in Service:
        own = [one for one in reports if one["service"] == service]
        summed: dict[tuple[str, str, str | None], TableView] = {}
        for one in own:
            for table in _TABLES.validate_json(one["tables"]):
                view = TableView(**table.model_dump())
                before = summed.get(key := (view.table, view.act, view.ground))
                if before is not None and view.act != "kept":
                    view.rows += before.rows
                summed[key] = view
        if own:
            reported_at: datetime = max(one["reported_at"] for one in own)
            found.append(ServiceView(service=service, reported_at=reported_at, tables=list(summed.values())))
    return found


def _request(workspace: str, row: asyncpg.Record) -> PrivacyRequestView:
    contact_id, erasure_id = row["contact_id"], row["erasure_id"]
    export = f"/v1/workspaces/{workspace}/contacts/{quote(contact_id, safe='')}/export" if contact_id else None
    return PrivacyRequestView(
        request_id=row["request_id"],
        kind=row["kind"],
        asked_at=row["asked_at"],
        webhook=row["shop"],
        contact_id=contact_id,
        export_url=export,
        answer_by=row["asked_at"] + ANSWER_WITHIN if export else None,
        erasure_url=url_of(workspace, erasure_id) if erasure_id else None,
    )


async def _data(connection: Connection, tagger: store.Tagger, workspace: str, contact_id: str) -> DataAnswer:
    own = await people.find_contact(connection, workspace, contact_id)
    contacts = await people.records_of(connection, own) if own else []
    marks = {mark for contact in contacts for mark in contact.marks} or {Mark(workspace, "contact", contact_id)}
    tags = sorted({tagger(mark) for mark in marks})
    rows = await connection.fetch(_MESSAGES_OF, workspace, tags, MESSAGES_MAX + 1)
    keys = [one.key for one in contacts] or [Key(workspace, contact_id)]
    history = await store.history_of(connection, keys, before=_END, until=None, limit=HISTORY_MAX + 1)
    return DataAnswer(
        contacts=[_contact_data(one) for one in contacts],
        history=[_word_data(row) for row in history[:HISTORY_MAX]],
        history_left_out=max(0, len(history) - HISTORY_MAX),
        message_ids=[row["message_id"] for row in rows[:MESSAGES_MAX]],
        messages_left_out=len(rows) > MESSAGES_MAX,
    )


def _contact_data(contact: Contact) -> ContactData:
    word, fields = contact.word, contact.fields
    return ContactData(
        contact_id=contact.key.contact_id,
        person_id=str(contact.person.id),
        external_ids=list(fields.external_ids),
        phone=fields.e164,
        phone_given=fields.phone,
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
        created_at=contact.created_at,
        updated_at=contact.updated_at,
    )


def _word_data(row: asyncpg.Record) -> WordData:
    return WordData(
        contact_id=row["contact_id"],
        kind=row["kind"],
        note=row["note"],
        fields=timeline.phone_fields_in(row, clear=True),
        said=row["said_state"],
        at=row["said_at"],
        source=row["source"],
        proof=row["proof"],
        stood=row["stood_state"],
        by=row["by"],
        recorded_at=row["recorded_at"],
    )
