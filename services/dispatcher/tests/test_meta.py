"""The verdict on every way in which a call can end, over real sockets (reliability-security.md, section c)."""

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from aiohttp.client import IDEMPOTENT_METHODS
from cryptography.fernet import Fernet
from dispatcher.answers import MaybeTaken, NotTaken, Outcome, Taken
from dispatcher.meta import Meta, messaging_limit, retry_after_seconds
from dispatcher.settings import Settings
from dispatcher.tokens import Access
from pydantic import SecretStr

OK = b'{"messages":[{"id":"wamid.A"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))


def says(answer: bytes, *, then: str = "fin") -> Behave:
    """Reads the whole request, writes `answer`, and ends the connection by FIN, by RST, or not at all."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()
        if then == "rst":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then == "nothing":
            await asyncio.sleep(5)
        writer.close()

    return behave


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    for byte in HEAD:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


@asynccontextmanager
async def server(behave: Behave) -> AsyncIterator[str]:
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await behave(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def meta_at(url: str) -> Meta:
    return Meta(
        Settings(
            kafka_bootstrap_servers="unused:1",
            database_url=SecretStr("postgresql://unused"),
            meta_graph_url=url,
            privacy_key=SecretStr("a key of tests only"),
            token_encryption_key=SecretStr(Fernet.generate_key().decode()),
            meta_connect_timeout_seconds=0.5,
            meta_read_timeout_seconds=0.5,
        )
    )


async def call(url: str) -> Outcome:
    meta = meta_at(url)
    try:
        return await meta.send("100000000000001", Access("token"), b'{"to":"x"}', attempt=1)
    finally:
        await meta.close()
        await asyncio.sleep(0)


def whole(body: bytes, headers: bytes = b"", status: bytes = b"200 OK") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n" + length + headers + b"\r\n" + body


async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await asyncio.sleep(0.8)
    writer.write(whole(OK))
    writer.close()


WHOLE = HEAD + str(len(OK)).encode() + b"\r\n\r\n" + OK
MAYBE: list[tuple[str, Behave]] = [
    ("closed after the whole request", says(b"")),
    ("reset after the whole request", says(b"", then="rst")),
    ("half a head", says(b"HTTP/1.1 200 OK\r\nContent-")),
    ("half a head, reset", says(b"HTTP/1.1 200", then="rst")),
    ("head without body", says(HEAD + b"31\r\n\r\n")),
    ("half a body", says(WHOLE[:-5])),
    ("half a body, reset", says(WHOLE[:-5], then="rst")),
    ("junk instead of HTTP", says(b"SSH-2.0-OpenSSH\r\n\r\n")),
    ("no answer", says(b"", then="nothing")),
    ("no end of the body", says(WHOLE[:-5], then="nothing")),
    ("a byte now and then", drips),
    ("a redirect", says(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")),
    ("a page from a proxy", says(b"HTTP/1.1 502 X\r\nContent-Length: 6\r\n\r\n<html>")),
    ("an answer after the timeout", late),
    ("204", says(b"HTTP/1.1 204 No Content\r\n\r\n")),
    ("nothing but information", says(b"HTTP/1.1 103 Early Hints\r\n\r\n")),
    ("what says gzip and isn't", says(whole(OK, b"Content-Encoding: gzip\r\n"))),
    ("half of a gzip", says(whole(gzip.compress(OK)[:-12], b"Content-Encoding: gzip\r\n"))),
    ("an endless answer", says(HEAD + b"9000000\r\n\r\n" + b"x" * 400_000)),
]


@pytest.mark.parametrize("behave", [case[1] for case in MAYBE], ids=[case[0] for case in MAYBE])
async def test_once_the_request_has_left_nobody_knows(behave: Behave) -> None:
    async with server(behave) as url:
        assert isinstance(await call(url), MaybeTaken)


async def test_a_cut_at_every_byte_of_the_answer_is_never_a_refusal() -> None:
    for cut in range(0, len(WHOLE), 7):
        async with server(says(WHOLE[:cut])) as url:
            assert isinstance(await call(url), MaybeTaken), cut


async def test_a_whole_answer_is_taken() -> None:
    async with server(says(WHOLE)) as url:
        assert await call(url) == Taken("wamid.A")


@pytest.mark.parametrize(
    "answer",
    [
        whole(gzip.compress(OK), b"Content-Encoding: gzip\r\n"),
        whole(OK).replace(b"application/json", b"text/html; charset=utf-16"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + whole(OK),
    ],
    ids=["gzip", "wrong charset", "information before it"],
)
async def test_a_whole_answer_is_taken_in_any_wrapping(answer: bytes) -> None:
    async with server(says(answer)) as url:
        assert await call(url) == Taken("wamid.A")


async def test_a_refusal_with_retry_after_waits_for_that_long() -> None:
    refusal = b'{"error":{"message":"(#4) x","code":4}}'
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True).encode()
    for header, seconds in ((b"77", 77), (in_an_hour, 3600)):
        async with server(says(whole(refusal, b"Retry-After: " + header + b"\r\n", b"429 Too Many"))) as url:
            outcome = await call(url)
        assert isinstance(outcome, NotTaken)
        assert outcome.delay == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        ("Thu, 26 Nov 2026 10:00:30 GMT", 30),
        ("Thu, 26 Nov 2026 10:00:30", 30),
        ("Thu, 26 Nov 2026 11:00:30 +0100", 30),
        ("Thu, 26 Nov 2025 10:00:00 GMT", 0),
        ("-1", None),
        ("1.5", None),
        ("9999999", None),
        ("soon", None),
        ("", None),
        ("Thu, 99 Nov 2026 10:00:30 GMT", None),
    ],
)
def test_retry_after_comes_as_seconds_or_as_a_moment(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, datetime(2026, 11, 26, 10, 0, tzinfo=UTC)) == seconds


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection_sent_nothing() -> None:
    assert isinstance(await call(f"http://127.0.0.1:{unused_port()}"), NotTaken)


async def test_a_name_that_does_not_resolve_sent_nothing() -> None:
    assert isinstance(await call("http://no-such-host.invalid"), NotTaken)


async def test_a_failed_tls_handshake_sent_nothing() -> None:
    async def not_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with server(not_tls) as url:
        assert isinstance(await call(url.replace("http://", "https://")), NotTaken)


def test_aiohttp_repeats_no_post() -> None:
    # One constant away from sending twice: aiohttp repeats these on a connection that turns out dead.
    assert "POST" not in IDEMPOTENT_METHODS
    assert issubclass(aiohttp.ClientConnectorDNSError, aiohttp.ClientConnectorError)


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ("TIER_250", 250),
        ("TIER_2K", 2000),
        ("TIER_100K", 100_000),
        (2000, 2000),
        ("10000", 10_000),
        ("UNLIMITED", None),
        ("TIER_UNLIMITED", None),
        (-1, None),
        (None, None),
        ({"tier": "TIER_10K"}, 10_000),
    ],
)
def test_messaging_limits_in_all_their_spellings(told: object, limit: int | None) -> None:
    assert messaging_limit(told) == limit
