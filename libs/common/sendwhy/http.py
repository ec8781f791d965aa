"""The HTTP side of a service: health, metrics, bearer tokens, idempotent writes, body limits, slow clients.

uvicorn has no timer on idle, half-sent heads or half-sent bodies, and no bound on connections (reliability-security.md,
finding 8): the protocol subclass here has, and the whole house serves through `serve`.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import resource
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Protocol

import uvicorn
import uvloop
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from sendwhy.access import Role, Token, find_token
from sendwhy.postgres import Connection
from sendwhy.problems import Problem, not_found, problem_response

HEAD_TIMEOUT_SECONDS = 10.0
BODY_TIMEOUT_SECONDS = 30.0
# What has arrived buys more time, so that a large file may come over a slow line and a trickle may not.
BODY_BYTES_PER_SECOND_MIN = 32 * 1024
# Longer than the minute for which balancers keep a connection: who closes it first must not be we, or a request that
# is on its way just then is lost.
KEEP_ALIVE_SECONDS = 75
TLS_LAST_WORD_SECONDS = 2.0
HEAD_BYTES_MAX = 64 * 1024
WIRE_BYTES_PER_BODY_BYTE = 8
# Requests that wait on one connection for the answer to an earlier one.
PIPELINED_MAX = 16
# With 64 KB of each in buffers at most. Files that a process may have open are raised to it where the system lets us.
CONNECTIONS_MAX = 2048
OTHER_FILES_MAX = 1024
BODY_BYTES_MAX = 1024 * 1024
# Of all bodies that a process holds at once: with CONNECTIONS_MAX alone they could be 2 GB, before any token is asked.
HELD_BYTES_MAX = 128 * 1024 * 1024
DRAINED_BYTES_MAX = 16 * 1024 * 1024
WORKSPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
GRACE_SECONDS = 5
_NO_CONNECTION_LEFT = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class Body(BaseModel):
    """A request body: strict types (true is no number), unknown fields are refused so that typing errors show."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def json_body(kind: Any) -> Any:
    """A dependency: the body as `kind`, read by pydantic's own JSON parser; 422 names the fields that are wrong.

    For bodies with times, enums or events in them: FastAPI hands over Python objects, in which strict models refuse
    every text that stands for a time. Pair it with `openapi_extra=body_schema(kind)`.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    async def parse(request: Request) -> Any:
        try:
            return adapter.validate_json(await request.body())
        except ValidationError as error:
            entries = error.errors(include_url=False, include_input=False, include_context=False)
            raise RequestValidationError([{**entry, "loc": ("body", *entry["loc"])} for entry in entries]) from None

    return Depends(parse)


def body_schema(kind: Any) -> dict[str, Any]:
    """The OpenAPI `requestBody` of a `json_body`. Its own `$id` lets its `$defs` be found where they stand."""
    schema = TypeAdapter(kind).json_schema()
    if "$defs" in schema:
        schema["$id"] = f"urn:sendwhy:{schema.get('title', 'body')}"
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def cursor_of(position: str) -> str:
    """An opaque cursor for `next_cursor`."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def position_of(cursor: str) -> str:
    """What `cursor_of` was given; 422 for anything else."""
    try:
        position = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        position = "\0"
    # The database takes no NUL in a text.
    if "\0" in position:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return position


HeaderList = list[tuple[bytes, bytes]]


class AtOnce(Protocol):
    """An app's `at_once`: takes a request whose body came with its head, without a task and ASGI's messages, and
    answers it once, later. False: it goes the usual way. `target` as it stands on the wire, headers' names in lower
    case."""

    def __call__(
        self, method: bytes, target: bytes, headers: HeaderList, body: bytes, answer: Callable[[Response], None]
    ) -> bool: ...


class _TakenAtOnce(RequestResponseCycle):
    """What uvicorn's protocol asks of a request that is being answered, for one that was taken at once."""

    message_event = asyncio.Event()
    more_body = False

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = self.response_complete = False


@lru_cache(maxsize=16)
def _whole_answer(response: Response, default_headers: tuple[tuple[bytes, bytes], ...], closes: bool) -> bytes:
    headers = [*default_headers, *response.raw_headers, *([(b"connection", b"close")] if closes else [])]
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join((STATUS_LINE[response.status_code], *lines, b"\r\n", response.body))


class GuardedProtocol(HttpToolsProtocol):
    """Ends connections whose request head or body doesn't arrive in time, or costs more than a body of its size may.

    Connections are bounded: beyond `connections_max` the one that has been without a request for longest makes room,
    so that those who only hold a connection open keep nobody out; and so does who doesn't read what is answered.
    """

    head_timeout_seconds = HEAD_TIMEOUT_SECONDS
    body_timeout_seconds = BODY_TIMEOUT_SECONDS
    body_bytes_per_second_min = BODY_BYTES_PER_SECOND_MIN
    connections_max = CONNECTIONS_MAX
    # Of all connections of this process, those that no request runs on or whose answer isn't read, longest first.
    _waiting: ClassVar[dict["GuardedProtocol", None]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_once: AtOnce | None = getattr(self.app, "at_once", None)
        # The body of a request whose head is here, and whose whole may come with the same data.
        self._held: list[bytes] | None = None
        self._in_head = True
        self._is_begun = False
        self._finished = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._earned_bytes = 0
        self._wire_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting[self] = None
        self._await_within(self.head_timeout_seconds)
        if len(self.connections) > self.connections_max:
            self._make_room()

    def _make_room(self) -> None:
        longest = next(iter(self._waiting))
        del self._waiting[longest]
        if longest is self:
            self.transport.write(_NO_CONNECTION_LEFT)
            self.transport.close()
        else:
            # A mere close would wait until an answer is read that nobody reads.
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting[self] = None

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting.pop(self, None)

    def data_received(self, data: bytes) -> None:
        finished = self._finished
        super().data_received(data)
        if self.transport.is_closing():
            # What came was no HTTP, and has been answered; whether anybody reads that is not known.
            self._held = None
            self._waiting[self] = None
        if self._held is not None:
            self._go_the_usual_way(self._held)
        if self._finished != finished and not self._is_begun:
            # Whole requests and nothing else, as nearly always: no timer is needed.
            return
        if self._deadline is None:
            self._await_within(self.head_timeout_seconds if self._in_head else self.body_timeout_seconds)
        if self._in_head:
            self._head_bytes += len(data)
        elif self._finished == finished:
            self._wire_bytes += len(data)
        # Chunks of a byte each, endless extensions and trailers: what isn't body is held to a bound, too.
        overhead = self._wire_bytes - WIRE_BYTES_PER_BODY_BYTE * self._body_bytes
        if self._head_bytes > HEAD_BYTES_MAX or overhead > 2 * HEAD_BYTES_MAX:
            self.transport.abort()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED_MAX:
            # The parser stops at it, and uvicorn answers 400.
            raise TooManyPipelined
        self._in_head = self._is_begun = True
        if self._at_once is None:
            super().on_message_begin()
        else:
            self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = self._body_bytes = self._earned_bytes = self._wire_bytes = 0
        self._disarm()
        if not self.flow.write_paused:
            self._waiting.pop(self, None)
        if self._at_once is None:
            super().on_headers_complete()
        elif self._may_be_taken_at_once():
            self._held = []
        else:
            self._go_the_usual_way([])

    def _may_be_taken_at_once(self) -> bool:
        # Other targets may be none at all, which uvicorn finds out while the parser can still say so.
        is_plain = self.url.startswith(b"/") and self.url.isascii() and not self.expect_100_continue
        return is_plain and (self.cycle is None or self.cycle.response_complete)

    def _go_the_usual_way(self, held: list[bytes]) -> None:
        """What uvicorn would have done by now: the parser still stands in this request."""
        self._held = None
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()
        for body in held:
            super().on_body(body)

    def _take_at_once(self, held: list[bytes]) -> bool:
        parser, at_once = self.parser, self._at_once
        if at_once is None or self.flow.write_paused or parser.should_upgrade():
            return False
        body = held[0] if len(held) == 1 else b"".join(held)
        keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
        taken = _TakenAtOnce(keep_alive=keep_alive)
        if not at_once(parser.get_method(), self.url, self.headers, body, partial(self._answer, taken)):
            return False
        self._held, self.cycle = None, taken
        return True

    def _answer(self, taken: RequestResponseCycle, response: Response) -> None:
        """In one piece what a cycle's own `send` writes in two."""
        if taken.disconnected or self.transport.is_closing():
            return
        taken.response_complete = True
        defaults = tuple(self.server_state.default_headers)
        closes = any(name == b"connection" for name, _ in (*defaults, *response.raw_headers))
        self.transport.write(_whole_answer(response, defaults, not taken.keep_alive and not closes))
        if closes or not taken.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._earned_bytes += len(body)
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_head, self._is_begun = True, False
        self._wire_bytes = 0
        self._finished += 1
        if self._held is not None:
            if self._take_at_once(self._held):
                return
            self._go_the_usual_way(self._held)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # With pipelining the latest request's answer may be still to come. One that closes may wait for its reader.
        if self.cycle.response_complete:
            self._waiting[self] = None

    def _await_within(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self._in_head and (earned := self._earned_bytes / self.body_bytes_per_second_min) > 0:
            # What comes from now on earns the time after that.
            self._earned_bytes = 0
            self._await_within(min(earned, self.body_timeout_seconds))
            return
        self.transport.abort()


class TooManyPipelined(Exception):
    pass


class BodyRefused(Exception):
    pass


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is longer than allowed, declared or not. `limits` by path prefix, in which
    `*` stands for anything, or by "METHOD path", which is that path only: a large body is for whom reads it piecewise.
    The others are held as a whole: 503 where they would be more than `held_bytes_max` together.
    """

    def __init__(self, app: ASGIApp, *, limits: Mapping[str, int], held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._app, self._limits, self._held_bytes_max = app, limits, held_bytes_max
        self._held_bytes = 0

    def _limit(self, method: str, path: str) -> tuple[int, bool]:
        """The most bytes, and whether they are held as a whole."""
        whole = f"{method} {path}"
        fitting = (
            (limit, " " not in pattern)
            for pattern, limit in self._limits.items()
            if (fnmatchcase(whole, pattern) if " " in pattern else fnmatchcase(path, f"{pattern}*"))
        )
        return next(fitting, (BODY_BYTES_MAX, True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, is_held = self._limit(scope["method"], scope["path"])
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit:
            await _refuse(TooLarge(limit), limit, scope, receive, send)
            return
        await self._bounded(scope, receive, send, limit, is_held)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, limit: int, is_held: bool) -> None:
        received = 0
        started = False
        refusal: Problem | None = None

        async def count() -> Message:
            nonlocal received, refusal
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held_bytes += size * is_held
            if received > limit:
                refusal = TooLarge(limit)
            elif is_held and self._held_bytes > self._held_bytes_max:
                refusal = _busy()
            if refusal is not None:
                raise BodyRefused
            return message

        async def note(message: Message) -> None:
            nonlocal started
            # FastAPI makes a 400 of any exception that meets it while it reads a body.
            if refusal is None or started:
                started = True
                await send(message)

        try:
            await self._app(scope, count, note)
        except BodyRefused:
            pass
        finally:
            self._held_bytes -= received * is_held
        if refusal is not None and not started:
            await _refuse(refusal, limit, scope, receive, send)


class TooLarge(Problem):
    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body is longer than {limit} bytes.", headers={"connection": "close"})
        self.limit = limit


def _busy() -> Problem:
    detail = "This process holds as many bodies as it may; send it again."
    return Problem(503, detail, headers={"retry-after": "1", "connection": "close"})


async def _refuse(refusal: Problem, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    """As the app tells of its other refusals: to who reads message-log's pages, that is a page."""
    response = await scope["app"].exception_handlers[HTTPException](Request(scope), refusal)
    response.headers.update(refusal.headers or {})
    # A file that is not twice too large is taken in, and the answer seen by whoever writes all before they read.
    await answer_early(response, scope, receive, send, max(DRAINED_BYTES_MAX, 2 * limit))


async def answer_early(
    response: Response, scope: Scope, receive: Receive, send: Send, drained_bytes_max: int = DRAINED_BYTES_MAX
) -> None:
    """Answer before the body is read (and before `Expect: 100-continue` lets it come), then take in the rest of it up
    to a bound: a connection that is closed while its client still sends is reset, and the answer never seen."""

    async def hold_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await response(scope, receive, hold_open)
    drained, more = 0, True
    while more and drained < drained_bytes_max:
        message = await receive()
        drained += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class HeadAsGet:
    """ASGI middleware: HEAD is answered as GET, and its answer ends with the head: neither a large file is made for it
    nor an endless stream. Whatever lies behind this sees a GET; the server leaves out the body by what was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, head_only)


class Authenticated:
    """ASGI middleware: nothing under /v1 is looked at without a token, neither the body nor which route it is for. What
    the token may do is asked by each route's own dependency."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                token_of(Request(scope))
            except Problem as refusal:
                answer = problem_response(refusal.status_code, str(refusal.detail), headers=refusal.headers)
                await answer_early(answer, scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Caller:
    """A token within one workspace of the path."""

    token: Token
    workspace: str


# Says in OpenAPI that a bearer token is needed; `token_of` reads it and answers as a problem where it is wrong.
_Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="A token of SENDWHY_API_TOKENS: viewer, operator or admin.")),
]


def any_token(request: Request, _scheme: _Bearer) -> Token:
    """A dependency: the bearer token's rights, or 401."""
    return token_of(request)


def token_of(request: Request) -> Token:
    """The bearer token's rights, or 401."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given.strip() if scheme.lower() == "bearer" else ""
    token = find_token(request.app.state.tokens, given) or request.app.state.acting.read(given)
    if token is None:
        raise Problem(401, "A valid bearer token is needed.", headers={"www-authenticate": "Bearer"})
    return token


def caller_with(role: Role) -> Any:
    """A dependency: who calls, with at least this role for the path's workspace `w`; a foreign workspace is 404."""

    def check(w: str, request: Request, _scheme: _Bearer) -> Caller:
        token = token_of(request)
        if not WORKSPACE.fullmatch(w) or not token.sees(w):
            raise not_found("The workspace")
        if token.role < role:
            raise Problem(403, f"This needs the role {role.name.lower()}.")
        return Caller(token, w)

    return Depends(check)


Viewer = Annotated[Caller, caller_with(Role.VIEWER)]
Operator = Annotated[Caller, caller_with(Role.OPERATOR)]
Admin = Annotated[Caller, caller_with(Role.ADMIN)]
AnyToken = Annotated[Token, Depends(any_token)]
# An empty one is none, as a form or a loop sends it for the first page.
Cursor = Annotated[
    Annotated[str, StringConstraints(max_length=4096)] | None, BeforeValidator(lambda cursor: cursor or None), Query()
]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=128, pattern=r"^[\x21-\x7e]+$")]

_CLAIM = """
insert into idempotency_key (workspace_id, key, digest) values ($1, $2, $3) on conflict do nothing returning key
"""
_STORE_ANSWER = "update idempotency_key set status = $3, answer = $4 where workspace_id = $1 and key = $2"
_READ_ANSWER = "select digest, status, answer from idempotency_key where workspace_id = $1 and key = $2"


async def once(
    connection: Connection,
    request: Request,
    caller: Caller,
    key: str | None,
    act: Callable[[], Awaitable[tuple[int, bytes]]],
    *,
    digest: bytes | None = None,
) -> Response:
    """Do a write once per Idempotency-Key, within the caller's transaction.

    Same key, path and body: the stored answer; something else under the same key: 409. A running twin waits on the
    key's row until the first one has committed. `act` returns status and JSON body; a Problem that it raises rolls
    the key back with everything else. `digest`: of a request whose body was read as it came, begun by `digest_begun`.
    """
    if key is None:
        status, answer = await act()
        return Response(answer, status, media_type="application/json")
    digest = digest or await _digest_of(request)
    if await connection.fetchrow(_CLAIM, caller.workspace, key, digest) is not None:
        status, answer = await act()
        await connection.execute(_STORE_ANSWER, caller.workspace, key, status, answer)
        return Response(answer, status, media_type="application/json")
    stands = await answered(connection, request, caller, key, digest=digest)
    if stands is None:
        raise _used_for_another()
    return stands


async def answered(
    connection: Connection, request: Request, caller: Caller, key: str | None, *, digest: bytes | None = None
) -> Response | None:
    """What `once` has answered to this key already: for what takes too long to be done within its transaction."""
    stored = None if key is None else await connection.fetchrow(_READ_ANSWER, caller.workspace, key)
    if stored is None:
        return None
    if not hmac.compare_digest(stored["digest"], digest or await _digest_of(request)):
        raise _used_for_another()
    headers = {"idempotent-replayed": "true"}
    return Response(stored["answer"], stored["status"], headers=headers, media_type="application/json")


def digest_begun(request: Request) -> "hashlib._Hash":
    """What `once` compares, without the body: that is added as it comes."""
    return hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())


async def _digest_of(request: Request) -> bytes:
    digest = digest_begun(request)
    digest.update(await request.body())
    return digest.digest()


def _used_for_another() -> Problem:
    detail = "This Idempotency-Key was used for another request."
    return Problem(409, detail, errors={"Idempotency-Key": "was used for another request"})


class Server(uvicorn.Server):
    """Asked to end, it goes on for `drain_seconds` and says with every answer that the connection ends.

    uvicorn closes its door at once, and resets whoever is just coming in or has just written on a kept connection. A
    balancer learns from /readyz, and from the answers, to come no more; then the door closes before nobody.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The list that also the answers of running requests begin with.
        self.server_state.default_headers.append((b"connection", b"close"))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_seconds
        while loop.time() < end and not self.force_exit:  # noqa: ASYNC110 - a signal handler sets it
            await asyncio.sleep(min(0.1, self._drain_seconds))
        await super().shutdown(sockets)


class Loop(uvloop.Loop):
    """Over TLS the other side's last word doesn't always come, from Kafka's brokers often: uvloop waits half a minute
    for it, and whoever closes a client waits with it."""

    async def create_connection(self, *args: Any, ssl: Any = None, **more: Any) -> Any:
        if ssl:
            more.setdefault("ssl_shutdown_timeout", TLS_LAST_WORD_SECONDS)
        return await super().create_connection(*args, ssl=ssl, **more)


def serve(app: FastAPI, *, host: str, port: int, drain_seconds: float) -> int:
    """Serve until SIGTERM or SIGINT, or until the app's runtime asks for an end; returns the exit code."""
    server = make_server(app, host=host, port=port, drain_seconds=drain_seconds)
    _allow_files(CONNECTIONS_MAX + OTHER_FILES_MAX)
    server.run()
    failed = getattr(app.state, "failed", None)
    return 70 if failed else 0 if server.started else 1


def make_server(app: FastAPI, *, host: str, port: int, drain_seconds: float) -> Server:
    """`app.state.entrance`, if there is one, is an ASGI app before the app with all its middleware, and hands on to it.

    Sets `app.state.end`, which asks for an end, and what `is_ending` tells.
    """
    config = uvicorn.Config(
        getattr(app.state, "entrance", app),
        host=host,
        port=port,
        http=GuardedProtocol,
        loop="sendwhy.http:Loop",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=2048,
    )
    server = Server(config, drain_seconds)
    app.state.end = lambda: setattr(server, "should_exit", True)
    app.state.is_ending = lambda: server.should_exit
    return server


def is_ending(app: FastAPI) -> bool:
    """Whether the process was asked to end. Endless answers end then: uvicorn waits for them before it lets the app."""
    asked = getattr(app.state, "is_ending", None)
    return bool(asked and asked())


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
