"""The relay strikes at the told moment, and what must not pass does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from relay import Moment, Relay

STARTUP = (8).to_bytes(4) + (196608).to_bytes(4)


def message(kind: bytes, text: bytes) -> bytes:
    return kind + (len(text) + 5).to_bytes(4) + text + b"\0"


def request(kind: int, correlation: int) -> bytes:
    body = kind.to_bytes(2) + b"\0\x09" + correlation.to_bytes(4) + b"rest"
    return len(body).to_bytes(4) + body


def answer(correlation: int) -> bytes:
    body = correlation.to_bytes(4) + b"rest"
    return len(body).to_bytes(4) + body


BEGIN, COMMIT = message(b"Q", b"BEGIN;"), message(b"Q", b"COMMIT;")
CALL = b"POST /v25.0/1/messages HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
PRODUCE, OFFSETS, FETCH = request(0, 7), request(8, 8), request(1, 9)
# What the client sends, which of it the server has then, and what it answers to it of which the client gets how much.
CASES = {
    "before the second commit": (Moment.COMMIT_ASKED, 2, False, [STARTUP, COMMIT, BEGIN, COMMIT], 3, [], 0),
    "behind the second commit": (Moment.COMMIT_ASKED, 2, True, [STARTUP, COMMIT, BEGIN, COMMIT], 4, [], 0),
    "before a commit's answer": (
        *(Moment.COMMIT_ANSWERED, 1, False, [STARTUP, BEGIN, COMMIT], 3),
        *([message(b"C", b"BEGIN"), message(b"C", b"COMMIT")], 1),
    ),
    "before a batch": (Moment.PUBLISH_ASKED, 1, False, [FETCH, OFFSETS, PRODUCE], 2, [], 0),
    "before offsets": (Moment.OFFSETS_ASKED, 1, False, [FETCH, PRODUCE, OFFSETS], 2, [], 0),
    "before a batch's answer": (
        *(Moment.PUBLISH_ANSWERED, 1, False, [FETCH, PRODUCE], 2),
        *([answer(9), answer(7)], 1),
    ),
    "before a call": (Moment.CALL_ASKED, 1, False, [b"GET / HTTP/1.1\r\n\r\n", CALL], 1, [], 0),
    "behind a call": (Moment.CALL_ASKED, 1, True, [CALL], 1, [], 0),
    "before a call's answer": (Moment.CALL_ANSWERED, 1, False, [CALL], 1, [b"HTTP/1.1 200 OK\r\n"], 0),
}


@asynccontextmanager
async def server(expected: int, answers: list[bytes], got: bytearray) -> AsyncIterator[int]:
    """Answers once it has so many bytes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1_000):
            got.extend(part)
            if len(got) == expected:
                writer.write(b"".join(answers))
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield int(listening.sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    ("moment", "number", "passes", "asked", "reach", "answers", "arrive"), CASES.values(), ids=CASES.keys()
)
async def test_a_moment_is_met(
    moment: Moment, number: int, passes: bool, asked: list[bytes], reach: int, answers: list[bytes], arrive: int
) -> None:
    struck: list[bool] = []
    got = bytearray()
    wanted = b"".join(asked[:reach])
    async with asyncio.timeout(20), server(len(wanted), answers, got) as port:
        relay = Relay(port, moment, number, passes, lambda: struck.append(True))
        async with relay.listening() as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door)
            writer.write(b"".join(asked))
            heard = await reader.read()
            await relay.met.wait()
            while len(got) < len(wanted):
                await asyncio.sleep(0.01)
            writer.close()
    assert (struck, bytes(got), heard) == ([True], wanted, b"".join(answers[:arrive]))
