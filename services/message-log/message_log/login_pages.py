"""Logging in and out, and choosing a workspace."""

from fastapi import APIRouter, Request, Response

from message_log import login, queries
from message_log.pages import Pages, redirect


def install(router: APIRouter, pages: Pages) -> None:
    @router.get("/")
    async def home(request: Request) -> Response:
        person = await login.person_of(pages.runtime, request)
        own = sorted(workspace for workspace in person.roles if workspace != "*")
        if not person.sees_all_workspaces and len(own) == 1:
            return redirect(f"/w/{own[0]}/messages", request)
        if person.sees_all_workspaces:
            async with pages.connect() as connection:
                own = sorted({*own, *await queries.workspaces_seen(connection)})
        return pages.render("workspaces.html", workspaces=own, person=person)

    @router.get("/login")
    async def login_page(next: str = "/") -> Response:
        return pages.render("login.html", next=login.path_to_return_to(next), wrong=None)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        login.refuse_foreign_form(request)
        form = await login.form_of(request)
        token, name = form.get("token", ""), form.get("name", "")
        wanted = login.path_to_return_to(form.get("next", ""))
        async with pages.connect() as connection:
            if name:
                session_id = await login.log_in_by_password(connection, name, form.get("password", ""))
            else:
                session_id = await login.log_in_by_token(connection, request, token)
        if session_id is None:
            return pages.render("login.html", status=403, next=wanted, wrong="password" if name else "token")
        response = redirect(wanted, request)
        public = pages.settings.public_url
        login.set_cookie(response, session_id, secure=public is not None and public.scheme == "https")
        return response

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        login.refuse_foreign_form(request)
        async with pages.connect() as connection:
            await login.log_out(connection, request)
        response = redirect("/login", request)
        response.delete_cookie(login.COOKIE, path="/")
        return response
