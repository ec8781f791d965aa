"""Who looks at the pages: an account's password, or a pasted API token, becomes a session row; the browser holds only a
random id.

The session keeps whose it is, not their rights: a token that is taken out of the settings, an account or a role that
is taken away, is out at the next request.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from fastapi import Request, Response
from sendwhy.access import Role, Token, find_token
from sendwhy.http import WORKSPACE, Caller
from sendwhy.postgres import Connection
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime

from message_log import accounts, queries
from message_log.accounts import Connect

COOKIE = "sendwhy_session"
# Browsers take it only over https, for this host alone, so that no neighbouring site can plant one.
SECURE_COOKIE = f"__Host-{COOKIE}"
SESSION_LIFE = timedelta(hours=12)
FORM_FIELDS_MAX = 200


class NotLoggedIn(Exception):
    """Ends in a redirect to the login page."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody logged in: a name that is safe to show, and a role by workspace (`*` for all)."""

    name: str
    roles: Mapping[str, Role]

    @property
    def sees_all_workspaces(self) -> bool:
        return "*" in self.roles

    def in_workspace(self, workspace: str) -> Token | None:
        """The rights there: the better of what all workspaces and this one give."""
        found = [(self.roles[one], one) for one in ("*", workspace) if one in self.roles]
        if not found:
            return None
        role, granted = max(found, key=lambda pair: pair[0])
        return Token(self.name, role, granted)


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody logged in, within one workspace of the path. `authorization` lets other services act for them."""

    token: Token
    workspace: str
    authorization: str | None = None

    @property
    def sees_everything(self) -> bool:
        return self.token.workspace == "*" and self.token.role is Role.ADMIN

    @property
    def caller(self) -> Caller:
        return Caller(self.token, self.workspace)

    def may(self, role: Role) -> bool:
        return self.token.role >= role


def _hash(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


async def log_in_by_token(connect: Connect, request: Request, given: str) -> str | None:
    """A new session's id, or None where the token is none of ours."""
    if find_token(request.app.state.tokens, given) is None:
        return None
    digest = hashlib.sha256(given.encode()).hexdigest()
    async with connect() as connection:
        return await _new_session(connection, token_digest=digest, account=None)


async def log_in_by_password(connect: Connect, name: str, password: str) -> str | None:
    """A new session's id, or None where the name or the password is wrong, or tried too often."""
    if not await accounts.check_password(connect, name, password, datetime.now(UTC)):
        return None
    async with connect() as connection:
        return await _new_session(connection, token_digest=None, account=name)


async def _new_session(connection: Connection, *, token_digest: str | None, account: str | None) -> str:
    session_id = secrets.token_urlsafe(32)
    await queries.add_session(connection, _hash(session_id), token_digest, account, datetime.now(UTC) + SESSION_LIFE)
    return session_id


async def log_out(connection: Connection, request: Request, *, secure: bool) -> None:
    await queries.end_session(connection, _hash(session_in(request, secure=secure) or ""))


def set_cookie(response: Response, session_id: str, *, secure: bool) -> None:
    life = int(SESSION_LIFE.total_seconds())
    name = SECURE_COOKIE if secure else COOKIE
    response.set_cookie(name, session_id, max_age=life, path="/", secure=secure, httponly=True, samesite="lax")


def forget_cookie(response: Response, *, secure: bool) -> None:
    response.delete_cookie(SECURE_COOKIE if secure else COOKIE, path="/", secure=secure, httponly=True, samesite="lax")


def session_in(request: Request, *, secure: bool) -> str | None:
    """Over https never the plain name's: a neighbouring site could have planted that, with a session of its own."""
    return request.cookies.get(SECURE_COOKIE if secure else COOKIE)


async def person_of(runtime: Runtime, request: Request, *, secure: bool) -> Person:
    session_id = session_in(request, secure=secure)
    if session_id is None:
        raise NotLoggedIn
    async with runtime.pool.acquire(timeout=10) as connection:
        session = await queries.read_session(connection, _hash(session_id))
        account = session["account"] if session is not None else None
        roles = await accounts.roles_of(connection, account) if account is not None else {}
    if session is None:
        raise NotLoggedIn
    if account is not None:
        person = Person(account, roles)
    else:
        token: Token | None = request.app.state.tokens.get(session["token_digest"])
        person = Person(token.name, {token.workspace: token.role}) if token is not None else Person("", {})
    if not person.roles:
        raise NotLoggedIn
    return person


async def reader_of(runtime: Runtime, request: Request, workspace: str, *, secure: bool) -> Reader:
    person = await person_of(runtime, request, secure=secure)
    token = person.in_workspace(workspace)
    if token is None or not WORKSPACE.fullmatch(workspace):
        raise not_found("The workspace")
    acting = request.app.state.acting
    return Reader(token, workspace, f"Bearer {acting.seal(token)}" if acting.is_possible else None)


def refuse_foreign_form(request: Request) -> None:
    """A form must come from our own page. Browsers say so by Fetch Metadata (https and localhost only) or Origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")
    if not own:
        raise Problem(403, "This form was sent from another site, so it was not accepted.")


async def form_of(request: Request) -> dict[str, str]:
    """The fields of an urlencoded form, each once and trimmed; empty where it is unreadable."""
    body = (await request.body()).decode(errors="replace")
    try:
        fields = parse_qs(body, max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        return {}
    return {name: values[0].strip() for name, values in fields.items()}


def path_to_return_to(wanted: str) -> str:
    """Only to a page of ours: anything else would let a link send people elsewhere after their login."""
    return wanted if wanted.startswith("/w/") and "\\" not in wanted and "\n" not in wanted else "/"
