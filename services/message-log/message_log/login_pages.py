"""Logging in and out, choosing a workspace and a language."""

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from message_log import language, login, queries
from message_log.pages import Pages, redirect


def install(router: APIRouter, pages: Pages) -> None:
    @router.get("/")
    async def home(request: Request) -> Response:
        """A workspace's messages, filtered as the address says: an alert knows the filter and not whose they are."""
        filters = f"?{request.url.query}" if request.url.query else ""
        person = await login.person_of(pages.runtime, request, secure=pages.is_secure)
        own = sorted(workspace for workspace in person.roles if workspace != "*")
        if not person.sees_all_workspaces and len(own) == 1:
            return redirect(f"/w/{own[0]}/messages{filters}", request)
        if person.sees_all_workspaces:
            async with pages.connect() as connection:
                own = sorted({*own, *await queries.workspaces_seen(connection)})
        return pages.render("workspaces.html", workspaces=own, person=person, filters=filters)

    @router.get("/login")
    async def login_page(next: str = "/") -> Response:
        return pages.render("login.html", next=login.path_to_return_to(next), wrong=None)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        login.refuse_foreign_form(request)
        form = await login.form_of(request)
        token, name = form.get("token", ""), form.get("name", "")
        wanted = login.path_to_return_to(form.get("next", ""))
        if name:
            session_id = await login.log_in_by_password(pages.connect, name, form.get("password", ""))
        else:
            session_id = await login.log_in_by_token(pages.connect, request, token)
        if session_id is None:
            return pages.render("login.html", status=403, next=wanted, wrong="password" if name else "token")
        response = redirect(wanted, request)
        login.set_cookie(response, session_id, secure=pages.is_secure)
        return response

    _install_language(router, pages)


def _install_language(router: APIRouter, pages: Pages) -> None:
    @router.post("/language")
    async def speak(request: Request) -> Response:
        """Keep the language that somebody chose, and show the page where they did it in it."""
        login.refuse_foreign_form(request)
        chosen = (await login.form_of(request)).get("language", "")
        here = urlsplit(request.headers.get("referer", ""))
        response = redirect(login.path_to_return_to(f"{here.path}?{here.query}" if here.query else here.path), request)
        if chosen in pages.languages:
            language.keep(response, chosen, secure=pages.is_secure)
        return response

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        login.refuse_foreign_form(request)
        async with pages.connect() as connection:
            await login.log_out(connection, request, secure=pages.is_secure)
        response = redirect("/login", request)
        login.forget_cookie(response, secure=pages.is_secure)
        return response
