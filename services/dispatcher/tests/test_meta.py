"""The verdict on every way in which a call can end, over real sockets (reliability-security.md, section c)."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
from aiohttp.client import IDEMPOTENT_METHODS
from aiohttp.connector import Connection
from dispatcher.answers import Action, HoldScope, MaybeTaken, NotTaken, Outcome, Taken
from dispatcher.meta import Meta, messaging_limit, retry_after_seconds
from dispatcher.tokens import Access
from dispatcher_desk import Behave, meta_at, server
from sendwhy.reasons import ReasonCode

BODY = b'{"to":"x"}'
OK = b'{"messages":[{"id":"wamid.A"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "


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


async def send(meta: Meta, may_start: Callable[[], bool]) -> Outcome | None:
    return await meta.send("100000000000001", Access("token"), BODY, attempt=1, may_start=may_start)


async def call(url: str, may_start: Callable[[], bool] = lambda: True) -> Outcome | None:
    meta = meta_at(url)
    try:
        return await send(meta, may_start)
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


REFUSED = b'{"error":{"message":"x","code":131026}}'
CHUNKED = (
    b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (REFUSED[:7], REFUSED[7:20], REFUSED[20:]))
    + b"0\r\n\r\n"
)
TO_THE_END = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + REFUSED


async def taken_for_sure_or_not(cut_at: Callable[[int], Behave], count: int) -> dict[int, Outcome | None]:
    """The cuts after 0 to `count - 1` bytes by which the outcome isn't unknown."""
    at = 0

    async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cut_at(at)(reader, writer)

    found: dict[int, Outcome | None] = {}
    async with server(cuts) as url:
        meta = meta_at(url)
        try:
            for at in range(count):
                outcome = await send(meta, lambda: True)
                if not isinstance(outcome, MaybeTaken):
                    found[at] = outcome
        finally:
            await meta.close()
    return found


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, TO_THE_END], ids=["with its length", "in chunks", "to the end"])
async def test_a_cut_at_every_byte_of_the_answer_is_never_a_refusal(answer: bytes, end: str) -> None:
    """Where only the very last line end of the last chunk is missing, the JSON is whole and was read."""
    complete = len(answer) - (2 if answer is CHUNKED else 0)
    assert await taken_for_sure_or_not(lambda cut: says(answer[:cut], then=end), complete) == {}


def reads(count: int, end: str) -> Behave:
    """Reads so many bytes of the request and ends the connection."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(count)
        if end == "rst":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    return behave


async def request_as_written() -> bytes:
    came: list[bytes] = []

    async def notes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        came.append(head + await reader.readexactly(len(BODY)))
        writer.write(WHOLE)

    async with server(notes) as url:
        await call(url)
    return came[0]


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_cut_at_every_byte_of_the_request_is_never_repeated(end: str) -> None:
    """What left us may have been acted on, even where the other side read nothing: it stood in its buffer."""
    whole = await request_as_written()
    assert await taken_for_sure_or_not(lambda cut: reads(cut, end), len(whole) + 1) == {}


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_kept_connection_that_is_cut_by_the_next_call_is_never_repeated(end: str) -> None:
    """The one case in which HTTP clients like to repeat by themselves."""
    came: list[int] = []

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        came.append(1)
        writer.write(WHOLE)
        await reads(1, end)(reader, writer)
        came.append(2)

    async with server(answers_once) as url:
        meta = meta_at(url)
        try:
            assert isinstance(await send(meta, lambda: True), Taken)
            assert isinstance(await send(meta, lambda: True), MaybeTaken)
        finally:
            await meta.close()
    assert came == [1, 2]


async def test_a_whole_answer_is_taken() -> None:
    async with server(says(WHOLE)) as url:
        assert await call(url) == Taken("wamid.A")


@pytest.mark.parametrize(
    "answer",
    [
        whole(gzip.compress(OK), b"Content-Encoding: gzip\r\n"),
        whole(OK).replace(b"application/json", b"text/html; charset=utf-16"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + whole(OK),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(OK), OK),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + OK,
        b"HTTP/1.0 200 OK\r\n\r\n" + OK,
    ],
    ids=["gzip", "wrong charset", "information before it", "in chunks", "to the end", "HTTP/1.0"],
)
async def test_a_whole_answer_is_taken_in_any_wrapping(answer: bytes) -> None:
    async with server(says(answer)) as url:
        assert await call(url) == Taken("wamid.A")


async def test_calls_one_after_the_other_share_a_connection() -> None:
    made: list[int] = []

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(1)
        while True:
            await read_request(reader)
            writer.write(WHOLE)

    async with server(answers) as url:
        meta = meta_at(url)
        try:
            assert [await send(meta, lambda: True) for _ in range(3)] == [Taken("wamid.A")] * 3
        finally:
            await meta.close()
    assert made == [1]


async def test_what_is_written_is_one_plain_request() -> None:
    head, _, body = (await request_as_written()).partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    told = {name.lower(): value for name, _, value in (one.partition(b": ") for one in headers)}
    assert line == b"POST /v25.0/100000000000001/messages HTTP/1.1"
    assert len(told) == len(headers)
    assert (told[b"authorization"], told[b"content-type"]) == (b"Bearer token", b"application/json")
    assert (told[b"content-length"], body) == (b"%d" % len(BODY), BODY)
    assert told[b"host"].startswith(b"127.0.0.1:")


async def test_a_token_with_a_line_end_writes_no_header_of_its_own() -> None:
    async with server(says(WHOLE)) as url:
        meta = meta_at(url)
        outcome = await meta.send("1", Access("token\r\nX: y"), BODY, attempt=1, may_start=lambda: True)
        await meta.close()
    assert isinstance(outcome, NotTaken)
    assert (outcome.reason.code, outcome.scope) == (ReasonCode.SENDER_CREDENTIALS_REJECTED, HoldScope.TOKEN)


class ClosesEarly(aiohttp.TCPConnector):
    """Every connection that it makes is closed when it is handed out."""

    async def connect(self, *args: Any) -> Connection:
        connection = await super().connect(*args)
        assert connection.protocol is not None
        assert connection.protocol.transport is not None
        connection.protocol.transport.abort()
        return connection


async def test_what_was_closed_before_the_first_byte_is_sent_again() -> None:
    asked: list[bool] = []

    def may_start() -> bool:
        asked.append(True)
        return True

    async with server(says(WHOLE)) as url:
        meta = meta_at(url)
        meta._opened = aiohttp.ClientSession(connector=ClosesEarly())
        outcome = await send(meta, may_start)
        await meta.close()
    assert isinstance(outcome, NotTaken)
    assert (outcome.action, asked) == (Action.RETRY, [])


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
        ("Thu, 26 Nov 99999999999999999999 10:00:30 GMT", None),
        ("Thu, 26 Nov 2026 10:00:30 +99999999999999999999", None),
    ],
)
def test_retry_after_comes_as_seconds_or_as_a_moment(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, datetime(2026, 11, 26, 10, 0, tzinfo=UTC)) == seconds


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_what_may_not_start_any_more_writes_no_byte() -> None:
    came: list[bytes] = []

    async def listens(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read())

    async with server(listens) as url:
        assert await call(url, may_start=lambda: False) is None
        async with asyncio.timeout(5):
            while not came:
                await asyncio.sleep(0.01)
    assert came == [b""]


async def test_nothing_comes_between_the_last_look_at_the_right_to_call_and_the_bytes() -> None:
    """A process may be frozen between any two turns of its loop: the turn after the look finds all sent."""
    came: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def next_turn() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                try:
                    came.append(connection.recv(65_536))
                except BlockingIOError:
                    came.append(b"")

        def may_start() -> bool:
            asyncio.get_running_loop().call_soon(next_turn)
            return True

        await call(f"http://127.0.0.1:{listener.getsockname()[1]}", may_start)
    (request,) = came
    assert request.startswith(b"POST ")
    assert request.endswith(BODY)


async def test_the_last_look_at_the_right_to_call_is_taken_after_the_wait_for_a_connection() -> None:
    """One connection for two calls: the second one's time runs out while it waits for the first."""
    came: list[int] = []
    answers = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            came.append(1)
            await answers.wait()
            writer.write(WHOLE)

    async with server(slow) as url:
        meta = meta_at(url, calls_in_flight_max=1, meta_read_timeout_seconds=10, meta_connect_timeout_seconds=10)
        try:
            first = asyncio.create_task(send(meta, lambda: True))
            async with asyncio.timeout(5):
                while not came:
                    await asyncio.sleep(0.01)
            asked: list[int] = []

            def too_late() -> bool:
                asked.append(1)
                return False

            second = asyncio.create_task(send(meta, too_late))
            await asyncio.sleep(0)
            assert not asked
            answers.set()
            assert await first == Taken("wamid.A")
            assert await second is None
            assert (len(came), len(asked)) == (1, 1)
        finally:
            await meta.close()


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
        ("UNLIMITED", "unlimited"),
        ("TIER_UNLIMITED", "unlimited"),
        (-1, "unlimited"),
        (None, None),
        ("TIER_NOT_SET", None),
        ("TIER_OF_TOMORROW", None),
        ({"tier": "TIER_10K"}, 10_000),
        ({"tier": "TIER_UNLIMITED"}, "unlimited"),
    ],
)
async def test_messaging_limits_in_all_their_spellings(told: object, limit: int | str | None) -> None:
    async def tells(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(json.dumps({"whatsapp_business_manager_messaging_limit": told}).encode()))
        await writer.drain()

    async with server(tells) as url:
        meta = meta_at(url)
        number = await meta.number("100000000000001", Access("token"))
        await meta.close()
    assert ("unlimited" if number.unlimited else number.messaging_limit) == limit
    assert messaging_limit(told) == number.messaging_limit
