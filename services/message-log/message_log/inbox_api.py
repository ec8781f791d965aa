"""The inbox under /v1: threads, and one thread in both directions (contract.md, message-log)."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import asyncpg
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sendwhy import http
from sendwhy.events import Moment, TemplateUpdated
from sendwhy.http import Caller
from sendwhy.postgres import Connection
from sendwhy.problems import not_found
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text

from message_log import api, inbox_queries, queries, template_forms
from message_log.api import Cursor, Limit, csv_response
from message_log.inbox_queries import Head, Whom, Window
from message_log.settings import MessageLogSettings
from message_log.view import MessageView, Viewer, read_json

CSV_PAGE = 200
CSV_TEXT_MAX = 200


class WindowView(BaseModel):
    """Until when free text may be sent from the number to which the person wrote last."""

    sender_id: str
    until: Moment
    open: bool


class ThreadEntry(BaseModel):
    """`in`: what the person wrote. `out`: what was sent (message). `text`: what it says, null where no words are known:
    media, a template that was never told, what is erased or past retention."""

    direction: str
    at: Moment
    text: str | None = None
    kind: str | None = None
    provider_message_id: str | None = None
    message: MessageView | None = None


class ThreadView(BaseModel):
    """`contact_id` null: nobody whom a contact names."""

    contact_id: str | None
    items: list[ThreadEntry]
    next_cursor: str | None
    name: str | None
    phone: str | None
    window: WindowView | None


class ThreadItem(BaseModel):
    """`contact_id` null: nobody whom a contact names; their thread is at `url`. `text`: the latest word, if it is the
    person's; `message`: the last answer. `waits_for_answer`: the person had the last word."""

    contact_id: str | None
    name: str | None
    phone: str | None
    at: Moment
    waits_for_answer: bool
    text: str | None
    kind: str | None
    window: WindowView | None
    message: MessageView | None
    url: str


class ThreadList(BaseModel):
    items: list[ThreadItem]
    next_cursor: str | None


def routes(runtime: Runtime, settings: MessageLogSettings) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["inbox"])

    @router.get("/threads", summary="Threads, the one with the latest word first")
    async def list_threads(
        request: Request, caller: http.Viewer, cursor: Cursor = None, limit: Limit = 50
    ) -> ThreadList:
        return await load_threads(
            runtime, caller.workspace, api.viewer_for(request, caller, settings), cursor=cursor, limit=limit
        )

    @router.get("/threads.csv", response_class=StreamingResponse, summary="Threads as CSV")
    async def export_threads(request: Request, caller: http.Viewer) -> StreamingResponse:
        return csv_of_threads(runtime, caller, api.viewer_for(request, caller, settings))

    @router.get("/threads/{contact:path}")
    async def read_thread(
        request: Request, caller: http.Viewer, contact: str, cursor: Cursor = None, limit: Limit = 50
    ) -> ThreadView:
        viewer = api.viewer_for(request, caller, settings)
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            whom = await known_contact(connection, caller.workspace, contact)
            return await load_thread(connection, caller.workspace, whom, viewer, cursor=cursor, limit=limit)

    @router.get("/inbound/{event_id}/thread", summary="The thread of whoever wrote this, contact or not")
    async def read_thread_of(
        request: Request, caller: http.Viewer, event_id: str, cursor: Cursor = None, limit: Limit = 50
    ) -> ThreadView:
        viewer = api.viewer_for(request, caller, settings)
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            whom = await known_stranger(connection, caller.workspace, event_id)
            return await load_thread(connection, caller.workspace, whom, viewer, cursor=cursor, limit=limit)

    return router


async def load_threads(
    runtime: Runtime, workspace: str, viewer: Viewer, *, cursor: str | None, limit: int
) -> ThreadList:
    now = datetime.now(UTC)
    # As the service itself: a policy makes this anti-join some six times as dear (ADR 41).
    async with runtime.within(None, snapshot=True) as connection:
        page = await inbox_queries.list_heads(connection, workspace, cursor=cursor, limit=limit)
    return ThreadList(items=[_item(head, workspace, viewer, now) for head in page.heads], next_cursor=page.next_cursor)


def _item(head: Head, workspace: str, viewer: Viewer, now: datetime) -> ThreadItem:
    whom, wrote = head.whom, head.wrote
    window = None if wrote is None else Window(wrote["sender_id"], wrote["at"] + inbox_queries.WINDOW)
    return ThreadItem(
        contact_id=whom.contact_id,
        name=whom.name,
        phone=phone_of(whom, viewer),
        at=head.at,
        waits_for_answer=head.waits_for_answer,
        text=wrote["text"] if wrote is not None and head.waits_for_answer else None,
        kind=wrote["kind"] if wrote is not None and head.waits_for_answer else None,
        window=window_view(window, now),
        message=None if head.sent is None else viewer.message(head.sent),
        url=viewer.page(workspace, "inbox", _place_of(head)),
    )


def _place_of(head: Head) -> str:
    """The thread's address below the inbox. A number stands in no address: a stranger is known by what they wrote."""
    if head.whom.contact_id is not None:
        return f"with/{quote(head.whom.contact_id, safe='')}"
    return f"from/{head.wrote['event_id']}" if head.wrote is not None else ""


def phone_of(whom: Whom, viewer: Viewer) -> str | None:
    """One of the person's numbers, as this reader may see it."""
    return viewer.phone(f"+{whom.number}") if whom.number else None


def window_view(window: Window | None, now: datetime) -> WindowView | None:
    if window is None:
        return None
    return WindowView(sender_id=window.sender_id, until=window.until, open=window.is_open(now))


async def known_contact(connection: Connection, workspace: str, contact: str) -> Whom:
    if "\x00" in contact:
        raise not_found("The contact")
    return await inbox_queries.contact_called(connection, workspace, contact)


async def known_stranger(connection: Connection, workspace: str, event_id: str) -> Whom:
    whom = await inbox_queries.who_wrote(connection, workspace, event_id)
    if whom is None:
        raise not_found("What was written")
    return whom


async def load_thread(
    connection: Connection, workspace: str, whom: Whom, viewer: Viewer, *, cursor: str | None, limit: int
) -> ThreadView:
    """Both directions merged by time, newest first; one cursor walks both lists."""
    sent = await inbox_queries.sent_to(connection, workspace, whom, cursor=cursor, limit=limit + 1)
    written = await queries.inbound_of(connection, workspace, whom.phones, cursor=cursor, limit=limit + 1)
    contact = whom.contact_id
    known = sent or written or (contact and await queries.contact_is_known(connection, workspace, contact))
    if not known and cursor is None:
        raise not_found("The contact")
    entries = [(row["at"], row["message_id"], row) for row in sent]
    entries += [(row["at"], str(row["event_id"]), row) for row in written]
    entries.sort(key=lambda entry: entry[:2], reverse=True)
    more = len(entries) > limit
    entries = entries[:limit]
    said = await _said(connection, workspace, [row["message_id"] for _, _, row in entries if "message_id" in row])
    window = await inbox_queries.window_of(connection, workspace, whom)
    return ThreadView(
        contact_id=contact,
        items=[_entry(row, viewer, said) for _, _, row in entries],
        next_cursor=queries.to_cursor(*entries[-1][:2]) if more and entries else None,
        name=whom.name,
        phone=phone_of(whom, viewer),
        window=window_view(window, datetime.now(UTC)),
    )


def _entry(row: asyncpg.Record, viewer: Viewer, said: dict[str, str]) -> ThreadEntry:
    if "message_id" not in row:
        return ThreadEntry(
            direction="in", at=row["at"], text=row["text"], kind=row["kind"], provider_message_id=row["wamid"]
        )
    message = viewer.message(row)
    return ThreadEntry(
        direction="out",
        at=row["at"],
        text=said.get(message.message_id),
        message=message,
        provider_message_id=message.provider_message_id,
    )


async def _said(connection: Connection, workspace: str, message_ids: Sequence[str]) -> dict[str, str]:
    """What these messages say, as far as it is known."""
    bodies = await inbox_queries.requests_of(connection, workspace, message_ids)
    contents = {name: request.get("content") for name, body in bodies.items() if (request := _object(body))}
    templates: dict[str, TemplateUpdated] = {}
    if any(isinstance(content, dict) and content.get("type") == "template" for content in contents.values()):
        templates = template_forms.by_key(await inbox_queries.templates_of(connection, workspace))
    words = {name: template_forms.said_in(content, templates) for name, content in contents.items()}
    return {name: text for name, text in words.items() if text}


def _object(body: bytes) -> dict[str, Any]:
    found = read_json(body)
    return found if isinstance(found, dict) else {}


def csv_of_threads(runtime: Runtime, caller: Caller, viewer: Viewer) -> StreamingResponse:
    return csv_response("threads", caller, _csv_lines(runtime, caller.workspace, viewer))


async def _csv_lines(runtime: Runtime, workspace: str, viewer: Viewer) -> AsyncIterator[str]:
    yield csv_text(
        [
            (
                "contact_id",
                "name",
                "phone",
                "at",
                "waits_for_answer",
                "text",
                "window_until",
                "last_answer_status",
                "last_answer_reason",
                "url",
            )
        ]
    )
    cursor: str | None = None
    while True:
        page = await load_threads(runtime, workspace, viewer, cursor=cursor, limit=CSV_PAGE)
        if page.items:
            yield csv_text([_csv_row(item) for item in page.items])
        if (cursor := page.next_cursor) is None:
            return


def _csv_row(item: ThreadItem) -> list[Any]:
    message = item.message
    return [
        item.contact_id,
        item.name,
        item.phone,
        item.at.isoformat(),
        item.waits_for_answer,
        item.text and item.text[:CSV_TEXT_MAX],
        item.window and item.window.until.isoformat(),
        message and message.status,
        message and message.reason and message.reason.code,
        item.url,
    ]
