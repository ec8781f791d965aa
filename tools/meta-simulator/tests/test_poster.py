"""Whatever a receiver answers, a post ends in its status or in none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from meta_simulator.poster import Answer, Poster


class Server:
    """Answers each request with the same bytes and, if `closes`, ends the connection."""

    def __init__(self, answer: bytes, *, closes: bool) -> None:
        self.answer, self.closes = answer, closes
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self.serving: set[asyncio.Task[object] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                writer.write(self.answer)
                await writer.drain()
                if self.closes:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def answering(answer: bytes, *, closes: bool = False) -> AsyncIterator[tuple[Server, Poster]]:
    server, poster = Server(answer, closes=closes), Poster()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hook?a=1"
    try:
        yield server, poster
    finally:
        poster.close()
        listening.close()
        await listening.wait_closed()
        await asyncio.wait({task for task in server.serving if task})


@pytest.mark.parametrize(
    ("raw", "closes", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False, Answer(200, b"ok")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", False, Answer(200, b"ok")),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True, Answer(200, b"ok")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False, Answer(200, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, Answer(204, b"")),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", False, Answer(302, b"")),
        (b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", True, Answer(500, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Le", True, None),
        (b"\x15\x03\x01 no HTTP\r\n\r\n", True, None),
        (b"", True, None),
    ],
)
async def test_what_a_receiver_may_answer(raw: bytes, closes: bool, answer: Answer | None) -> None:
    async with answering(raw, closes=closes) as (server, poster):
        assert await poster.post(server.url, b"{}", "sha256=0") == answer
        assert server.requests[0].startswith(b"POST /hook?a=1 HTTP/1.1\r\n")
        assert b"X-Hub-Signature-256: sha256=0\r\n" in server.requests[0]
        assert server.requests[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(("ending", "connections"), [(b"", 1), (b"Connection: close\r\n", 3)])
async def test_a_connection_is_kept_where_the_receiver_keeps_it(ending: bytes, connections: int) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + ending + b"\r\n") as (server, poster):
        for _ in range(3):
            assert await poster.post(server.url, b"{}", None) == Answer(200, b"")
        assert server.connections == connections
        assert b"X-Hub-Signature" not in server.requests[0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "ftp://127.0.0.1/", "not a url", "http://", "http://x:port/"])
async def test_nobody_there_is_no_answer(url: str) -> None:
    poster = Poster()
    assert await poster.post(url, b"{}", None) is None
    assert await poster.get(url, {"a": "b"}) is None
    poster.close()
