"""POSTs on kept connections as lean as Python gets: one request at a time on each, and nothing of an answer is read
but its status. Whoever offers load on the machine that is measured must not be what is measured.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

CONNECTIONS_MAX = 2_000
NO_ANSWER = 0


class _Connection(asyncio.Protocol):
    def __init__(self, posts: "Posts") -> None:
        self._posts, self._number, self._received = posts, -1, b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own kind of it
        self.transport = cast("asyncio.Transport", transport)

    @property
    def is_closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def send(self, number: int, request: bytes) -> None:
        assert self.transport is not None
        self._number = number
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0"
        if not found or len(rest) < int(length):
            return
        self._received, number, self._number = b"", self._number, -1
        self._posts.answered(self, number, int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._posts.lost(self, self._number)


class Posts:
    """`tell(number, status)` is called for each request offered, with NO_ANSWER where its connection broke."""

    def __init__(self, host: str, port: int, tell: Callable[[int, int], None]) -> None:
        self._host, self._port, self._tell = host, port, tell
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._open = 0
        self._connecting: set[asyncio.Task[None]] = set()

    def offer(self, number: int, request: bytes) -> None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closing:
                connection.send(number, request)
                return
        self._waiting.append((number, request))
        if self._open < CONNECTIONS_MAX:
            self._open += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            self._open -= 1
            # Nobody listens: each connection was wanted by one request.
            if self._waiting:
                self._tell(self._waiting.popleft()[0], NO_ANSWER)
            return
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: _Connection, number: int, status: int) -> None:
        self._tell(number, status)
        if not connection.is_closing:
            self._free(connection)

    def lost(self, connection: _Connection, number: int) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if number >= 0:
            self._tell(number, NO_ANSWER)


def post_request(path: str, host: str, body: bytes, signature: str) -> bytes:
    """A webhook as Meta sends it."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: facebookexternalua\r\naccept: */*\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-hub-signature-256: sha256={signature}\r\n\r\n"
    ).encode() + body
