"""The JSON API under /v1 (contract.md, message-log)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from sendwhy import http
from sendwhy.access import Role
from sendwhy.events import SendRequested, event_id_of
from sendwhy.http import Caller, IdempotencyKey, Operator
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import ReasonCode, Service
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text
from sendwhy.stage import fields_of, trace_of
from sendwhy.topics import outgoing

from message_log import live, queries, resend_store
from message_log.queries import Filters, Page
from message_log.settings import MessageLogSettings
from message_log.view import (
    MessageDetail,
    MessageView,
    SentAgain,
    Viewer,
)

LIMIT_MAX = 500
CSV_PAGE = 1000
ANSWERED_AT_ONCE = 202

# What a message that is asked for here may leave out, beside what any send.requested may.
FILLED_IN = ("message_id", "workspace_id", "origin")
_MESSAGE = "MessageRequest"
_REFERENCE = "#/components/schemas/"
_MESSAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A send.requested.",
        "content": {"application/json": {"schema": {"$ref": f"{_REFERENCE}{_MESSAGE}"}}},
    }
}
_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]
Cursor = http.Cursor


class MessageList(BaseModel):
    items: list[MessageView]
    next_cursor: str | None


class ReasonCount(BaseModel):
    reason: ReasonCode
    service: str | None
    count: int


class Published(BaseModel):
    message_id: str
    url: str


def filters_of_query(filters: Annotated[Filters, Query()]) -> Filters:
    return filters


FilterQuery = Annotated[Filters, Depends(filters_of_query)]


def sees_everything(caller: Caller) -> bool:
    """Raw bytes and what belongs to nobody: only for an admin of all workspaces."""
    return caller.token.workspace == "*" and caller.token.role is Role.ADMIN


def scope_of(caller: Caller) -> str | None:
    """Within which workspace's rows (`Runtime.within`) their deliveries and dead letters are looked for."""
    return None if sees_everything(caller) else caller.workspace


def routes(runtime: Runtime, settings: MessageLogSettings, streams: live.Streams) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["messages"])
    _message_routes(router, runtime, settings)
    _stream_route(router, runtime, settings, streams)
    return router


def viewer_for(request: Request, caller: Caller, settings: MessageLogSettings) -> Viewer:
    return Viewer(caller.token.role, base_of(request, settings))


def _message_routes(router: APIRouter, runtime: Runtime, settings: MessageLogSettings) -> None:
    @router.post("/messages", status_code=ANSWERED_AT_ONCE, response_model=Published, openapi_extra=_MESSAGE_BODY)
    async def request_message(request: Request, caller: Operator, key: IdempotencyKey = None) -> Response:
        """Publish a send.requested. The body is the contract's, `message_id`, `workspace_id`, `origin` and
        `requested_at` may be left out. What becomes of it is told at `url`."""
        wanted = await _request_in(request, caller)

        async def publish() -> tuple[int, bytes]:
            trace = request.headers.get("traceparent", "").encode("latin-1")
            await hand_over(connection, wanted, trace=trace_of(trace))
            url = viewer_for(request, caller, settings).url(caller.workspace, wanted.message_id)
            return ANSWERED_AT_ONCE, Published(message_id=wanted.message_id, url=url).model_dump_json().encode()

        async with runtime.within(caller.workspace) as connection:
            answer = await http.once(connection, request, caller, key, publish)
        runtime.publish_soon()
        return answer

    @router.get("/messages")
    async def list_messages(
        request: Request, caller: http.Viewer, filters: FilterQuery, cursor: Cursor = None, limit: Limit = 50
    ) -> MessageList:
        async with runtime.within(caller.workspace) as connection:
            page = await queries.list_messages(connection, caller.workspace, filters, cursor=cursor, limit=limit)
        return message_list(viewer_for(request, caller, settings), page)

    @router.get("/messages.csv", response_class=StreamingResponse)
    async def export_messages(request: Request, caller: http.Viewer, filters: FilterQuery) -> StreamingResponse:
        return csv_answer(runtime, caller, filters, viewer_for(request, caller, settings))

    @router.get("/messages/{message_id}")
    async def read_message(request: Request, caller: http.Viewer, message_id: str) -> MessageDetail:
        return await load_message(runtime, caller.workspace, message_id, viewer_for(request, caller, settings))


def shapes_asked_for() -> dict[str, Any]:
    """The schemas that OpenAPI needs for the body of a message."""
    _, told = models_json_schema([(SendRequested, "validation")], ref_template=f"{_REFERENCE}{{model}}")
    shapes: dict[str, Any] = told["$defs"]
    message = shapes.pop(SendRequested.__name__)
    own = {
        "title": _MESSAGE,
        "description": "A send.requested (contract.md); what isn't required is filled in where it is left out.",
        "required": [name for name in message["required"] if name not in FILLED_IN],
    }
    return shapes | {_MESSAGE: message | own}


def _stream_route(router: APIRouter, runtime: Runtime, settings: MessageLogSettings, streams: live.Streams) -> None:
    async def start(
        response: Response,
        caller: http.Viewer,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=200)] = None,
    ) -> live.Position:
        """Where the stream begins; the answer's header says so, for who is cut off before the first event comes."""
        if position := live.read_position(last_event_id):
            return position
        async with runtime.within(caller.workspace) as connection:
            position = await queries.position_now(connection)
        response.headers["last-event-id"] = live.text_of(position)
        return position

    @router.get("/events", response_class=EventSourceResponse)
    async def stream(
        request: Request,
        caller: http.Viewer,
        filters: FilterQuery,
        _slot: Annotated[None, Depends(streams.slot)],
        position: Annotated[live.Position, Depends(start)],
    ) -> AsyncIterator[ServerSentEvent]:
        """Messages that fit the filters as they change, from now on or from `Last-Event-ID` on; `data` is a message as
        in the list. Without `Last-Event-ID`, the answer's header `Last-Event-ID` says from where to go on if it is cut
        off before the first message."""
        viewer = viewer_for(request, caller, settings)
        async for row in streams.changes(runtime, request.app, caller.workspace, position, filters):
            yield ServerSentEvent(data=viewer.message(row), id=live.position_of(row))


def base_of(request: Request, settings: MessageLogSettings) -> str:
    return str(settings.public_url or request.base_url)


async def load_message(runtime: Runtime, workspace: str, message_id: str, viewer: Viewer) -> MessageDetail:
    async with runtime.within(workspace, snapshot=True) as connection:
        row = await queries.read_message(connection, workspace, message_id) if "\x00" not in message_id else None
        if row is None:
            raise not_found("The message")
        events = await queries.events_of(connection, workspace, message_id, row["wamid"], row["sender_id"])
        webhooks = await queries.webhooks_of(connection, workspace, message_id, row["wamid"], row["sender_id"])
        original, repeats = await resend_store.links_of(connection, workspace, message_id)
    again = [SentAgain(message_id=one, by=by, at=at) for one, by, at in repeats]
    return viewer.detail(row, events, webhooks).model_copy(update={"resend_of": original, "sent_again_as": again})


async def _request_in(request: Request, caller: Caller) -> SendRequested:
    """The body as a send.requested of this workspace, or a 422 that names the fields."""
    try:
        given = _OBJECT.validate_json(await request.body())
        if given.setdefault("workspace_id", caller.workspace) != caller.workspace:
            raise Problem(422, "The body names another workspace.", errors={"workspace_id": "must be the path's"})
        # A repeat under the same Idempotency-Key never gets here with a new id: it gets the stored answer.
        given.setdefault("message_id", f"api-{uuid4()}")
        given.setdefault("origin", {"kind": "api"})
        given.setdefault("requested_at", datetime.now(UTC).isoformat())
        return SendRequested.model_validate_json(_OBJECT.dump_json(given))
    except ValidationError as error:
        fields = dict(line.partition(": ")[::2] for line in fields_of(error))
        raise Problem(422, "The request has fields that are missing or wrong.", errors=fields) from error


async def hand_over(connection: Connection, *wanted: SendRequested, trace: bytes | None = None) -> None:
    """Publish these send.requested once this transaction is committed."""
    events = [
        (
            event_id_of(f"{one.workspace_id}/{one.message_id}", "requested"),
            outgoing(one, source=Service.MESSAGE_LOG, trace=trace),
        )
        for one in wanted
    ]
    await add_to_outbox(connection, events)


def message_list(viewer: Viewer, page: Page) -> MessageList:
    return MessageList(items=[viewer.message(row) for row in page.rows], next_cursor=page.next_cursor)


_CSV_COLUMNS = (
    "message_id",
    "requested_at",
    "status",
    "reason",
    "title",
    "detail",
    "service",
    "recoverable",
    "contact_id",
    "phone",
    "origin",
    "origin_id",
    "template",
    "sender_id",
    "provider_message_id",
)


def csv_answer(runtime: Runtime, caller: Caller, filters: Filters, viewer: Viewer) -> StreamingResponse:
    return csv_response("messages", caller, _csv_lines(runtime, caller, filters, viewer))


def csv_response(name: str, caller: Caller, lines: AsyncIterator[str]) -> StreamingResponse:
    """A CSV file to download, with the list's name, the workspace and the time in its own."""
    file = f"sendwhy-{name}-{caller.workspace}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"
    headers = {"content-disposition": f'attachment; filename="{file}"', "cache-control": "no-store"}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


async def _csv_lines(runtime: Runtime, caller: Caller, filters: Filters, viewer: Viewer) -> AsyncIterator[str]:
    """Page by page, each with a connection of its own: a slow reader holds none."""
    yield csv_text([_CSV_COLUMNS])
    cursor: str | None = None
    while True:
        async with runtime.within(caller.workspace) as connection:
            page = await queries.list_messages(connection, caller.workspace, filters, cursor=cursor, limit=CSV_PAGE)
        if page.rows:
            yield csv_text([_csv_row(viewer.message(row)) for row in page.rows])
        if (cursor := page.next_cursor) is None:
            return


def _csv_row(message: MessageView) -> list[Any]:
    reason, origin = message.reason, message.origin or {}
    return [
        message.message_id,
        message.requested_at.isoformat(),
        message.status,
        reason.code if reason else None,
        reason.title if reason else None,
        reason.detail if reason else None,
        message.service,
        reason.recoverable if reason else None,
        message.to.contact_id,
        message.to.phone,
        origin.get("kind"),
        origin.get("id"),
        message.template,
        message.sender_id,
        message.provider_message_id,
    ]
