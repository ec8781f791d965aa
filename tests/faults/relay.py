"""A relay that reads PostgreSQL's, Kafka's or HTTP's messages one by one, and strikes at a named moment of theirs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

POSTGRES_STARTUP = 4
KAFKA_PRODUCE, KAFKA_OFFSET_COMMIT = 0, 8
CHUNK = 65_536
END_OF_HEAD = b"\r\n\r\n"


class Moment(Enum):
    """A step of a protocol, and on whose line it is seen."""

    COMMIT_ASKED = ("postgres", "a COMMIT is sent")
    COMMIT_ANSWERED = ("postgres", "a COMMIT is answered")
    PUBLISH_ASKED = ("kafka", "a batch is sent")
    PUBLISH_ANSWERED = ("kafka", "a batch is acknowledged")
    OFFSETS_ASKED = ("kafka", "offsets are sent")
    CALL_ASKED = ("meta", "a message is sent")
    CALL_ANSWERED = ("meta", "a message is answered")

    @property
    def server(self) -> str:
        return self.value[0]


class PointMet(Exception):
    """Nothing more passes on this line."""


@dataclass
class Wire:
    """One connection through the relay. `is_the_moment` counts; `strike` is called at it; `passes`: what is asked at it
    still reaches the server."""

    is_the_moment: Callable[[Moment], bool]
    strike: Callable[[], None]
    passes: bool
    is_calling: bool = False
    produces: set[bytes] = field(default_factory=set)
    """Correlation ids of what is being published."""

    async def asked(self, frame: bytes, moment: Moment | None, out: asyncio.StreamWriter) -> None:
        is_here = moment is not None and self.is_the_moment(moment)
        if not is_here or self.passes:
            out.write(frame)
            await out.drain()
        self._end(is_here)

    async def answered(self, frame: bytes, moment: Moment | None, out: asyncio.StreamWriter) -> None:
        self._end(moment is not None and self.is_the_moment(moment))
        out.write(frame)
        await out.drain()

    def _end(self, is_here: bool) -> None:
        if is_here:
            self.strike()
            raise PointMet


async def _postgres_asks(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    size = await reader.readexactly(POSTGRES_STARTUP)
    out.write(size + await reader.readexactly(int.from_bytes(size) - POSTGRES_STARTUP))
    while True:
        frame = await _postgres_message(reader)
        is_commit = frame[:1] == b"Q" and frame[5:11].upper() == b"COMMIT"
        await wire.asked(frame, Moment.COMMIT_ASKED if is_commit else None, out)


async def _postgres_answers(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    while True:
        frame = await _postgres_message(reader)
        is_commit = frame[:1] == b"C" and frame[5:] == b"COMMIT\0"
        await wire.answered(frame, Moment.COMMIT_ANSWERED if is_commit else None, out)


async def _postgres_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)


async def _kafka_asks(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    while True:
        frame = await _kafka_message(reader)
        kind = int.from_bytes(frame[4:6])
        if kind == KAFKA_PRODUCE:
            wire.produces.add(frame[8:12])
        moments = {KAFKA_PRODUCE: Moment.PUBLISH_ASKED, KAFKA_OFFSET_COMMIT: Moment.OFFSETS_ASKED}
        await wire.asked(frame, moments.get(kind), out)


async def _kafka_answers(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    while True:
        frame = await _kafka_message(reader)
        is_produce = frame[4:8] in wire.produces
        wire.produces.discard(frame[4:8])
        await wire.answered(frame, Moment.PUBLISH_ANSWERED if is_produce else None, out)


async def _kafka_message(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size))


async def _meta_asks(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readuntil(END_OF_HEAD)
        size = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        body = await reader.readexactly(int(size))
        is_call = head.startswith(b"POST ") and b"/messages" in head.partition(b"\r\n")[0]
        wire.is_calling = is_call
        await wire.asked(head + body, Moment.CALL_ASKED if is_call else None, out)


async def _meta_answers(wire: Wire, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    while part := await reader.read(CHUNK):
        is_first, wire.is_calling = wire.is_calling, False
        await wire.answered(part, Moment.CALL_ANSWERED if is_first else None, out)


Direction = Callable[[Wire, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PROTOCOLS: dict[str, tuple[Direction, Direction]] = {
    "postgres": (_postgres_asks, _postgres_answers),
    "kafka": (_kafka_asks, _kafka_answers),
    "meta": (_meta_asks, _meta_answers),
}


@dataclass
class Relay:
    """Before `upstream`; at the `number`th of these moments `strike` is called, once, and that line ends."""

    upstream: int
    moment: Moment
    number: int
    passes: bool
    strike: Callable[[], None]
    met: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Yields the port."""
        self._lines: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        server = await asyncio.start_server(self._line, "127.0.0.1", 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for writer in list(self._lines):
                writer.transport.abort()
            await asyncio.gather(*self._lines.values())

    def _is_the_moment(self, moment: Moment) -> bool:
        if moment is not self.moment or self.met.is_set():
            return False
        self.number -= 1
        if self.number == 0:
            self.met.set()
        return self.met.is_set()

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines[writer] = task
        with contextlib.suppress(OSError):
            await self._pass_on(reader, writer)
        writer.transport.abort()
        del self._lines[writer]

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end closes, or the moment has come."""
        answers, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        asks, tells = PROTOCOLS[self.moment.server]
        wire = Wire(self._is_the_moment, self.strike, self.passes)
        ways = [asyncio.ensure_future(way) for way in (asks(wire, reader, to_server), tells(wire, answers, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            # Not aborted: what was written must get there.
            to_server.close()
