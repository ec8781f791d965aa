"""Slow, large and hostile clients over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sendwhy.http import BodyLimit, GuardedProtocol, HeadAsGet

HELD_BYTES_MAX = 2_100_000


class Hasty(GuardedProtocol):
    head_timeout_seconds = 0.5
    body_timeout_seconds = 0.5
    body_bytes_per_second_min = 10_000


class Crowded(GuardedProtocol):
    connections_max = 10


@asynccontextmanager
async def serving(protocol: type[GuardedProtocol] = Hasty) -> AsyncIterator[int]:
    app = FastAPI()
    waits = app.state.waits = asyncio.Event()
    limits = {"/large": 200_000, "POST /*/file": 2_000_000, "POST /*/upload": 20_000_000}
    app.add_middleware(BodyLimit, limits=limits, held_bytes_max=HELD_BYTES_MAX)
    app.add_middleware(HeadAsGet)

    @app.post("/parsed")
    async def parsed(body: dict[str, str]) -> int:
        return len(body)

    @app.put("/{path:path}")
    @app.post("/{path:path}")
    async def echo(path: str, request: Request) -> int:
        return len(await request.body())

    @app.get("/wait")
    async def wait() -> int:
        await waits.wait()
        return 1

    @app.get("/long")
    async def answer_at_length() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            for _ in range(400):
                yield b"y" * 65_536

        return StreamingResponse(lines())

    @app.get("/endless")
    async def stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"begun"
            await waits.wait()

        return StreamingResponse(lines())

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=1,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        waits.set()
        server.should_exit = True
        await task


async def talk(port: int, *parts: bytes) -> bytes:
    """Send parts, then listen until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


SLOW = [
    ("nothing at all", b""),
    ("half a request line", b"POST /x HT"),
    ("half a head", b"POST /x HTTP/1.1\r\nHost: a\r\nX-Slow: "),
    ("half a body", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"),
    ("blank lines", b"\r\n" * 10),
    ("blank lines after a request", b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n\r\n"),
    ("half a trailer", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: "),
    ("half a chunked body", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
]


@pytest.mark.parametrize("sent", [case[1] for case in SLOW], ids=[case[0] for case in SLOW])
async def test_whoever_does_not_finish_is_cut_off(sent: bytes) -> None:
    async with serving() as port:
        assert b" 200 " not in await talk(port, sent)


async def test_an_endless_head_is_cut_off() -> None:
    async with serving() as port:
        head = b"POST /x HTTP/1.1\r\nHost: a\r\n"
        assert b" 200 " not in await talk(port, head, *[b"X-H: " + b"y" * 4000 + b"\r\n"] * 40)


CHUNKED = b"POST /large HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "part",
    [b"X-T: " + b"y" * 4000 + b"\r\n", b"y" * 4000],
    ids=["trailers", "one trailer"],
)
async def test_endless_trailers_are_cut_off(part: bytes) -> None:
    async with serving(GuardedProtocol) as port:
        assert b" 200 " not in await talk(port, CHUNKED + b"1\r\na\r\n0\r\n" + b"X-T: ", *[part] * 40)


async def test_an_endless_chunk_extension_is_cut_off() -> None:
    async with serving(GuardedProtocol) as port:
        assert b" 200 " not in await talk(port, CHUNKED + b"1;x=", *[b"y" * 4000] * 40)


async def test_a_body_in_small_chunks_is_taken() -> None:
    async with serving(GuardedProtocol) as port:
        answer = await talk(
            port, CHUNKED.replace(b"Host: a", b"Connection: close"), *[b"2\r\nab\r\n" * 1000] * 40, b"0\r\n\r\n"
        )
        assert b"80000" in answer


FRAMING = [
    b"Content-Length: 3\r\nContent-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Content-Length: -3",
    b"Content-Length: +3",
    b"Content-Length: ",
    b"Content-Length: 3, 3",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: xchunked",
]


@pytest.mark.parametrize("header", FRAMING)
async def test_a_body_whose_end_is_in_doubt_is_refused(header: bytes) -> None:
    async with serving() as port:
        answer = await talk(port, b"POST /x HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\nabc")
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


async def test_a_flood_of_pipelined_requests_is_cut_off() -> None:
    async with serving() as port:
        answer = await talk(port, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        assert b" 400 " in answer


async def test_who_holds_a_connection_open_keeps_nobody_out() -> None:
    one = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    async with serving(Crowded) as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        half = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        for _, writer in half:
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        for _ in range(30):
            assert b" 200 " in await talk(port, one)
        # Those who have waited longest made room.
        assert await asyncio.wait_for(idle[0][0].read(), 20) == b""
        for _, writer in (*idle, *half):
            writer.close()


async def deaf(port: int) -> socket.socket:
    """Asks for a long answer and reads none of it."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.setblocking(False)
    await asyncio.get_running_loop().sock_connect(asking, ("127.0.0.1", port))
    asking.send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
    return asking


async def test_who_does_not_read_an_answer_keeps_nobody_out() -> None:
    one = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    async with serving(Crowded) as port:
        unread = [await deaf(port) for _ in range(10)]
        async with asyncio.timeout(20):
            # Those at work keep their places until the server has written what nobody takes from it.
            while b" 200 " not in await talk(port, one):
                pass
        for asking in unread:
            asking.close()


async def test_where_all_connections_are_at_work_a_further_one_is_told_so() -> None:
    async with serving(Crowded) as port:
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        for _, writer in busy:
            writer.write(
                b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
        for reader, _ in busy:
            assert b" 405 " in await asyncio.wait_for(reader.readuntil(b"}"), 20)
        assert b" 503 " in await talk(port, b"")
        for _, writer in busy:
            writer.close()


async def test_whoever_finishes_in_time_is_served_and_may_go_on() -> None:
    async with serving() as port:
        one = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        assert (await talk(port, one, one)).count(b" 200 ") == 2


async def test_a_large_body_may_take_longer_as_long_as_it_comes() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\nConnection: close\r\n\r\n")
        for _ in range(15):
            writer.write(b"y" * 10_000)
            await writer.drain()
            await asyncio.sleep(0.1)
        assert b" 200 " in await reader.read()
        writer.close()


async def test_a_body_that_trickles_is_cut_off() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.1)
            answer = await asyncio.wait_for(reader.read(), 20)
        assert b" 200 " not in answer
        writer.close()


LARGE = [
    ("declared", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n", b"y" * 2_000_000, b" 413 "),
    (
        "undeclared",
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1E8480\r\n" + b"y" * 2_000_000 + b"\r\n0\r\n\r\n",
        b" 413 ",
    ),
    (
        "over its path's own limit",
        b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 200001\r\n\r\n",
        b"y" * 200_001,
        b" 413 ",
    ),
    (
        "within its path's own limit",
        b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n",
        b"y" * 200_000,
        b" 200 ",
    ),
    (
        "a method's own limit",
        b"POST /a/file HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n",
        b"y" * 2_000_000,
        b" 200 ",
    ),
    (
        "another method has the usual limit",
        b"PUT /a/file HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n",
        b"y" * 2_000_000,
        b" 413 ",
    ),
    (
        "a path below has the usual limit",
        b"POST /a/file/b HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n",
        b"y" * 2_000_000,
        b" 413 ",
    ),
    (
        "a length that is no number",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n",
        b"y" * 1000,
        b" 400 ",
    ),
]


async def test_a_body_that_is_too_large_is_refused_before_it_is_asked_for() -> None:
    async with serving() as port:
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
        answer = await talk(port, head)
        assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("head", "body", "answer"), [case[1:] for case in LARGE], ids=[case[0] for case in LARGE])
async def test_a_body_that_is_too_large_is_told_so(head: bytes, body: bytes, answer: bytes) -> None:
    async with serving() as port:
        assert answer in await talk(port, head, body)


async def test_a_file_that_is_somewhat_too_large_is_taken_in_so_that_its_answer_is_seen() -> None:
    size = 35 * 1024 * 1024
    head = b"POST /a/upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    async with serving(GuardedProtocol) as port:
        assert b" 413 " in await talk(port, head, b"y" * size)


async def test_a_body_that_fastapi_reads_is_told_so_as_well() -> None:
    chunk = b"%x\r\n%b\r\n" % (600_000, b"[" * 600_000)
    head = b"POST /parsed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving() as port:
        assert b" 413 " in await talk(port, head, chunk, chunk, b"0\r\n\r\n")


async def test_bodies_that_are_held_are_bounded_together_and_pieces_are_not() -> None:
    """So that 2,048 connections can't make a process hold 2 GB before anybody is asked for a token."""
    head = b"POST /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
    almost = b"x" * 999_999
    async with serving(GuardedProtocol) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in held:
            writer.write(head % b"x" + almost)
            await writer.drain()
        async with asyncio.timeout(20):
            while b"503 Service" not in (answer := await talk(port, head % b"x", almost, b"x")):
                assert b"200 OK" in answer
                await asyncio.sleep(0.05)
        assert b"retry-after: 1" in answer
        assert b"200 OK" in await talk(port, head % b"a/file", almost, b"x")
        for _, writer in held:
            writer.write(b"x")
        assert [b"200 OK" in await reader.read() for reader, _ in held] == [True, True]
        for _, writer in held:
            writer.close()
        assert b"200 OK" in await talk(port, head % b"x", almost, b"x")


async def test_head_is_answered_as_get_without_a_body_and_ends_there() -> None:
    head, last = b"HEAD /%b HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with serving() as port:
        told = await talk(port, head % b"openapi.json" + head % b"endless" + head % b"nowhere" + last)
    statuses = [line for line in told.split(b"\r\n") if line.startswith(b"HTTP/")]
    assert [line.split()[1] for line in statuses] == [b"200", b"200", b"405", b"200"]
    assert b"begun" not in told
    assert b"yyy" not in told
    assert told.endswith(b"\r\n\r\n")
