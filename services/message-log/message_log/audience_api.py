"""Audience checks and plans to send again, under /v1 (contract.md, message-log)."""

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Annotated, Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sendwhy import http
from sendwhy.access import Role, Token
from sendwhy.acting import Acting
from sendwhy.http import Body, Caller, IdempotencyKey, Operator
from sendwhy.postgres import Connection
from sendwhy.problems import Problem
from sendwhy.service import Runtime
from sendwhy.settings import PREFIX
from sendwhy.sheets import csv_text
from starlette.requests import ClientDisconnect

from message_log import accounts, api, audience_view, resend_store
from message_log import audience_store as stored
from message_log.audience_job import Asked, Audiences, Rights, Run, claim
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
# Each lies on this process' disk, in the folder for temporary files, until its lines are stored.
UPLOADS_AT_ONCE = 3
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

# What a write does within its transaction; the run that it takes begins once that is committed.
Take = Callable[[Connection], Awaitable[Run]]
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


@dataclass(frozen=True, slots=True)
class Chosen:
    """The failed messages that a list's filters, `named` as a query, choose: `ids` of the `matched` that there are."""

    named: str
    ids: list[str]
    matched: int


async def take_file(connection: Connection, asked: Asked, file: IO[bytes], name: str) -> Run:
    """Store a file's lines, to be judged. All of it or nothing is stored."""
    shown = "".join(each for each in name if each.isprintable())[:200]
    new = New(uuid4(), asked.workspace, "file", shown, asked.who, 0)
    pieces = Reading(file, asked.workspace).pieces()
    await _refuse_more(connection, asked.workspace)
    await stored.add(connection, new)
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await stored.add_lines(connection, new.audience_id, piece)
    except TooManyLines:
        detail = _("The file has more than %(count)s requests. Check it in parts.", count=decimal(LINES_MAX))
        raise Problem(413, detail) from None
    if not await stored.count_lines(connection, new.audience_id):
        raise Problem(422, "The file is empty: it needs one request a line.")
    return await claim(connection, asked, new.audience_id)


async def choose(connection: Connection, workspace: str, filters: Filters) -> Chosen:
    failed = filters.model_copy(update={"status": "failed"})
    named = urlencode(failed.model_dump(mode="json", by_alias=True, exclude_none=True))
    ids, matched = await resend_store.matching(connection, workspace, failed)
    if not ids:
        raise Problem(422, "No failed message matches, so there is nothing to send again.")
    return Chosen(named, ids, matched)


async def take_chosen(connection: Connection, asked: Asked, chosen: Chosen) -> Run:
    """Store which failed messages were chosen, to be judged."""
    await _refuse_more(connection, asked.workspace)
    new = New(uuid4(), asked.workspace, "again", chosen.named, asked.who, chosen.matched)
    await stored.add(connection, new)
    lines = [Line(number, b"", name) for number, name in enumerate(chosen.ids, start=1)]
    await stored.add_lines(connection, new.audience_id, lines)
    await stored.count_lines(connection, new.audience_id)
    return await claim(connection, asked, new.audience_id)


class Desk:
    """Files and filters that were taken in, for pages and API."""

    def __init__(self, runtime: Runtime, audiences: Audiences) -> None:
        self.runtime, self.audiences = runtime, audiences
        self._uploads = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one more file on this process' disk. Raises Problem where there is none."""
        if self._uploads >= UPLOADS_AT_ONCE:
            busy = _("%(count)s files are being read just now. Try again.", count=UPLOADS_AT_ONCE)
            raise Problem(503, busy, headers={"retry-after": "5"})
        self._uploads += 1
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise Problem(507, _("There is no room for the file on this service’s disk.")) from None
        finally:
            self._uploads -= 1

    async def begin(self, take: Take) -> UUID:
        """Take a run, and begin it."""
        async with self.runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            run = await take(connection)
        self.audiences.start(run)
        return run.audience_id

    async def view(self, workspace: str, audience_id: UUID, kind: str, viewer: Viewer) -> AudienceView:
        async with self.runtime.within(workspace, snapshot=True) as connection:
            return await audience_view.load(connection, workspace, audience_id, kind, viewer)

    async def listed(self, workspace: str, kind: str, viewer: Viewer) -> list[AudienceView]:
        async with self.runtime.within(workspace) as connection:
            rows = await stored.listed(connection, workspace, kind)
        return [audience_view.view_of(row, [], viewer) for row in rows]

    async def cancel(self, workspace: str, audience_id: UUID, who: str) -> None:
        async with self.runtime.within(workspace) as connection:
            await stored.cancel(connection, workspace, audience_id, who)

    async def csv(self, caller: Caller, audience_id: UUID, group: str | None) -> StreamingResponse:
        return api.csv_response("audience", caller, self._csv_lines(caller.workspace, audience_id, group))

    async def _csv_lines(self, workspace: str, audience_id: UUID, group: str | None) -> AsyncIterator[str]:
        yield csv_text([COLUMNS])
        async for rows in self._pages(workspace, audience_id, group):
            async with self.runtime.within(workspace) as connection:
                ids = [row["message_id"] for row in rows if row["body"] is None and row["message_id"]]
                kept = await resend_store.requests_of(connection, workspace, ids) if ids else {}
            lines = []
            for row in rows:
                old = kept.get(row["message_id"])
                to = old.to.model_dump() if old else _recipient(row["body"])
                lines.append(audience_view.cells_of(row, to))
            yield csv_text(lines)

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
        raise Problem(429, detail, headers={"retry-after": "10"})


def _recipient(body: bytes | None) -> dict[str, Any]:
    told = read_json(body)
    to = told.get("to") if isinstance(told, dict) else None
    return {name: value for name, value in to.items() if isinstance(value, str)} if isinstance(to, dict) else {}


async def _received(request: Request, file: IO[bytes]) -> bytes:
    """Read the body into `file`; returns the request's digest for `http.once`."""
    digest = http.digest_begun(request)
    try:
        async for chunk in request.stream():
            digest.update(chunk)
            file.write(chunk)
    except ClientDisconnect:
        raise Problem(400, "The upload was broken off; nothing of it is kept.") from None
    file.seek(0)
    return digest.digest()


class Writes:
    """The API's writes: each once per Idempotency-Key, answered by what is there then."""

    def __init__(self, settings: MessageLogSettings, desk: Desk) -> None:
        self._settings, self._desk = settings, desk

    def asked(self, request: Request, caller: Caller) -> Asked:
        own = request.headers["authorization"]
        rights = rights_for(request.app.state.acting, caller.token, caller.workspace, own)
        return Asked(caller.workspace, caller.token.name, rights)

    async def run(
        self, request: Request, caller: Caller, key: str | None, take: Take, *, digest: bytes | None = None
    ) -> Response:
        """Take a run, and begin it."""
        taken: list[Run] = []

        async def act() -> tuple[int, bytes]:
            run = await take(connection)
            taken.append(run)
            return await self._shown(connection, request, caller, run.audience_id, run.kind)

        async with self._desk.runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            answer = await http.once(connection, request, caller, key, act, digest=digest)
        for run in taken:
            self._desk.audiences.start(run)
        return _located(answer, caller.workspace)

    async def choose(self, request: Request, caller: Caller, key: str | None, filters: Filters) -> Chosen | Response:
        """As the role that sees one workspace; or the answer that stands, though other messages have failed by now."""
        async with self._desk.runtime.within(caller.workspace, wait_seconds=30) as connection:
            stands = await http.answered(connection, request, caller, key)
            return _located(stands, caller.workspace) if stands else await choose(connection, caller.workspace, filters)

    async def cancel(self, request: Request, caller: Caller, key: str | None, audience_id: UUID, kind: str) -> Response:
        async def act() -> tuple[int, bytes]:
            await audience_view.read(connection, caller.workspace, audience_id, kind)
            await stored.cancel(connection, caller.workspace, audience_id, caller.token.name)
            return await self._shown(connection, request, caller, audience_id, kind)

        async with self._desk.runtime.within(caller.workspace) as connection:
            return _located(await http.once(connection, request, caller, key, act), caller.workspace)

    async def _shown(
        self, connection: Connection, request: Request, caller: Caller, audience_id: UUID, kind: str
    ) -> tuple[int, bytes]:
        viewer = api.viewer_for(request, caller, self._settings)
        view = await audience_view.load(connection, caller.workspace, audience_id, kind, viewer)
        return 202, view.model_dump_json().encode()


def _located(answer: Response, workspace: str) -> Response:
    """With the address of what the answer shows, also where it is one that stands."""
    shown: Any = read_json(bytes(answer.body))
    answer.headers["location"] = f"/v1/workspaces/{workspace}/{PATHS[shown['kind']]}/{shown['id']}"
    return answer


def routes(settings: MessageLogSettings, desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["audience"])
    writes = Writes(settings, desk)
    _file_routes(router, settings, desk, writes)
    _plan_routes(router, writes)
    for kind in PATHS:
        _routes_of(router, settings, desk, writes, kind)
    return router


def _file_routes(router: APIRouter, settings: MessageLogSettings, desk: Desk, writes: Writes) -> None:
    @router.post("/audience-checks", status_code=202, response_model=AudienceView, openapi_extra=_JSONL)
    async def check_file(
        request: Request,
        caller: Operator,
        name: Annotated[str, Query(max_length=200)] = "file",
        key: IdempotencyKey = None,
    ) -> Response:
        """Judge a file of send requests: how many would go, wait or fail, and why. Nothing is sent or charged."""
        asked = writes.asked(request, caller)
        with desk.place(), tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as file:
            digest = await _received(request, file)

            async def take(connection: Connection) -> Run:
                return await take_file(connection, asked, file, name)

            return await writes.run(request, caller, key, take, digest=digest)

    @router.get("/audience-checks/{id}/lines.jsonl", response_class=StreamingResponse)
    async def lines_as_they_came(
        request: Request, caller: Operator, audience_id: AudienceId, group: GroupName = None
    ) -> StreamingResponse:
        """A group's lines, to be sent or corrected."""
        await desk.view(caller.workspace, audience_id, "file", api.viewer_for(request, caller, settings))
        return desk.jsonl(caller.workspace, audience_id, group)


def _plan_routes(router: APIRouter, writes: Writes) -> None:
    @router.post("/send-again", status_code=202, response_model=AudienceView)
    async def plan(
        request: Request, caller: Operator, filters: api.FilterQuery, key: IdempotencyKey = None
    ) -> Response:
        """Judge the failed messages of a list anew: which of them would go today. Nothing is sent before `confirm`."""
        asked = writes.asked(request, caller)
        chosen = await writes.choose(request, caller, key, filters)
        if isinstance(chosen, Response):
            return chosen
        return await writes.run(request, caller, key, lambda connection: take_chosen(connection, asked, chosen))

    @router.post("/send-again/{id}/confirm", status_code=202, response_model=AudienceView)
    async def confirm(
        request: Request, caller: Operator, audience_id: AudienceId, body: Confirmation, key: IdempotencyKey = None
    ) -> Response:
        """Send again what the plan says would go, if it still is what it says. A repeat changes nothing."""
        asked, planned = writes.asked(request, caller), Sum(body.messages, body.credits)

        async def take(connection: Connection) -> Run:
            await audience_view.read(connection, caller.workspace, audience_id, "again")
            run = await claim(connection, asked, audience_id, planned)
            action, said = "confirm send again", f"{body.messages:,} messages"
            await accounts.note(connection, caller.workspace, asked.who, action, str(audience_id), said)
            return run

        return await writes.run(request, caller, key, take)


def _routes_of(router: APIRouter, settings: MessageLogSettings, desk: Desk, writes: Writes, kind: str) -> None:
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
    async def judge_again(
        request: Request, caller: Operator, audience_id: AudienceId, key: IdempotencyKey = None
    ) -> Response:
        """Judge all lines anew, by what stands now."""
        asked = writes.asked(request, caller)

        async def take(connection: Connection) -> Run:
            await audience_view.read(connection, caller.workspace, audience_id, kind)
            return await claim(connection, asked, audience_id)

        return await writes.run(request, caller, key, take)

    @router.post(f"{path}/cancel", status_code=202, response_model=AudienceView)
    async def cancel(
        request: Request, caller: Operator, audience_id: AudienceId, key: IdempotencyKey = None
    ) -> Response:
        """End the run. What was sent again by then stays sent."""
        return await writes.cancel(request, caller, key, audience_id, kind)

    @router.get(f"{path}/lines.csv", response_class=StreamingResponse)
    async def lines(
        request: Request, caller: Operator, audience_id: AudienceId, group: GroupName = None
    ) -> StreamingResponse:
        """A group's lines with what becomes of each; cells can't act as formulas."""
        await desk.view(caller.workspace, audience_id, kind, api.viewer_for(request, caller, settings))
        return await desk.csv(caller, audience_id, group)
