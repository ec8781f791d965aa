"""Audience checks and plans to send again, under /v1 (contract.md, message-log)."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import IO, Annotated, Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sendwhy import http
from sendwhy.access import Role, Token
from sendwhy.acting import Acting
from sendwhy.http import Body, Caller, Operator
from sendwhy.postgres import Connection
from sendwhy.problems import Problem
from sendwhy.service import Runtime
from sendwhy.settings import PREFIX
from starlette.requests import ClientDisconnect

from message_log import accounts, api, audience_view, resend_store
from message_log import audience_store as stored
from message_log.audience_job import Audiences, Rights
from message_log.audience_lines import FILE_BYTES_MAX, LINES_MAX, Line, Reading, TooManyLines
from message_log.audience_store import New
from message_log.audience_view import COLUMNS, PATHS, AudienceView
from message_log.language import decimal
from message_log.language import gettext as _
from message_log.queries import Filters
from message_log.resend import Sum
from message_log.settings import MessageLogSettings
from message_log.view import Viewer, read_json

SPOOLED_BYTES = 1024 * 1024
LINES_AT_ONCE = 1000
RUNNING_MAX = 5
# Bodies of requests for this service, by method and path; everything else is small.
BODY_LIMITS = {
    "POST /v1/workspaces/*/audience-checks": FILE_BYTES_MAX,
    # A form adds its own lines to the file.
    "POST /w/*/audience": FILE_BYTES_MAX + 64 * 1024,
}
_JSONL: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"Bodies of send.requested, one a line; at most {LINES_MAX:,} lines and 64 MB.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}

AudienceId = Annotated[UUID, Path(alias="id")]
GroupName = Annotated[str | None, Query(max_length=100, description="A group, or an outcome for all of its groups.")]


class AudienceList(BaseModel):
    items: list[AudienceView]
    next_cursor: None = None


class Confirmation(Body):
    """What the plan said when it was looked at."""

    messages: Annotated[int, Field(ge=1)]
    credits: Annotated[int, Field(ge=0)]


def rights_for(acting: Acting, token: Token, workspace: str, own: str | None) -> Rights:
    """The Authorization with which a run asks the services, for as long as it takes: to look at this workspace only,
    whatever else its person may do."""
    looking = Token(token.name, Role.VIEWER, workspace)
    if acting.is_possible:
        return lambda: f"Bearer {acting.seal(looking)}"
    if own is None:
        name = f"{PREFIX}ACTING_KEY"
        raise Problem(503, _("%(name)s is not set, so the pages can't ask other services.", name=name))
    return lambda: own


class Desk:
    """Takes files and filters in, for pages and API."""

    def __init__(self, runtime: Runtime, audiences: Audiences) -> None:
        self.runtime, self.audiences = runtime, audiences

    async def take_file(self, workspace: str, file: IO[bytes], name: str, who: str, rights: Rights) -> UUID:
        """Store a file's lines and begin to judge them. All of it or nothing is stored."""
        shown = "".join(each for each in name if each.isprintable())[:200]
        new = New(uuid4(), workspace, "file", shown, who, 0)
        pieces = Reading(file, workspace).pieces()
        async with self.runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await _refuse_more(connection, workspace)
            await stored.add(connection, new)
            try:
                while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                    await stored.add_lines(connection, new.audience_id, piece)
            except TooManyLines:
                detail = _("The file has more than %(count)s requests. Check it in parts.", count=decimal(LINES_MAX))
                raise Problem(413, detail) from None
            if not await stored.count_lines(connection, new.audience_id):
                raise Problem(422, "The file is empty: it needs one request a line.")
        await self.audiences.begin(workspace, new.audience_id, who, rights)
        return new.audience_id

    async def take_filters(self, workspace: str, filters: Filters, who: str, rights: Rights) -> UUID:
        """Store which failed messages match, and begin to judge them."""
        failed = filters.model_copy(update={"status": "failed"})
        named = urlencode(failed.model_dump(mode="json", by_alias=True, exclude_none=True))
        async with self.runtime.within(workspace, wait_seconds=30) as connection:
            ids, matched = await resend_store.matching(connection, workspace, failed)
        if not ids:
            raise Problem(422, "No failed message matches, so there is nothing to send again.")
        async with self.runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await _refuse_more(connection, workspace)
            new = New(uuid4(), workspace, "again", named, who, matched)
            await stored.add(connection, new)
            lines = [Line(number, b"", name) for number, name in enumerate(ids, start=1)]
            await stored.add_lines(connection, new.audience_id, lines)
            await stored.count_lines(connection, new.audience_id)
        await self.audiences.begin(workspace, new.audience_id, who, rights)
        return new.audience_id

    async def view(self, workspace: str, audience_id: UUID, kind: str, viewer: Viewer) -> AudienceView:
        async with self.runtime.within(workspace, snapshot=True) as connection:
            return await audience_view.load(connection, workspace, audience_id, kind, viewer)

    async def listed(self, workspace: str, kind: str, viewer: Viewer) -> list[AudienceView]:
        async with self.runtime.within(workspace) as connection:
            rows = await stored.listed(connection, workspace, kind)
        return [audience_view.view_of(row, [], viewer) for row in rows]

    async def cancel(self, workspace: str, audience_id: UUID, who: str) -> None:
        async with self.runtime.within(workspace) as connection:
            await stored.cancel(connection, workspace, audience_id, f"{who} cancelled it.")

    async def note(self, workspace: str, who: str, action: str, audience_id: UUID, result: str) -> None:
        async with self.runtime.within(workspace) as connection:
            await accounts.note(connection, workspace, who, action, str(audience_id), result)

    async def csv(self, caller: Caller, audience_id: UUID, group: str | None) -> StreamingResponse:
        return api.csv_response("audience", caller, self._csv_lines(caller.workspace, audience_id, group))

    async def _csv_lines(self, workspace: str, audience_id: UUID, group: str | None) -> AsyncIterator[str]:
        yield api.csv_text([COLUMNS])
        async for rows in self._pages(workspace, audience_id, group):
            async with self.runtime.within(workspace) as connection:
                ids = [row["message_id"] for row in rows if row["body"] is None and row["message_id"]]
                kept = await resend_store.requests_of(connection, workspace, ids) if ids else {}
            lines = []
            for row in rows:
                old = kept.get(row["message_id"])
                to = old.to.model_dump() if old else _recipient(row["body"])
                lines.append(audience_view.cells_of(row, to))
            yield api.csv_text(lines)

    def jsonl(self, workspace: str, audience_id: UUID, group: str | None) -> StreamingResponse:
        """The lines as they came, so that they can be corrected, or sent."""
        file = f"{(group or 'all').replace('.', '-')}-{audience_id}.jsonl"
        safe = "".join(each for each in file if each.isalnum() or each in "-_.")
        headers = {"content-disposition": f'attachment; filename="{safe}"', "cache-control": "no-store"}
        return StreamingResponse(
            self._bodies(workspace, audience_id, group), media_type="application/x-ndjson", headers=headers
        )

    async def _bodies(self, workspace: str, audience_id: UUID, group: str | None) -> AsyncIterator[bytes]:
        async for rows in self._pages(workspace, audience_id, group):
            yield b"".join(row["body"] + b"\n" for row in rows if row["body"])

    async def _pages(self, workspace: str, audience_id: UUID, group: str | None) -> AsyncIterator[list[Any]]:
        """A connection for each page: a slow reader holds none."""
        last = 0
        while True:
            async with self.runtime.within(workspace) as connection:
                rows = await stored.lines(connection, audience_id, group, last, LINES_AT_ONCE)
            if not rows:
                return
            last = rows[-1]["number"]
            yield rows


async def _refuse_more(connection: Connection, workspace: str) -> None:
    if await stored.running(connection, workspace) >= RUNNING_MAX:
        detail = _("%(count)s checks or plans run already. Wait until one has ended, or stop one.", count=RUNNING_MAX)
        problem = Problem(429, detail)
        problem.headers = {"retry-after": "10"}
        raise problem


def _recipient(body: bytes | None) -> dict[str, Any]:
    told = read_json(body)
    to = told.get("to") if isinstance(told, dict) else None
    return {name: value for name, value in to.items() if isinstance(value, str)} if isinstance(to, dict) else {}


async def _received(request: Request, file: IO[bytes]) -> None:
    try:
        async for chunk in request.stream():
            file.write(chunk)
    except ClientDisconnect:
        raise Problem(400, "The upload was broken off; nothing of it is kept.") from None
    file.seek(0)


def routes(settings: MessageLogSettings, desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["audience"])

    def rights(request: Request, caller: Caller) -> Rights:
        own = request.headers["authorization"]
        return rights_for(request.app.state.acting, caller.token, caller.workspace, own)

    async def answer(request: Request, caller: Caller, audience_id: UUID, kind: str) -> Response:
        view = await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))
        headers = {"location": f"/v1/workspaces/{caller.workspace}/{PATHS[kind]}/{audience_id}"}
        return Response(view.model_dump_json(), 202, headers=headers, media_type="application/json")

    @router.post("/audience-checks", status_code=202, response_model=AudienceView, openapi_extra=_JSONL)
    async def check_file(
        request: Request, caller: Operator, name: Annotated[str, Query(max_length=200)] = "file"
    ) -> Response:
        """Judge a file of send requests: how many would go, wait or fail, and why. Nothing is sent or charged."""
        with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as file:
            await _received(request, file)
            made = await desk.take_file(
                caller.workspace,
                file,
                name,
                caller.token.name,
                rights(request, caller),
            )
        return await answer(request, caller, made, "file")

    @router.post("/send-again", status_code=202, response_model=AudienceView)
    async def plan(request: Request, caller: Operator, filters: api.FilterQuery) -> Response:
        """Judge the failed messages of a list anew: which of them would go today. Nothing is sent before `confirm`."""
        who = caller.token.name
        made = await desk.take_filters(caller.workspace, filters, who, rights(request, caller))
        return await answer(request, caller, made, "again")

    @router.post("/send-again/{id}/confirm", status_code=202, response_model=AudienceView)
    async def confirm(request: Request, caller: Operator, audience_id: AudienceId, body: Confirmation) -> Response:
        """Send again what the plan says would go, if it still is what it says. A repeat changes nothing."""
        await desk.view(caller.workspace, audience_id, "again", api.viewer_for(request, caller, settings))
        planned, who = Sum(body.messages, body.credits), caller.token.name
        await desk.audiences.confirm(caller.workspace, audience_id, who, rights(request, caller), planned)
        await desk.note(caller.workspace, who, "confirm send again", audience_id, f"{body.messages:,} messages")
        return await answer(request, caller, audience_id, "again")

    @router.get("/audience-checks/{id}/lines.jsonl", response_class=StreamingResponse)
    async def lines_as_they_came(
        request: Request, caller: Operator, audience_id: AudienceId, group: GroupName = None
    ) -> StreamingResponse:
        """A group's lines, to be sent or corrected."""
        await desk.view(caller.workspace, audience_id, "file", api.viewer_for(request, caller, settings))
        return desk.jsonl(caller.workspace, audience_id, group)

    for kind in PATHS:
        _routes_of(router, settings, desk, kind, rights, answer)
    return router


def _routes_of(
    router: APIRouter,
    settings: MessageLogSettings,
    desk: Desk,
    kind: str,
    rights: Callable[[Request, Caller], Rights],
    answer: Any,
) -> None:
    path = f"/{PATHS[kind]}/{{id}}"

    @router.get(f"/{PATHS[kind]}")
    async def listed(request: Request, caller: http.Viewer) -> AudienceList:
        """Those that are still kept, the newest first, without their groups."""
        items = await desk.listed(caller.workspace, kind, api.viewer_for(request, caller, settings))
        return AudienceList(items=items)

    @router.get(path)
    async def read(request: Request, caller: http.Viewer, audience_id: AudienceId) -> AudienceView:
        """How far it is, and its groups."""
        return await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))

    @router.post(f"{path}/again", status_code=202, response_model=AudienceView)
    async def judge_again(request: Request, caller: Operator, audience_id: AudienceId) -> Response:
        """Judge all lines anew, by what stands now."""
        await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))
        await desk.audiences.begin(caller.workspace, audience_id, caller.token.name, rights(request, caller))
        return await answer(request, caller, audience_id, kind)  # type: ignore[no-any-return]

    @router.post(f"{path}/cancel", status_code=202, response_model=AudienceView)
    async def cancel(request: Request, caller: Operator, audience_id: AudienceId) -> Response:
        """End the run. What was sent again by then stays sent."""
        await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))
        await desk.cancel(caller.workspace, audience_id, caller.token.name)
        return await answer(request, caller, audience_id, kind)  # type: ignore[no-any-return]

    @router.get(f"{path}/lines.csv", response_class=StreamingResponse)
    async def lines(
        request: Request, caller: Operator, audience_id: AudienceId, group: GroupName = None
    ) -> StreamingResponse:
        """A group's lines with what becomes of each; cells can't act as formulas."""
        await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))
        return await desk.csv(caller, audience_id, group)
