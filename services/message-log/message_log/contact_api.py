"""Contacts, and one person's eligibility, as JSON under /v1; and as CSV the lists that their services only page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, model_validator
from sendwhy import http
from sendwhy.access import Role
from sendwhy.events import ContactId, Purpose, TemplateUpdated
from sendwhy.http import Caller
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text

from message_log import api, contact_queries
from message_log.contact_queries import ContactFilters, ContactRow
from message_log.eligibility import Eligibility, Question, judge
from message_log.queries import Text
from message_log.services import Answer, OtherServices, path_of
from message_log.settings import MessageLogSettings
from message_log.view import Viewer

CSV_PAGE = 500
APPROVED = "APPROVED"

CONTACT_COLUMNS = ("contact_id", "name", "phone", "phone_given", "marketing_state", "since", "source")
# Each list: whose it is, where it stands there, and its columns.
LISTS = {
    "templates": (
        Service.DISPATCHER,
        "templates",
        ("name", "language", "status", "category", "quality", "rejected_reason", "said_by", "said_at", "synced_at"),
    ),
    "senders": (
        Service.DISPATCHER,
        "senders",
        (
            "sender_id",
            "display_phone_number",
            "default",
            "waba_id",
            "portfolio_id",
            "quality_rating",
            "messaging_limit",
            "messages_per_second",
            "paused_at",
            "hold",
            "hold_since",
            "hold_until",
            "synced_at",
        ),
    ),
    "ledger": (
        Service.BILLING,
        "ledger",
        (
            "version",
            "at",
            "kind",
            "amount",
            "balance_after",
            "message_id",
            "category",
            "country",
            "origin_kind",
            "origin_id",
            "cause",
            "cause_kind",
            "cause_reason",
        ),
    ),
}

Ask = Callable[[Sequence[tuple[str, str]]], Awaitable[Answer]]


class ContactList(BaseModel):
    """A page may hold fewer than `limit`, also none, and still have a next one."""

    items: list[ContactRow]
    next_cursor: str | None


class EligibilityQuery(BaseModel):
    """`template` empty: a free text. `language` may be left out where the template has one only. `purpose`: by default
    marketing for a MARKETING template, transactional for another, conversation for a free text."""

    template: Text | None = None
    language: Text | None = None
    sender: Text | None = None
    purpose: Purpose | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        return {name: value or None for name, value in given.items()} if isinstance(given, dict) else given


def _filters(filters: Annotated[ContactFilters, Query()]) -> ContactFilters:
    return filters


ContactQuery = Annotated[ContactFilters, Depends(_filters)]


# Got into the contract by mistake.
NotRead = Annotated[str, Query(alias="name", deprecated=True, description="Not read.")]


def routes(runtime: Runtime, settings: MessageLogSettings, services: OtherServices) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["contacts"])

    @router.get("/contacts")
    async def list_contacts(
        request: Request, caller: http.Viewer, filters: ContactQuery, cursor: api.Cursor = None, limit: api.Limit = 50
    ) -> ContactList:
        viewer = api.viewer_for(request, caller, settings)
        async with runtime.within(caller.workspace) as connection:
            page = await contact_queries.list_contacts(
                connection, caller.workspace, filters, viewer, cursor=cursor, limit=limit
            )
        return ContactList(items=page.items, next_cursor=page.next_cursor)

    @router.get("/contacts.csv", response_class=StreamingResponse)
    async def export_contacts(request: Request, caller: http.Viewer, filters: ContactQuery) -> StreamingResponse:
        return contacts_csv(runtime, caller.workspace, filters, api.viewer_for(request, caller, settings))

    @router.get("/contacts/{contact_id:path}/eligibility")
    async def read_eligibility(
        request: Request, caller: http.Viewer, contact_id: ContactId, asked: Annotated[EligibilityQuery, Query()]
    ) -> Eligibility:
        """Every gate for this person now, for a template (its parameters filled in with a sample) and a sender."""
        async with runtime.within(caller.workspace) as connection:
            known = await contact_queries.sendable(connection, caller.workspace)
        question = question_of(caller, contact_id, asked, known.templates_of(asked.sender))
        return await judge(services, request.headers["authorization"], question)

    def asking(request: Request, workspace: str, name: str) -> Ask:
        service, path, _ = LISTS[name]

        async def ask(asked: Sequence[tuple[str, str]]) -> Answer:
            return await services.get(service, path_of(workspace, path), request.headers["authorization"], asked)

        return ask

    def install_export(name: str) -> None:
        @router.get(f"/{name}.csv", response_class=StreamingResponse, operation_id=f"export_{name}")
        async def export(request: Request, caller: http.Viewer, _: NotRead = "") -> StreamingResponse:
            return await service_csv(name, caller.workspace, asking(request, caller.workspace, name))

    for name in LISTS:
        install_export(name)
    return router


def question_of(
    caller: Caller, contact_id: str, asked: EligibilityQuery, templates: Sequence[TemplateUpdated]
) -> Question:
    """What is judged; 422 where the template isn't one of theirs."""
    template = None
    if asked.template is not None:
        fitting = [one for one in templates if one.name == asked.template and asked.language in (None, one.language)]
        if not fitting:
            detail = "The number's account has no template of this name and language."
            raise Problem(422, detail, errors={"template": "is not known"})
        template = fitting[0]
    return Question(
        workspace=caller.workspace,
        contact_id=contact_id,
        template=template,
        sender_id=asked.sender,
        purpose=asked.purpose or purpose_for(template),
        shows_phones=caller.token.role >= Role.OPERATOR,
    )


def purpose_for(template: TemplateUpdated | None) -> Purpose:
    if template is None:
        return Purpose.CONVERSATION
    return Purpose.MARKETING if template.category == "MARKETING" else Purpose.TRANSACTIONAL


def contacts_csv(runtime: Runtime, workspace: str, filters: ContactFilters, viewer: Viewer) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield csv_text([CONTACT_COLUMNS])
        pages = contact_queries.all_contacts(lambda: runtime.within(workspace), workspace, filters, viewer, CSV_PAGE)
        async for items in pages:
            yield csv_text([[one.model_dump(mode="json")[name] for name in CONTACT_COLUMNS] for one in items])

    return csv_answer("contacts", workspace, lines())


async def service_csv(name: str, workspace: str, ask: Ask) -> StreamingResponse:
    """A service's list, page by page. The first page is read before the answer begins, so that a refusal is one."""
    columns = LISTS[name][2]
    first = await ask(_page_of(name, None))
    if not first.is_good:
        raise Problem(first.status, first.refusal)

    async def lines() -> AsyncIterator[str]:
        yield csv_text([columns])
        answer = first
        while True:
            items, cursor = items_of(answer)
            yield csv_text([[_cell(item.get(column)) for column in columns] for item in items])
            if cursor is None:
                return
            # A refusal here breaks the file off: one that ends as if complete would be believed.
            answer = await ask(_page_of(name, cursor))
            if not answer.is_good:
                raise Problem(answer.status, answer.refusal)

    return csv_answer(name, workspace, lines())


def _page_of(name: str, cursor: str | None) -> list[tuple[str, str]]:
    if name == "senders":
        return []
    return [("limit", str(CSV_PAGE)), *([("cursor", cursor)] if cursor else [])]


def items_of(answer: Answer) -> tuple[list[dict[str, Any]], str | None]:
    """The list in an answer, and the cursor for more."""
    if isinstance(answer.body, list):
        return answer.body, None
    return answer.body["items"], answer.body.get("next_cursor")


def _cell(value: Any) -> Any:
    """A hold is an object: its cause's title and detail are what a person reads."""
    if isinstance(value, dict):
        return ": ".join(str(value[name]) for name in ("title", "detail") if value.get(name))
    return value


def csv_answer(name: str, workspace: str, lines: AsyncIterator[str]) -> StreamingResponse:
    file = f"sendwhy-{name}-{workspace}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"
    headers = {"content-disposition": f'attachment; filename="{file}"', "cache-control": "no-store"}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)
