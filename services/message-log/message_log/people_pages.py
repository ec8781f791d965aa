"""Who may see and do what in a workspace, and what they did: for admins."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sendwhy.access import Role
from sendwhy.postgres import Connection
from sendwhy.problems import Problem, not_found

from message_log import accounts, login
from message_log.language import gettext as _
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Pages, redirect

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{1,63}")


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/people")
    async def people_page(reader: Reader = reader_dependency) -> Response:
        _refuse_others(reader)
        return await show(reader)

    async def show(reader: Reader, *, status: int = 200, problem: str | None = None) -> Response:
        async with pages.connect() as connection:
            people = await accounts.people_of(connection, reader.workspace)
        return pages.render(
            "people.html", status=status, reader=reader, section="people", people=people, roles=Role, problem=problem
        )

    @router.post("/w/{w}/people")
    async def save(request: Request, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        _refuse_others(reader)
        form = await login.form_of(request)
        name, role, password = form.get("name", ""), form.get("role", ""), form.get("password") or None
        async with pages.connect() as connection, connection.transaction():
            problem = await _refusal(connection, reader, name, role, password)
            if problem is None:
                where = "*" if form.get("everywhere") and reader.token.workspace == "*" else reader.workspace
                await accounts.save(connection, name, password, {where: Role[role]}, reader.token.name)
                done = f"{role.lower()} of {'all workspaces' if where == '*' else where}"
                await accounts.note(connection, reader.workspace, reader.token.name, "give access", name, done)
        if problem is not None:
            return await show(reader, status=422, problem=problem)
        return redirect(f"/w/{reader.workspace}/people", request)

    @router.post("/w/{w}/people/{name}/remove")
    async def remove(request: Request, name: str, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        _refuse_others(reader)
        if not _NAME.fullmatch(name):
            raise not_found("The account")
        if name == reader.token.name:
            return await show(reader, status=422, problem=_("Nobody can take their own access away."))
        async with pages.connect() as connection, connection.transaction():
            gone = await accounts.take_role(connection, name, reader.workspace)
            result = "done" if gone else "had none here"
            await accounts.note(connection, reader.workspace, reader.token.name, "take access", name, result)
        return redirect(f"/w/{reader.workspace}/people", request)

    @router.get("/w/{w}/audit")
    async def audit_page(
        reader: Reader = reader_dependency, before: Annotated[int | None, Query(ge=1, lt=2**62)] = None
    ) -> Response:
        _refuse_others(reader)
        async with pages.runtime.within(reader.workspace) as connection:
            rows = await accounts.noted(connection, reader.workspace, before, PAGE_ROWS + 1)
        older = rows[PAGE_ROWS - 1]["audit_id"] if len(rows) > PAGE_ROWS else None
        return pages.render(
            "audit.html", reader=reader, section="people", rows=rows[:PAGE_ROWS], before=before, older=older
        )


def _refuse_others(reader: Reader) -> None:
    if not reader.may(Role.ADMIN):
        raise Problem(403, "This needs the role admin.")


async def _refusal(connection: Connection, reader: Reader, name: str, role: str, password: str | None) -> str | None:
    """Why this access can't be given, or None."""
    if not _NAME.fullmatch(name):
        return _("A name has 2 to 64 of A-Z a-z 0-9 . _ @ + - and begins with a letter or a digit.")
    if role not in Role.__members__:
        return _("Choose a role.")
    if password is not None and not accounts.PASSWORD_LENGTH_MIN <= len(password) <= accounts.PASSWORD_LENGTH_MAX:
        return _(
            "A password has %(least)s to %(most)s characters.",
            least=accounts.PASSWORD_LENGTH_MIN,
            most=accounts.PASSWORD_LENGTH_MAX,
        )
    known = await accounts.workspaces_of(connection, name)
    if known is None and password is None:
        return _("%(name)s has no account yet: give a password, which they can then use to log in.", name=name)
    # Who may set a password can log in as that person, wherever they have a role.
    if known and password is not None and not all(reader.token.may(Role.ADMIN, one) for one in known):
        return _(
            "%(name)s has roles in workspaces that you don't administer, so their password can't be changed here.",
            name=name,
        )
    return None
