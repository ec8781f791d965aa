"""The pages at /: HTML from the same queries as the API. Every state has an address; all works without script."""

import mimetypes
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2_fragments import render_block
from pydantic_core import to_json
from sendwhy.access import Role
from sendwhy.events import OriginKind
from sendwhy.postgres import TRANSIENT_ERRORS, Connection
from sendwhy.problems import not_found
from sendwhy.reasons import CATALOGUE, Service
from sendwhy.service import Runtime
from starlette.exceptions import HTTPException

from message_log import api, login, queries, words
from message_log.freshness import Freshness
from message_log.login import NotLoggedIn, Reader
from message_log.queries import STATUSES, Filters, Page
from message_log.settings import MessageLogSettings
from message_log.view import MessageDetail, Viewer, WebhookItem, mask, webhook_fields

HERE = Path(__file__).parent
STATIC = HERE / "static"
DEFAULT_RANGE = "7d"
PAGE_ROWS = 50
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "vary": "HX-Request, Cookie",
}

Range = Annotated[Literal["15m", "1h", "24h", "7d", "30d", "all"] | None, Query()]
_Routed = Callable[[Request], Coroutine[Any, Any, Response]]


def make_templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "words": words,
        "catalogue": CATALOGUE,
        "statuses": STATUSES,
        "services": [service for service in Service if service is not Service.MESSAGE_LOG],
        "origins": list(OriginKind),
        "static": static_url,
        "quoted": lambda text: quote(str(text), safe=""),
        "mask": mask,
        "may_see_all": lambda reader: reader is not None and reader.sees_everything,
        "role_name": lambda token: Role(token.role).name.lower(),
    }
    return templates


def static_url(path: str) -> str:
    """Our own files carry their time in the address, so that a new version is never hidden by an old copy."""
    if path.startswith("vendor/"):
        return f"/static/{path}"
    return f"/static/{path}?v={int((STATIC / path).stat().st_mtime)}"


class Pages:
    """Renders templates with what every page shows."""

    def __init__(self, runtime: Runtime, settings: MessageLogSettings, freshness: Freshness) -> None:
        self.runtime, self.settings, self.freshness = runtime, settings, freshness
        self._templates = make_templates()

    def render(self, name: str, *, status: int = 200, block: str | None = None, **values: Any) -> HTMLResponse:
        given = {"reader": None, "section": "", "as_of": self.freshness.as_of(), "now": datetime.now(UTC)} | values
        if block is not None:
            text = render_block(self._templates, name, block, **given)
        else:
            text = self._templates.get_template(name).render(**given)
        return HTMLResponse(text, status, headers=PAGE_HEADERS)

    def viewer(self, request: Request, reader: Reader) -> Viewer:
        return Viewer(reader.token.role, api.base_of(request, self.settings))

    def connect(self) -> Any:
        return self.runtime.pool.acquire(timeout=10)

    def route_class(self) -> type[APIRoute]:
        """Routes whose errors are pages too: what happened, and what to do."""
        pages = self

        class PageRoute(APIRoute):
            def get_route_handler(self) -> _Routed:
                handle = super().get_route_handler()

                async def guarded(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except NotLoggedIn:
                        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                        return _redirect(f"/login?{urlencode({'next': wanted})}", request)
                    except RequestValidationError as error:
                        fields = ", ".join(str(entry["loc"][-1]) for entry in error.errors())
                        return pages.error(422, f"These filters can’t be read: {fields}.")
                    except HTTPException as error:
                        return pages.error(error.status_code, str(error.detail))
                    except TRANSIENT_ERRORS:
                        return pages.error(503, "The database doesn’t answer at the moment.")

                return guarded

        return PageRoute

    def error(self, status: int, detail: str) -> HTMLResponse:
        return self.render("error.html", status=status, code=status, detail=detail)


def _redirect(to: str, request: Request) -> Response:
    # htmx would follow a redirect inside the swap; this makes the whole page go there.
    if request.headers.get("hx-request") == "true":
        return Response(status_code=200, headers={"HX-Redirect": to, **PAGE_HEADERS})
    return RedirectResponse(to, 303, headers=PAGE_HEADERS)


def install(app: FastAPI, runtime: Runtime, settings: MessageLogSettings, freshness: Freshness) -> None:
    pages = Pages(runtime, settings, freshness)
    router = APIRouter(include_in_schema=False, route_class=pages.route_class())
    _login_routes(router, pages)
    _message_routes(router, pages)
    _webhook_routes(router, pages)
    router.add_api_route("/static/{path:path}", static_file, methods=["GET"])
    app.include_router(router)


async def static_file(path: str) -> Response:
    file = (STATIC / path).resolve()
    if not file.is_relative_to(STATIC) or not file.is_file():
        raise not_found("The file")
    kind = mimetypes.guess_type(file.name)[0] or "text/plain"
    headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return FileResponse(file, media_type=kind, headers=headers)


def _login_routes(router: APIRouter, pages: Pages) -> None:
    @router.get("/")
    async def home(request: Request) -> Response:
        token = await login.token_of(pages.runtime, request)
        if token.workspace != "*":
            return _redirect(f"/w/{token.workspace}/messages", request)
        async with pages.connect() as connection:
            seen = await queries.workspaces_seen(connection)
        return pages.render("workspaces.html", workspaces=seen, token=token)

    @router.get("/login")
    async def login_page(next: str = "/") -> Response:
        return pages.render("login.html", next=login.path_to_return_to(next), wrong=False)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        login.refuse_foreign_form(request)
        given = await login.field_of_form(request, "token")
        wanted = login.path_to_return_to(await login.field_of_form(request, "next"))
        async with pages.connect() as connection:
            session_id = await login.log_in(connection, request, given)
        if session_id is None:
            return pages.render("login.html", status=403, next=wanted, wrong=True)
        response = _redirect(wanted, request)
        public = pages.settings.public_url
        login.set_cookie(response, session_id, secure=public is not None and public.scheme == "https")
        return response

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        login.refuse_foreign_form(request)
        async with pages.connect() as connection:
            await login.log_out(connection, request)
        response = _redirect("/login", request)
        response.delete_cookie(login.COOKIE, path="/")
        return response


def _reader(pages: Pages) -> Any:
    async def find(request: Request, w: str) -> Reader:
        return await login.reader_of(pages.runtime, request, w)

    return Depends(find)


class Address:
    """A list's address: its filters and its range, and the addresses one step away."""

    def __init__(self, workspace: str, filters: Filters, range_name: str | None) -> None:
        self.path = f"/w/{quote(workspace, safe='')}/messages"
        self.filters, self.range = filters, range_name

    def _query(self, filters: Filters, **more: str | None) -> str:
        given = filters.model_dump(mode="json", by_alias=True, exclude_none=True)
        pairs = {**given, "range": self.range, **more}
        return urlencode({name: value for name, value in pairs.items() if value is not None})

    def _to(self, path: str, query: str) -> str:
        return f"{path}?{query}" if query else path

    def with_(self, **change: Any) -> str:
        """The same list with filters set (or, by None, taken away)."""
        given = self.filters.model_dump(mode="json", exclude_none=True) | change
        return self._to(self.path, self._query(Filters.model_validate_json(to_json(given))))

    def page(self, cursor: str) -> str:
        return self._to(self.path, self._query(self.filters, cursor=cursor))

    def csv(self) -> str:
        return self._to(f"{self.path}.csv", self._query(self.filters))

    @property
    def plain(self) -> str:
        return self.path


def _message_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = _reader(pages)

    @router.get("/w/{w}/messages")
    async def list_page(
        request: Request,
        filters: api.FilterQuery,
        reader: Reader = reader_dependency,
        range: Range = None,
        cursor: api.Cursor = None,
    ) -> Response:
        async with queries.snapshot(pages.runtime.pool) as connection:
            values = await _list_values(connection, reader, filters, range, cursor)
        if filters.q and len(values["page"].rows) == 1 and cursor is None and not _wants_part(request):
            return _redirect(_message_path(reader, values["page"].rows[0]["message_id"]), request)
        viewer = pages.viewer(request, reader)
        messages = [viewer.message(row) for row in values["page"].rows]
        block = "results" if _wants_part(request) else None
        return pages.render(
            "messages.html", block=block, reader=reader, section="messages", messages=messages, **values
        )

    @router.get("/w/{w}/messages.csv")
    async def export(
        request: Request,
        filters: api.FilterQuery,
        reader: Reader = reader_dependency,
        range: Range = None,
    ) -> StreamingResponse:
        wanted = filters.model_copy(update={"since": filters.since or queries.since_of(range)})
        return api.csv_answer(pages.runtime, reader.caller, wanted, pages.viewer(request, reader))

    @router.get("/w/{w}/messages/{message_id}")
    async def message_page(request: Request, message_id: str, reader: Reader = reader_dependency) -> Response:
        message = await api.load_message(pages.runtime, reader.workspace, message_id, pages.viewer(request, reader))
        return pages.render("message.html", reader=reader, section="messages", message=message, steps=steps_of(message))


def _wants_part(request: Request) -> bool:
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-request-type") == "partial"


def _message_path(reader: Reader, message_id: str) -> str:
    return f"/w/{quote(reader.workspace, safe='')}/messages/{quote(message_id, safe='')}"


async def _list_values(
    connection: Connection, reader: Reader, filters: Filters, range_name: str | None, cursor: str | None
) -> dict[str, Any]:
    shown_range = range_name or ("all" if filters.since or filters.until else DEFAULT_RANGE)
    timed = filters.model_copy(update={"since": filters.since or queries.since_of(shown_range)})
    workspace = reader.workspace
    page = await queries.list_messages(connection, workspace, timed, cursor=cursor, limit=PAGE_ROWS)
    statuses = await queries.count_by_status(connection, workspace, timed.model_copy(update={"status": None}))
    all_reasons = timed.model_copy(update={"status": None, "reason": None})
    return {
        "page": page,
        "filters": filters,
        "range": shown_range,
        "cursor": cursor,
        "address": Address(workspace, filters, range_name),
        "by_status": statuses,
        "by_reason": await queries.count_by_reason(connection, workspace, all_reasons),
        "chips": [(name, value) for name, value in filters.active.items() if value],
        "ways_out": await _ways_out(connection, workspace, filters, timed) if not page.rows else [],
        "any_at_all": bool(page.rows) or await queries.has_messages(connection, workspace),
    }


async def _ways_out(connection: Connection, workspace: str, filters: Filters, timed: Filters) -> list[tuple[str, int]]:
    """For an empty list: each filter, and how many messages would show without it."""
    found = []
    for name in filters.active:
        counts = await queries.count_by_status(connection, workspace, timed.model_copy(update={name: None}))
        found.append((name, sum(counts.values())))
    return found


def steps_of(message: MessageDetail) -> list[dict[str, Any]]:
    """The timeline: each event with its offset from the first and the gap to the one before, in seconds."""
    steps: list[dict[str, Any]] = []
    requests = 0
    for event in message.events:
        data = event.model_dump(mode="json", exclude_none=True)
        requests += event.kind == "requested"
        before = message.events[len(steps) - 1].at if steps else event.at
        steps.append(
            {
                "event": event,
                "data": data,
                "offset": (event.at - message.events[0].at).total_seconds(),
                "gap": (event.at - before).total_seconds(),
                "repeated": event.kind == "requested" and requests > 1,
            }
        )
    return steps


def _webhook_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = _reader(pages)

    @router.get("/w/{w}/webhooks")
    async def list_page(reader: Reader = reader_dependency, cursor: api.Cursor = None) -> Response:
        async with pages.connect() as connection:
            page: Page = await queries.list_webhooks(
                connection, reader.workspace, everything=reader.sees_everything, cursor=cursor, limit=PAGE_ROWS
            )
        items = [WebhookItem(**webhook_fields(row), kinds=row["kinds"]) for row in page.rows]
        return pages.render(
            "webhooks.html", reader=reader, section="webhooks", items=items, cursor=cursor, next_cursor=page.next_cursor
        )

    @router.get("/w/{w}/webhooks/{webhook_id}")
    async def webhook_page(webhook_id: str, reader: Reader = reader_dependency) -> Response:
        webhook = await api.load_webhook(pages.runtime, reader.workspace, webhook_id, everything=reader.sees_everything)
        return pages.render("webhook.html", reader=reader, section="webhooks", webhook=webhook)
