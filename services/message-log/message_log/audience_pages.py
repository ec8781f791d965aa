"""Audience checks, and failed messages that are sent again: what would become of many requests, before any is sent."""

from typing import IO, Annotated, Any
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.postgres import Connection
from sendwhy.problems import Problem
from starlette.datastructures import UploadFile

from message_log import api, audience_api, cells, login, message_pages, queries, words
from message_log.audience_api import Desk
from message_log.audience_job import Asked, Run, claim
from message_log.audience_lines import FILE_BYTES_MAX, LINES_MAX
from message_log.audience_view import PAGES, AudienceView
from message_log.language import gettext as _
from message_log.language import told
from message_log.login import Reader
from message_log.pages import Pages, redirect, wants_part
from message_log.queries import Filters
from message_log.resend import Sum
from message_log.resend_store import PLAN_MAX

SECTIONS = {"file": "audience", "again": "messages"}
Group = Annotated[str | None, Query(max_length=100)]


def install(router: APIRouter, pages: Pages, desk: Desk) -> None:
    shown = _Shown(pages, desk)
    _file_routes(router, shown)
    _again_routes(router, shown)
    for kind in PAGES:
        _routes_of(router, shown, kind)


class _Shown:
    """What both kinds of pages do."""

    def __init__(self, pages: Pages, desk: Desk) -> None:
        self.pages, self.desk = pages, desk

    def asked(self, request: Request, reader: Reader) -> Asked:
        rights = audience_api.rights_for(request.app.state.acting, reader.token, reader.workspace, None)
        return Asked(reader.workspace, reader.token.name, rights)

    def home(self, reader: Reader, kind: str, audience_id: UUID | None = None) -> str:
        home = f"/w/{quote(reader.workspace, safe='')}/{PAGES[kind]}"
        return f"{home}/{audience_id}" if audience_id else home

    async def view(self, request: Request, reader: Reader, audience_id: UUID, kind: str) -> AudienceView:
        viewer = self.pages.viewer(request, reader)
        return await self.desk.view(reader.workspace, audience_id, kind, viewer)

    async def page(
        self, request: Request, reader: Reader, audience_id: UUID, kind: str, *, problem: str | None = None
    ) -> Response:
        block = "course" if wants_part(request) else None
        return self.pages.render(
            "audience_result.html",
            status=422 if problem else 200,
            block=block,
            reader=reader,
            section=SECTIONS[kind],
            audience=await self.view(request, reader, audience_id, kind),
            path=self.home(reader, kind, audience_id),
            problem=problem,
        )

    async def list_page(self, request: Request, reader: Reader, *, problem: str | None = None) -> Response:
        checks = await self.desk.listed(reader.workspace, "file", self.pages.viewer(request, reader))
        return self.pages.render(
            "audience.html",
            status=422 if problem else 200,
            reader=reader,
            section="audience",
            checks=checks,
            lines_max=LINES_MAX,
            megabytes_max=FILE_BYTES_MAX // 1024 // 1024,
            problem=problem,
        )


def needs_operator(request: Request, reader: Reader) -> None:
    login.refuse_foreign_form(request)
    if not reader.may(Role.OPERATOR):
        raise Problem(403, words.needs_role(Role.OPERATOR))


def _file_routes(router: APIRouter, shown: _Shown) -> None:
    reader_dependency = shown.pages.reader()

    @router.get("/w/{w}/audience")
    async def list_page(request: Request, reader: Reader = reader_dependency) -> Response:
        return await shown.list_page(request, reader)

    @router.post("/w/{w}/audience")
    async def upload(request: Request, reader: Reader = reader_dependency) -> Response:
        needs_operator(request, reader)
        asked = shown.asked(request, reader)
        try:
            with shown.desk.place():
                async with request.form(max_files=1, max_fields=10) as form:
                    file = form.get("file")
                    if not isinstance(file, UploadFile) or not file.filename:
                        return await shown.list_page(request, reader, problem=_("Choose a file first."))
                    made = await _take_file(shown.desk, asked, file.file, file.filename)
        except Problem as problem:
            if problem.status_code >= 500:
                raise
            return await shown.list_page(request, reader, problem=told(str(problem.detail)))
        await shown.pages.note(reader, "check audience", str(made), "done")
        return redirect(shown.home(reader, "file", made), request)

    @router.get("/w/{w}/audience/{audience_id}/lines.jsonl")
    async def lines_as_they_came(
        request: Request, audience_id: UUID, reader: Reader = reader_dependency, group: Group = None
    ) -> StreamingResponse:
        await _may_load(shown, request, reader, audience_id, "file")
        return shown.desk.jsonl(reader.workspace, audience_id, group)


async def _take_file(desk: Desk, asked: Asked, file: IO[bytes], name: str) -> UUID:
    async def take(connection: Connection) -> Run:
        return await audience_api.take_file(connection, asked, file, name)

    return await desk.begin(take)


async def _may_load(shown: _Shown, request: Request, reader: Reader, audience_id: UUID, kind: str) -> None:
    if not reader.may(Role.OPERATOR):
        raise Problem(403, "The lines name people: this needs the role operator.")
    await shown.view(request, reader, audience_id, kind)


def _again_routes(router: APIRouter, shown: _Shown) -> None:
    reader_dependency = shown.pages.reader()

    @router.get("/w/{w}/send-again")
    async def start_page(
        filters: api.FilterQuery, reader: Reader = reader_dependency, range: message_pages.Range = None
    ) -> Response:
        wanted = _failed_of(filters, range)
        async with shown.pages.runtime.within(reader.workspace, snapshot=True) as connection:
            count = await cells.total(connection, reader.workspace, wanted)
        query = urlencode(wanted.model_dump(mode="json", by_alias=True, exclude_none=True))
        chips = [(name, value) for name, value in wanted.active.items() if name != "status"]
        return shown.pages.render(
            "send_again.html",
            reader=reader,
            section="messages",
            count=count,
            chips=chips,
            query=query,
            plan_max=PLAN_MAX,
        )

    @router.post("/w/{w}/send-again")
    async def plan(request: Request, filters: api.FilterQuery, reader: Reader = reader_dependency) -> Response:
        needs_operator(request, reader)
        asked = shown.asked(request, reader)
        async with shown.pages.runtime.within(reader.workspace, wait_seconds=30) as connection:
            chosen = await audience_api.choose(connection, reader.workspace, filters)
        made = await shown.desk.begin(lambda connection: audience_api.take_chosen(connection, asked, chosen))
        await shown.pages.note(reader, "plan to send again", str(made), "done")
        return redirect(shown.home(reader, "again", made), request)


def _failed_of(filters: Filters, range_name: str | None) -> Filters:
    """The failed messages of a list, with its time as it is now."""
    since = filters.since
    if since is None and filters.until is None:
        since = queries.since_of(range_name or message_pages.DEFAULT_RANGE)
    return filters.model_copy(update={"status": "failed", "since": since})


def _routes_of(router: APIRouter, shown: _Shown, kind: str) -> None:
    reader_dependency = shown.pages.reader()
    path = f"/w/{{w}}/{PAGES[kind]}/{{audience_id}}"

    @router.get(path)
    async def page(request: Request, audience_id: UUID, reader: Reader = reader_dependency) -> Response:
        return await shown.page(request, reader, audience_id, kind)

    @router.post(path)
    async def act(request: Request, audience_id: UUID, reader: Reader = reader_dependency) -> Response:
        needs_operator(request, reader)
        await shown.view(request, reader, audience_id, kind)
        form = await login.form_of(request)
        try:
            problem = await _act(shown, request, reader, audience_id, form)
        except Problem as error:
            # Pressed twice, or by two people: what runs is what the page shows.
            if error.status_code != 409:
                raise
            problem = None
        if problem is not None:
            return await shown.page(request, reader, audience_id, kind, problem=problem)
        return redirect(shown.home(reader, kind, audience_id), request)

    @router.get(f"{path}/lines.csv")
    async def lines(
        request: Request, audience_id: UUID, reader: Reader = reader_dependency, group: Group = None
    ) -> StreamingResponse:
        await _may_load(shown, request, reader, audience_id, kind)
        return await shown.desk.csv(reader.caller, audience_id, group)


async def _act(shown: _Shown, request: Request, reader: Reader, audience_id: UUID, form: dict[str, str]) -> str | None:
    """Do what the form asks for; why it can't be done, or None."""
    what = form.get("do", "")
    if what == "cancel":
        await shown.desk.cancel(reader.workspace, audience_id, reader.token.name)
    elif what == "again":
        asked = shown.asked(request, reader)
        await shown.desk.begin(lambda connection: claim(connection, asked, audience_id))
    elif what == "confirm":
        planned = _planned_in(form)
        if planned is None:
            return _("The form does not say what was planned; look at the plan again.")
        asked = shown.asked(request, reader)
        await shown.desk.begin(lambda connection: claim(connection, asked, audience_id, planned))
    else:
        raise Problem(422, "This form asks for nothing that is known here.")
    await shown.pages.note(reader, _NOTES[what], str(audience_id), "done")
    return None


_NOTES = {"cancel": "cancel many", "again": "judge many again", "confirm": "confirm send again"}


def _planned_in(form: dict[str, Any]) -> Sum | None:
    given = [form.get(name, "") for name in ("messages", "credits")]
    if not all(each.isdecimal() and len(each) < 10 for each in given):
        return None
    return Sum(*map(int, given))
