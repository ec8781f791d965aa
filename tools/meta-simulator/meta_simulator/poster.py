"""Posting to whoever receives webhooks: HTTP/1.1 on kept connections, one request at a time on each.

A general HTTP client spends more on each post than all the rest of the simulator (aiohttp: 60 of 100 µs); the parsing
is httptools', the rest is a connection and an idle list.
"""

import asyncio
import ssl
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import cast
from urllib.parse import urlencode, urlsplit

import httptools

TIMEOUT_SECONDS = 20.0
ANSWER_KEPT = 65_536
# Servers close idle connections, and a post into one that closes is lost: don't keep them long.
IDLE_SECONDS = 2.0
USER_AGENT = "facebookexternalua"

_NO_ANSWER = (OSError, TimeoutError, ValueError, httptools.HttpParserError)


@dataclass(frozen=True, slots=True)
class Answer:
    http_status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    is_tls: bool
    target: str
    head: str


@lru_cache(maxsize=1024)
def _address(url: str) -> _Address:
    """Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http address")
    is_tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    head = f" {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\n"
    return _Address(parts.hostname, parts.port or (443 if is_tls else 80), is_tls, target, head)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.is_open = True
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body = b""
        self._status = 0
        self._answered: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answered is None or self._answered.done():
            return
        if exc is None and self._status:
            # An answer without a length ends with its connection.
            self._answered.set_result(Answer(self._status, self._body))
        else:
            self._answered.set_exception(exc or ConnectionResetError("closed without an answer"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._answered is not None and not self._answered.done():
                self._answered.set_exception(error)
            self.close()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if len(self._body) < ANSWER_KEPT:
            self._body += body

    def on_message_complete(self) -> None:
        if self._status < 200:
            self._status = 0
            return
        if not self._parser.should_keep_alive():
            self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(Answer(self._status, self._body))

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None
        self._status, self._body = 0, b""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()


class Poster:
    def __init__(self) -> None:
        self._idle: defaultdict[tuple[str, int, bool], list[_Connection]] = defaultdict(list)
        self._open: set[_Connection] = set()
        self._is_closed = False
        self._tls = ssl.create_default_context()

    async def post(self, url: str, body: bytes, signature: str | None) -> Answer | None:
        """None where there was no answer."""
        signed = f"X-Hub-Signature-256: {signature}\r\n" if signature is not None else ""
        try:
            address = _address(url)
            head = f"POST{address.head}{signed}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            return await self._ask(address, head.encode() + body)
        except _NO_ANSWER:
            return None

    async def get(self, url: str, params: dict[str, str]) -> Answer | None:
        joint = "&" if "?" in url else "?"
        try:
            address = _address(f"{url}{joint}{urlencode(params)}")
            return await self._ask(address, f"GET{address.head}\r\n".encode())
        except _NO_ANSWER:
            return None

    async def _ask(self, address: _Address, request: bytes) -> Answer:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await self._connection(address)
            try:
                answer = await connection.ask(request)
            except BaseException:
                self._drop(connection)
                raise
        if not connection.is_open:
            self._open.discard(connection)
        else:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle[address.host, address.port, address.is_tls].append(connection)
        return answer

    async def _connection(self, address: _Address) -> _Connection:
        loop = asyncio.get_running_loop()
        idle = self._idle[address.host, address.port, address.is_tls]
        while idle:
            connection = idle.pop()
            if connection.is_open and loop.time() - connection.idle_since < IDLE_SECONDS:
                return connection
            self._drop(connection)
        tls = self._tls if address.is_tls else None
        _transport, made = await loop.create_connection(_Connection, address.host, address.port, ssl=tls)
        self._open.add(made)
        if self._is_closed:
            self._drop(made)
            raise ConnectionAbortedError("the simulator ends")
        return made

    def _drop(self, connection: _Connection) -> None:
        connection.close()
        self._open.discard(connection)

    def close(self) -> None:
        self._is_closed = True
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
