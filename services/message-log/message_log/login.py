"""Who looks at the pages: a pasted API token becomes a session row; the browser holds only a random id.

The session keeps the token's digest, not its rights: a token that is taken out of the settings, or changed, is out at
the next request.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from fastapi import Request, Response
from sendwhy.access import Role, Token, find_token
from sendwhy.http import Caller
from sendwhy.postgres import Connection
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime

from message_log import queries

COOKIE = "sendwhy_session"
SESSION_LIFE = timedelta(hours=12)


class NotLoggedIn(Exception):
    """Ends in a redirect to the login page."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody logged in, within one workspace of the path."""

    token: Token
    workspace: str

    @property
    def sees_everything(self) -> bool:
        return self.token.workspace == "*" and self.token.role is Role.ADMIN

    @property
    def caller(self) -> Caller:
        return Caller(self.token, self.workspace)


def _hash(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


async def log_in(connection: Connection, request: Request, given: str) -> str | None:
    """A new session's id, or None where the token is none of ours."""
    if find_token(request.app.state.tokens, given) is None:
        return None
    session_id = secrets.token_urlsafe(32)
    digest = hashlib.sha256(given.encode()).hexdigest()
    await queries.add_session(connection, _hash(session_id), digest, datetime.now(UTC) + SESSION_LIFE)
    return session_id


async def log_out(connection: Connection, request: Request) -> None:
    await queries.end_session(connection, _hash(request.cookies.get(COOKIE, "")))


def set_cookie(response: Response, session_id: str, *, secure: bool) -> None:
    life = int(SESSION_LIFE.total_seconds())
    response.set_cookie(COOKIE, session_id, max_age=life, path="/", secure=secure, httponly=True, samesite="lax")


async def token_of(runtime: Runtime, request: Request) -> Token:
    session_id = request.cookies.get(COOKIE)
    if session_id is None:
        raise NotLoggedIn
    async with runtime.pool.acquire(timeout=10) as connection:
        digest = await queries.token_of_session(connection, _hash(session_id))
    token: Token | None = request.app.state.tokens.get(digest)
    if token is None:
        raise NotLoggedIn
    return token


async def reader_of(runtime: Runtime, request: Request, workspace: str) -> Reader:
    token = await token_of(runtime, request)
    if not token.sees(workspace):
        raise not_found("The workspace")
    return Reader(token, workspace)


def refuse_foreign_form(request: Request) -> None:
    """A form must come from our own page. Browsers say so by Fetch Metadata (https and localhost only) or Origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")
    if not own:
        raise Problem(403, "This form was sent from another site, so it was not accepted.")


async def field_of_form(request: Request, name: str) -> str:
    """One field of an urlencoded form, "" where it is missing or unreadable."""
    body = (await request.body()).decode(errors="replace")
    return parse_qs(body, max_num_fields=20).get(name, [""])[0].strip()


def path_to_return_to(wanted: str) -> str:
    """Only to a page of ours: anything else would let a link send people elsewhere after their login."""
    return wanted if wanted.startswith("/w/") and "\\" not in wanted and "\n" not in wanted else "/"
