"""Contacts: the list, and one person: what would stop a message now, consent and its history, phone, messages."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sendwhy.access import Role
from sendwhy.events import TemplateUpdated
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import Service

from message_log import api, contact_api, contact_queries, login, queries
from message_log.contact_api import APPROVED, ContactQuery, EligibilityQuery
from message_log.contact_queries import ContactFilters, Sendable
from message_log.eligibility import Eligibility
from message_log.language import told
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Action, Pages, redirect
from message_log.queries import Filters
from message_log.told import Told, told_by

MESSAGES_SHOWN = 10
HISTORY_SHOWN = "20"
# What the form leaves to us: the template and number that most messages of a workspace go with.
FREE_TEXT = "-"

ACTIONS = {
    "subscribe": Action("subscribe", Service.CONSENT, Role.OPERATOR),
    "unsubscribe": Action("unsubscribe", Service.CONSENT, Role.OPERATOR),
    "accept": Action("accept suggestion", Service.CONSENT, Role.OPERATOR),
}


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/contacts")
    async def list_page(
        request: Request, filters: ContactQuery, reader: Reader = reader_dependency, cursor: api.Cursor = None
    ) -> Response:
        async with pages.runtime.within(reader.workspace) as connection:
            page = await contact_queries.list_contacts(
                connection, reader.workspace, filters, pages.viewer(request, reader), cursor=cursor, limit=PAGE_ROWS
            )
        return pages.render(
            "contacts.html",
            reader=reader,
            section="contacts",
            page=page,
            filters=filters,
            query=_query_of(filters),
            cursor=cursor,
        )

    @router.get("/w/{w}/contacts.csv")
    async def export(request: Request, filters: ContactQuery, reader: Reader = reader_dependency) -> StreamingResponse:
        return contact_api.contacts_csv(pages.runtime, reader.workspace, filters, pages.viewer(request, reader))

    @router.get("/w/{w}/contacts/{contact_id:path}")
    async def contact_page(
        request: Request,
        contact_id: str,
        asked: Annotated[EligibilityQuery, Query()],
        reader: Reader = reader_dependency,
        history: api.Cursor = None,
        done: Annotated[str, Query(max_length=20)] = "",
    ) -> Response:
        return await _show(pages, request, reader, contact_id, asked, history=history, done=done)

    @router.post("/w/{w}/contacts/{contact_id:path}")
    async def act(request: Request, contact_id: str, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        form = await login.form_of(request)
        what = form.get("do", "")
        if what not in ACTIONS:
            raise Problem(422, "This form asks for nothing that a contact knows.")
        if what == "accept":
            body = {name: form.get(name) or None for name in ("phone", "ground", "note")}
            answer = await pages.act(
                request, reader, ACTIONS[what], "contacts", contact_id, "suggestion", "accept", body=body
            )
        else:
            body = {name: form[name] for name in ("proof", "at") if form.get(name)}
            answer = await pages.act(request, reader, ACTIONS[what], "contacts", contact_id, what, body=body)
        if not answer.is_good:
            asked = EligibilityQuery()
            return await _show(
                pages, request, reader, contact_id, asked, status=answer.status, problem=answer.refusal, given=form
            )
        return redirect(f"{path_of_contact(reader, contact_id)}?done={what}", request)


def path_of_contact(reader: Reader, contact_id: str) -> str:
    return f"/w/{quote(reader.workspace, safe='')}/contacts/{quote(contact_id, safe='')}"


def _query_of(filters: ContactFilters) -> str:
    given = filters.model_dump(mode="json", exclude_none=True)
    return urlencode(given)


async def _show(
    pages: Pages,
    request: Request,
    reader: Reader,
    contact_id: str,
    asked: EligibilityQuery,
    *,
    status: int = 200,
    history: str | None = None,
    **more: Any,
) -> Response:
    filters = _messages_to(contact_id)
    async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
        known = await contact_queries.sendable(connection, reader.workspace)
        sent = await queries.list_messages(connection, reader.workspace, filters, limit=MESSAGES_SHOWN)
    (person, past, suggestion), (eligibility, refusal, chosen) = await asyncio.gather(
        _told_by_consent(pages, reader, contact_id, history),
        _judge(pages, reader, contact_id, asked, known),
    )
    if person.body is None and not sent.rows and not await _is_known(pages, reader, contact_id):
        raise not_found("The contact")
    values = {"problem": None, "done": "", "given": {}} | more
    return pages.render(
        "contact.html",
        status=status,
        reader=reader,
        section="contacts",
        contact_id=contact_id,
        here=path_of_contact(reader, contact_id),
        person=person,
        past=past,
        older=bool(history),
        suggestion=suggestion.body.get("suggestion") if suggestion.body else None,
        senders=known.senders,
        templates=known.templates_of(asked.sender),
        asked=asked,
        chosen=chosen,
        eligibility=eligibility,
        refusal=refusal,
        messages=[pages.viewer(request, reader).message(row) for row in sent.rows],
        more_messages=sent.next_cursor is not None,
        **values,
    )


def _messages_to(contact_id: str) -> Filters:
    """Raises Problem where no contact can have that id."""
    try:
        filters = Filters(contact=contact_id)
    except ValidationError:
        raise not_found("The contact") from None
    if filters.contact is None:
        raise not_found("The contact")
    return filters


async def _told_by_consent(
    pages: Pages, reader: Reader, contact_id: str, history: str | None
) -> tuple[Told, Told, Told]:
    """The contact, a page of its history, and the calling code that is suggested for it."""
    paging = [("limit", HISTORY_SHOWN), *([("cursor", history)] if history else [])]
    return await asyncio.gather(
        told_by(pages, reader, Service.CONSENT, "contacts", contact_id),
        told_by(pages, reader, Service.CONSENT, "contacts", contact_id, "history", asked=paging),
        told_by(pages, reader, Service.CONSENT, "contacts", contact_id, "suggestion"),
    )


async def _is_known(pages: Pages, reader: Reader, contact_id: str) -> bool:
    async with pages.runtime.within(reader.workspace) as connection:
        return await queries.contact_is_known(connection, reader.workspace, contact_id)


async def _judge(
    pages: Pages, reader: Reader, contact_id: str, asked: EligibilityQuery, known: Sendable
) -> tuple[Eligibility | None, str | None, TemplateUpdated | None]:
    """What would become of a message, or why that can't be asked; and the template that is chosen."""
    templates = known.templates_of(asked.sender)
    wanted = _wanted(asked, templates)
    try:
        question = contact_api.question_of(reader.caller, contact_id, wanted, templates)
        return await pages.judge(reader, question), None, question.template
    except Problem as problem:
        return None, told(str(problem.detail)), None


def _wanted(asked: EligibilityQuery, templates: Sequence[TemplateUpdated]) -> EligibilityQuery:
    """The page's select names template and language in one; without a choice it is the first approved template."""
    if asked.template == FREE_TEXT:
        return asked.model_copy(update={"template": None})
    if asked.template is None:
        first = next((one for one in templates if one.status == APPROVED), None)
        update = {"template": first.name, "language": first.language} if first else {}
        return asked.model_copy(update=update)
    if asked.language is None and "/" in asked.template:
        name, _, language = asked.template.rpartition("/")
        return asked.model_copy(update={"template": name, "language": language})
    return asked
