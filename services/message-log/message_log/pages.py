"""What the pages at / share: HTML from the same queries as the API. Every state has an address; all works without
script. Each group of pages is a module with an `install(router, pages)`."""

import mimetypes
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2_fragments import render_block
from pydantic import BaseModel
from sendwhy.access import Role
from sendwhy.events import OriginKind
from sendwhy.http import TooLarge
from sendwhy.postgres import TRANSIENT_ERRORS
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import CATALOGUE, Service
from sendwhy.service import Runtime
from sendwhy.settings import PREFIX
from starlette.exceptions import HTTPException

from message_log import accounts, api, language, login, words
from message_log.eligibility import Eligibility, Question, judge
from message_log.freshness import Freshness
from message_log.language import gettext as _
from message_log.language import lazy
from message_log.live import Streams
from message_log.login import NotLoggedIn, Reader
from message_log.queries import STATUSES
from message_log.services import PART_SECONDS, Answer, OtherServices, path_of
from message_log.settings import MessageLogSettings
from message_log.view import Viewer, mask

HERE = Path(__file__).parent
STATIC = HERE / "static"
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
    "vary": "HX-Request, Cookie, Accept-Language",
}


@dataclass(frozen=True, slots=True)
class Action:
    """Something that people do from a page at another service: its name in the record, and who may."""

    name: str
    service: Service
    role: Role
    method: str = "POST"


_Routed = Callable[[Request], Coroutine[Any, Any, Response]]


# What the navigation leads to: the path below the workspace, its word, and who sees it.
SECTIONS = (
    ("messages", lazy("Messages"), Role.VIEWER),
    ("campaigns", lazy("Campaigns"), Role.VIEWER),
    ("audience", lazy("Audience check"), Role.VIEWER),
    ("automations", lazy("Automations"), Role.VIEWER),
    ("inbox", lazy("Inbox"), Role.VIEWER),
    ("contacts", lazy("Contacts"), Role.VIEWER),
    ("credits", lazy("Credits"), Role.VIEWER),
    ("templates", lazy("Templates"), Role.VIEWER),
    ("senders", lazy("Senders"), Role.VIEWER),
    ("webhooks", lazy("Webhooks"), Role.VIEWER),
    ("diagnostics", lazy("Diagnostics"), Role.VIEWER),
    ("people", lazy("People"), Role.ADMIN),
)

# How the navigation groups them; a section that no group names stands in the last one.
GROUPS = (
    (lazy("Outcomes"), ("messages", "campaigns", "automations", "inbox")),
    (lazy("Sending"), ("audience", "contacts", "credits", "templates", "senders")),
    (lazy("System"), ("webhooks", "diagnostics", "people")),
)
# `g`, then this letter, goes to the section.
GO_KEYS = {
    "messages": "m",
    "campaigns": "p",
    "automations": "a",
    "inbox": "i",
    "audience": "u",
    "contacts": "c",
    "credits": "b",
    "templates": "t",
    "senders": "s",
    "webhooks": "w",
    "diagnostics": "d",
    "people": "r",
}


def menu_of(reader: Reader) -> list[tuple[str, list[tuple[str, str, str | None]]]]:
    """The groups of sections that somebody may see, each section as path, word and key."""
    menu = []
    grouped = {path for _, paths in GROUPS for path in paths}
    for group, paths in GROUPS:
        takes = {*paths, *(path for path, _, _ in SECTIONS if path not in grouped and group == GROUPS[-1][0])}
        members = [
            (path, word, GO_KEYS.get(path)) for path, word, role in SECTIONS if path in takes and reader.may(role)
        ]
        menu.append((group, members))
    return [(group, members) for group, members in menu if members]


def make_templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    language.speak(templates)
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
        "role_name": lambda role: words.ROLE_WORDS[Role(role)],
        "menu_of": menu_of,
        "moment": datetime.fromisoformat,
        "spoken": language.spoken,
        "allowed": lambda reader, role: reader is not None and reader.token.role >= role,
    }
    return templates


def static_url(path: str) -> str:
    """Our own files carry their time in the address, so that a new version is never hidden by an old copy."""
    if path.startswith("vendor/"):
        return f"/static/{path}"
    return f"/static/{path}?v={int((STATIC / path).stat().st_mtime)}"


class Pages:
    """Renders templates with what every page shows, and acts for the person at a page."""

    def __init__(
        self,
        runtime: Runtime,
        settings: MessageLogSettings,
        freshness: Freshness,
        services: OtherServices,
        streams: Streams,
    ) -> None:
        self.runtime, self.settings, self.freshness, self.services = runtime, settings, freshness, services
        self.streams = streams
        self.languages = language.languages()
        self._templates = make_templates()

    def render(self, name: str, *, status: int = 200, block: str | None = None, **values: Any) -> HTMLResponse:
        given = {
            "reader": None,
            "section": "",
            "as_of": self.freshness.as_of(),
            "now": datetime.now(UTC),
            "languages": self.languages.values(),
            **values,
        }
        if block is not None:
            text = render_block(self._templates, name, block, **given)
        else:
            text = self._templates.get_template(name).render(**given)
        return HTMLResponse(text, status, headers=PAGE_HEADERS)

    @property
    def is_secure(self) -> bool:
        """Whether cookies may only go over https."""
        public = self.settings.public_url
        return public is not None and public.scheme == "https"

    def viewer(self, request: Request, reader: Reader) -> Viewer:
        return Viewer(reader.token.role, api.base_of(request, self.settings))

    def connect(self) -> Any:
        return self.runtime.pool.acquire(timeout=10)

    def reader(self) -> Any:
        """A dependency: who is logged in, within the workspace `w` of the path."""

        async def find(request: Request, w: str) -> Reader:
            return await login.reader_of(self.runtime, request, w, secure=self.is_secure)

        return Depends(find)

    async def ask(
        self,
        reader: Reader,
        service: Service,
        *parts: str,
        asked: Sequence[tuple[str, str]] = (),
        seconds: float = PART_SECONDS,
    ) -> Answer:
        """What another service answers this person about `/v1/workspaces/{workspace}/{parts}`."""
        path = path_of(reader.workspace, *parts)
        return await self.services.get(service, path, _authorization(reader), asked, seconds=seconds)

    async def file(
        self, reader: Reader, service: Service, *parts: str, asked: Sequence[tuple[str, str]] = ()
    ) -> httpx.Response:
        """The same of a file, which comes piece by piece; whoever has it closes it."""
        return await self.services.file(service, path_of(reader.workspace, *parts), _authorization(reader), asked)

    async def judge(self, reader: Reader, question: Question) -> Eligibility:
        return await judge(self.services, _authorization(reader), question)

    async def act(
        self,
        request: Request,
        reader: Reader,
        what: Action,
        *parts: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        asked: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """Do something at another service for this person, and note it; a refusal is an answer too."""
        login.refuse_foreign_form(request)
        if not reader.may(what.role):
            raise Problem(403, words.needs_role(what.role))
        path = path_of(reader.workspace, *parts)
        answer = await self.services.write(
            what.method, what.service, path, _authorization(reader), body, key=key, asked=asked
        )
        await self.note(reader, what.name, "/".join(parts), "done" if answer.is_good else answer.refusal)
        return answer

    async def note(self, reader: Reader, action: str, target: str, result: str) -> None:
        async with self.runtime.within(reader.workspace) as connection:
            await accounts.note(connection, reader.workspace, reader.token.name, action, target, result)

    def route_class(self) -> type[APIRoute]:
        """Routes whose errors are pages too: what happened, and what to do."""
        pages = self

        class PageRoute(APIRoute):
            def get_route_handler(self) -> _Routed:
                handle = super().get_route_handler()

                async def guarded(request: Request) -> Response:
                    with language.speaking(language.language_of(request, pages.languages)):
                        try:
                            if request.method != "GET":
                                login.refuse_foreign_form(request)
                            return await handle(request)
                        except NotLoggedIn:
                            # Not request.url's: that would end at a "#" or "?" in an id.
                            query = f"?{request.url.query}" if request.url.query else ""
                            wanted = quote(request.scope["path"]) + query
                            return redirect(f"/login?{urlencode({'next': wanted})}", request)
                        except RequestValidationError as error:
                            if any(entry["loc"][0] == "path" for entry in error.errors()):
                                return pages.no_page()
                            fields = ", ".join(str(entry["loc"][-1]) for entry in error.errors())
                            return pages.error(422, _("These filters can’t be read: %(fields)s.", fields=fields))
                        except HTTPException as error:
                            return pages.error(error.status_code, language.told(str(error.detail)))
                        except TRANSIENT_ERRORS:
                            return pages.error(503, _("The database doesn’t answer at the moment."))

                return guarded

        return PageRoute

    def error(self, status: int, detail: str, *, names_a_thing: bool = True) -> HTMLResponse:
        return self.render("error.html", status=status, code=status, detail=detail, names_a_thing=names_a_thing)

    def no_page(self, status: int = 404) -> HTMLResponse:
        return self.error(status, _("There is no page at this address."), names_a_thing=False)


def install_errors(app: FastAPI, pages: Pages) -> None:
    """What no page's route answers, an address that isn't there, a file that is too large or a bug, is a page too for
    who reads pages; programs get their problem details."""
    for kind in (HTTPException, Exception):
        app.add_exception_handler(kind, _page_or(app.exception_handlers[kind], pages))


def _page_or(problem: Any, pages: Pages) -> Callable[[Request, Exception], Coroutine[Any, Any, Response]]:
    async def tell(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
            refused: Response = await problem(request, error)
            return refused
        with language.speaking(language.language_of(request, pages.languages)):
            if isinstance(error, TooLarge):
                most = f"{language.decimal(error.limit // 1024 // 1024)} MB"
                return pages.error(413, _("What you sent is larger than %(most)s. Send it in parts.", most=most))
            if isinstance(error, HTTPException) and error.status_code in (404, 405):
                return pages.no_page(error.status_code)
            if isinstance(error, HTTPException):
                return pages.error(error.status_code, language.told(str(error.detail)))
            return pages.error(500, _("This page could not be made."))

    return tell


def redirect(to: str, request: Request) -> Response:
    # htmx would follow a redirect inside the swap; this makes the whole page go there.
    if request.headers.get("hx-request") == "true":
        return Response(status_code=200, headers={"HX-Redirect": to, **PAGE_HEADERS})
    return RedirectResponse(to, 303, headers=PAGE_HEADERS)


def query_of(filters: BaseModel) -> str:
    """Filters as the query of an address."""
    return urlencode(filters.model_dump(mode="json", by_alias=True, exclude_none=True))


def wants_part(request: Request) -> bool:
    """Whether htmx asks for the part of the page that changes."""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-request-type") == "partial"


def _authorization(reader: Reader) -> str:
    if reader.authorization is None:
        name = f"{PREFIX}ACTING_KEY"
        raise Problem(503, _("%(name)s is not set, so the pages can't act on other services.", name=name))
    return reader.authorization


async def static_file(path: str) -> Response:
    try:
        file = (STATIC / path).resolve()
        is_ours = file.is_relative_to(STATIC) and file.is_file()
    except (ValueError, OSError):
        # A NUL in it, or a name longer than any.
        is_ours = False
    if not is_ours:
        raise not_found("The file")
    kind = mimetypes.guess_type(file.name)[0] or "text/plain"
    headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return FileResponse(file, media_type=kind, headers=headers)
