"""Proxies that know where in a protocol they are: one in front of PostgreSQL, one in front of Meta.

`on_step` and `on_call` may end a process at that moment; what they return says whether the bytes go on.
"""

import asyncio
import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

MARK = re.compile(rb'"biz_opaque_callback_data": ?"sw1:([^"]+)"')


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


class Listening:
    """A listener whose port stays its own while it refuses connections."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse what comes, and cut what is there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream = None
        try:
            upstream = await asyncio.open_connection(*self._target)
            await self.relay(reader, writer, *upstream)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            if upstream is not None:
                upstream[1].close()

    async def relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        raise NotImplementedError


P = TypeVar("P", bound=Listening)


@asynccontextmanager
async def listening(proxy: P) -> AsyncIterator[P]:
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.refuse()


async def _both(*ways: "asyncio.Task[None]") -> None:
    """Until one of them ends."""
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


@dataclass
class Session:
    """One connection to PostgreSQL: its prepared statements, and the last statements that ran on it."""

    statements: dict[bytes, str] = field(default_factory=dict)
    transaction: list[str] = field(default_factory=list)
    running: str | None = None

    def begins(self, query: str) -> str:
        """Note a statement; returns the name by which a commit tells what it commits."""
        if query.startswith("BEGIN"):
            self.transaction = []
        self.running = query
        self.transaction.append(query)
        return query


# (session, statement, "before" it goes to the server or "after" its answer came) -> whether the bytes go on.
OnStep = Callable[[Session, str, str, bytes], bool]


class PostgresProxy(Listening):
    """Reads the frontend's messages: a statement is seen when it is bound, or as a simple query (BEGIN, COMMIT)."""

    def __init__(self, target: tuple[str, int], on_step: OnStep) -> None:
        super().__init__(target)
        self._on_step = on_step

    async def relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        session = Session()
        forth = asyncio.create_task(self._forth(session, reader, up_writer))
        back = asyncio.create_task(self._back(session, up_reader, writer))
        await _both(forth, back)

    async def _forth(self, session: Session, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        start = await reader.readexactly(4)
        to.write(start + await reader.readexactly(struct.unpack("!i", start)[0] - 4))
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            query = self._query(session, head[:1], body)
            if query is not None and not self._on_step(session, session.begins(query), "before", body):
                return
            to.write(head + body)
            await to.drain()

    @staticmethod
    def _query(session: Session, kind: bytes, body: bytes) -> str | None:
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            session.statements[name] = " ".join(query.decode().split())
        if kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            return session.statements.get(name, "")
        return " ".join(body.rstrip(b"\0").decode().split()) if kind == b"Q" else None

    async def _back(self, session: Session, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            if head[:1] == b"Z" and session.running is not None:
                query, session.running = session.running, None
                if not self._on_step(session, query, "after", b""):
                    return
            to.write(head + body)
            await to.drain()


@dataclass
class Seen:
    """A POST of a message that passed: `key` is `workspace:message`."""

    key: str
    at: float


# (key, whole request) -> how many bytes of it, and of the answer, go on; None: all. Called before the first byte goes.
Cut = tuple[int | None, int | None]


class MetaProxy(Listening):
    """Reads whole requests, so that it knows whose they are before it lets a byte through."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.seen: list[Seen] = []
        self.cut: Callable[[str, bytes], Cut] = lambda *_: (None, None)
        self.on_cut: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        while True:
            request = await _http_message(reader)
            mark = MARK.search(request)
            of_request: int | None = None
            of_answer: int | None = None
            if mark:
                key = mark[1].decode()
                self.seen.append(Seen(key, time.time()))
                of_request, of_answer = self.cut(key, request)
            up_writer.write(request[:of_request])
            await up_writer.drain()
            if of_request is not None:
                self.on_cut()
                return
            if not await self._answer(up_reader, writer, of_answer):
                return

    async def _answer(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, length: int | None) -> bool:
        """Whether the connection goes on. Broken answers pass as they come."""
        answer = await _http_message(reader, partial=True)
        to.write(answer if length is None else answer[: length if length >= 0 else len(answer) + length])
        await to.drain()
        if length is not None:
            self.on_cut()
        return length is None and not reader.at_eof() and bool(answer)


async def _http_message(reader: asyncio.StreamReader, *, partial: bool = False) -> bytes:
    message = b""
    try:
        message = await reader.readuntil(b"\r\n\r\n")
        match = re.search(rb"(?i)content-length: *(\d+)", message)
        if match:
            message += await reader.readexactly(int(match[1]))
    except asyncio.IncompleteReadError as error:
        if not partial:
            raise
        message += error.partial
    return message


def is_refusal(http_status: int | None, answer: str | None) -> bool:
    """Whether Meta's answer says for sure that it did not take the message: an error object of its own."""
    with contextlib.suppress(ValueError, AttributeError):
        return http_status is not None and bool(json.loads(answer or "").get("error"))
    return False
