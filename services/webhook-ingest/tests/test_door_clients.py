"""The door before clients of all kinds, over real sockets; what stands for Kafka here is a list."""

import asyncio
import base64
import gzip
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from ingest_webhooks import APP, SECRET, signature
from sendwhy.http import GuardedProtocol
from sendwhy.kafka import PublishError
from sendwhy.metrics import Metrics
from sendwhy.reasons import Service
from sendwhy.topics import MAX_WEBHOOK_BYTES, Outgoing, Topic
from starlette.types import Message, Receive, Scope, Send
from webhook_ingest.door import ENOUGH, MANY, REFUSED_PER_SECOND, Budget, Door, Gathering
from webhook_ingest.room import PATIENCE_SECONDS, Room
from webhook_ingest.settings import Settings

VERIFY_TOKEN = "the-verify-token"
SETTINGS = Settings.model_validate(
    {
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "database_url": "postgresql://x",
        "api_tokens": "",
        "meta_app_secrets": f"{APP}:{SECRET}",
        "meta_verify_token": VERIFY_TOKEN,
        "shopify_webhook_secrets": "acme:the-shopify-secret",
        "privacy_key": "a key of tests only",
    }
)
BODY = b'{"object":"whatsapp_business_account","entry":[]}'
META = b"POST /webhooks/meta HTTP/1.1\r\nHost: a\r\n"
SIGNED = b"X-Hub-Signature-256: " + signature(BODY).encode() + b"\r\n"


class Topics:
    """Takes what is published, unless it is away; `open` lets it answer."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []
        self.batches: list[int] = []
        self.waiting = 0
        self.is_away = False
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, records: Sequence[Outgoing], *, timeout_seconds: float) -> None:
        self.waiting += len(records)
        async with asyncio.timeout(timeout_seconds):
            await self.open.wait()
        self.waiting -= len(records)
        if self.is_away:
            raise PublishError
        self.records += records
        self.batches.append(len(records))

    def on(self, topic: Topic) -> list[Outgoing]:
        return [record for record in self.records if record.topic is topic]


class House:
    """The door at `port`, and what it has published."""

    def __init__(self, port: int, topics: Topics, metrics: Metrics, room: Room, door: "Watched") -> None:
        self.port, self.topics, self._metrics, self.room, self.door = port, topics, metrics, room, door

    @property
    def kept(self) -> list[bytes | None]:
        return [record.value for record in self.topics.on(Topic.WEBHOOK_RECEIVED)]

    def counted(self, result: str) -> float:
        lines = [line for line in self._metrics.text().decode().splitlines() if f'result="{result}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    @property
    def timed(self) -> float:
        """How many answers' times count for the promise."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self._metrics.text().decode().splitlines()
            if line.startswith("sendwhy_webhook_ack_seconds_count")
        )

    async def connect(self, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for part in parts:
            writer.write(part)
            await writer.drain()
        return reader, writer

    async def ask(self, *parts: bytes) -> bytes:
        """Send parts on a connection of their own; the first answer, head and body."""
        reader, writer = await self.connect(*parts)
        answer = await answer_of(reader)
        writer.close()
        return answer

    async def post(self, body: bytes = BODY, *, headers: bytes = b"") -> bytes:
        signed = b"X-Hub-Signature-256: " + signature(body).encode() + b"\r\n"
        length = f"Content-Length: {len(body)}\r\n\r\n".encode()
        return await self.ask(META + signed + headers + length, body)


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        return head + await reader.readexactly(length)


async def until(found: object) -> None:
    assert callable(found)
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(places: int = 100, size: int = 50 * 2**20) -> AsyncIterator[House]:
    topics, metrics = Topics(), Metrics(Service.WEBHOOK_INGEST)
    room = Room(places, size)
    door = Watched(FastAPI(), topics.publish, metrics, SETTINGS, room)
    config = uvicorn.Config(
        door,
        host="127.0.0.1",
        port=0,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # As the house serves: else the door is wrapped, and takes nothing at once.
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield House(server.servers[0].sockets[0].getsockname()[1], topics, metrics, room, door)
    finally:
        topics.open.set()
        server.should_exit = True
        await task


async def test_a_signed_body_is_kept_as_it_came() -> None:
    async with opened() as house:
        assert (await house.post()).startswith(b"HTTP/1.1 200")
        (record,) = house.topics.records
        assert (record.topic, record.value, record.key) == (
            Topic.WEBHOOK_RECEIVED,
            BODY,
            hashlib.sha256(BODY).hexdigest().encode(),
        )


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (f"hub.mode=subscribe&hub.challenge=115%2620&hub.verify_token={VERIFY_TOKEN}", b"115&20"),
        (f"hub.mode=unsubscribe&hub.challenge=1&hub.verify_token={VERIFY_TOKEN}", None),
        (f"hub.challenge=1&hub.verify_token={VERIFY_TOKEN}", None),
        (f"hub.mode=subscribe&hub.challenge={'1' * 1025}&hub.verify_token={VERIFY_TOKEN}", None),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=wrong", None),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=", None),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=%ff%00", None),
        ("", None),
    ],
)
async def test_verification(query: str, answer: bytes | None) -> None:
    async with opened() as house:
        told = await house.ask(f"GET /webhooks/meta?{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 403" if answer is None else b"HTTP/1.1 200")
        assert told.endswith(b"\r\n\r\n" + (answer or b""))


WRONG = [
    ("a packed body", b"Content-Encoding: gzip\r\nContent-Length: 20", 415, "encoded"),
    ("an unknown packing", b"Content-Encoding: identity, br\r\nContent-Length: 20", 415, "encoded"),
    ("two packings", b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 20", 400, "malformed"),
    ("a packed transfer", b"Transfer-Encoding: gzip, chunked", 400, "malformed"),
    ("one byte too many", f"Content-Length: {MAX_WEBHOOK_BYTES + 1}".encode(), 413, "too_large"),
    ("a length beyond all numbers", b"Content-Length: " + b"9" * 19, 413, "too_large"),
]


@pytest.mark.parametrize(("headers", "status", "result"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_what_is_refused_by_its_head_is_refused_before_its_body_comes(
    headers: bytes, status: int, result: str
) -> None:
    async with opened() as house:
        answer = await house.ask(META + SIGNED + b"Expect: 100-continue\r\n" + headers + b"\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status}".encode())
        assert b"application/problem+json" in answer
        assert b"connection: close" in answer.lower()
        assert house.counted(result) == 1
        assert house.topics.records == []


def whole(body: bytes = BODY, *, version: str = "1.1", headers: bytes = b"") -> bytes:
    """A signed webhook, to be written at once."""
    head = f"POST /webhooks/meta HTTP/{version}\r\nHost: a\r\nContent-Length: {len(body)}\r\n".encode()
    return head + b"X-Hub-Signature-256: " + signature(body).encode() + b"\r\n" + headers + b"\r\n" + body


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [("1.1", b"", True), ("1.1", b"Connection: close\r\n", False), ("1.0", b"", False)],
)
async def test_a_webhook_gets_the_same_answer_whether_it_comes_at_once_or_not(
    version: str, headers: bytes, stays: bool
) -> None:
    request = whole(version=version, headers=headers)
    async with opened() as house:
        answers = []
        for cut in (len(request), len(request) - 1):
            house.topics.open.clear()
            reader, writer = await house.connect(request[:cut])
            # The rest of it is not read together with this.
            await until(lambda: house.room.places == 1)
            writer.write(request[cut:])
            house.topics.open.set()
            answers.append((await answer_of(reader)).splitlines())
            if stays:
                writer.write(request)
                assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
            else:
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
        heads = [sorted(line for line in answer if not line.startswith(b"date:")) for answer in answers]
        assert heads[0] == heads[1]
        assert house.kept == [BODY] * (4 if stays else 2)
        assert house.counted("received") == len(house.kept)
        assert (house.room.places, house.room.bytes) == (0, 0)


class Watched(Door):
    """Counts what comes by way of ASGI."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await super().__call__(scope, receive, send)


async def test_a_webhook_that_came_whole_is_taken_without_asgi() -> None:
    async with opened() as house:
        assert (await house.ask(whole())).startswith(b"HTTP/1.1 200")
        assert house.door.asked == 0
        two = whole() + whole(b"{}")
        reader, writer = await house.connect(two[:-1])
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
        writer.write(two[-1:])
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
        assert house.door.asked == 1
        writer.close()
    assert house.kept == [BODY, BODY, b"{}"]


@pytest.mark.parametrize(
    "request_",
    [
        b"POST http:///x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123",
        META + SIGNED + b"Transfer-Encoding: chunked\r\n\r\nno length",
    ],
)
async def test_what_is_no_http_is_answered_400_and_asked_of_nobody(request_: bytes) -> None:
    async with opened() as house:
        reader, writer = await house.connect(request_)
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert house.door.asked == 0
        writer.close()


async def test_webhooks_in_one_piece_are_answered_in_their_order() -> None:
    bodies = [b'{"number":%d}' % number for number in range(5)]
    wrong = whole(b"{}").replace(b"sha256=", b"sha256=0")
    async with opened() as house:
        pieces = [*map(whole, bodies[:2]), wrong, *map(whole, bodies[2:])]
        reader, writer = await house.connect(b"".join(pieces))
        codes = [(await answer_of(reader)).split()[1] for _ in pieces]
        assert codes == [b"200", b"200", b"401", b"200", b"200", b"200"]
        assert house.kept == bodies
        await until(lambda: len(house.topics.on(Topic.WEBHOOK_REFUSED)) == 1)
        writer.close()


async def test_whoever_leaves_before_the_answer_leaves_room() -> None:
    async with opened(places=1) as house:
        house.topics.open.clear()
        _, writer = await house.connect(whole())
        await until(lambda: house.topics.waiting == 1)
        assert (await house.ask(whole(b"{}"))).startswith(b"HTTP/1.1 503")
        writer.close()
        house.topics.open.set()
        await until(lambda: house.room.places == 0)
        assert (await house.ask(whole(b"{}"))).startswith(b"HTTP/1.1 200")
        assert house.kept == [BODY, b"{}"]


async def test_what_kafka_does_not_take_is_refused_on_a_connection_that_stays() -> None:
    async with opened() as house:
        house.topics.is_away = True
        reader, writer = await house.connect(whole())
        answer = (await answer_of(reader)).lower()
        assert answer.startswith(b"http/1.1 503")
        assert b"retry-after: 5" in answer
        assert b"application/problem+json" in answer
        assert house.counted("unavailable") == 1
        house.topics.is_away = False
        writer.write(whole())
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_packed_body_with_a_right_signature_is_refused_as_well() -> None:
    async with opened() as house:
        assert (await house.post(gzip.compress(BODY), headers=b"Content-Encoding: gzip\r\n")).startswith(
            b"HTTP/1.1 415"
        )
        assert (await house.post(headers=b"Content-Encoding: identity\r\n")).startswith(b"HTTP/1.1 200")
        assert house.kept == [BODY]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/webhooks/meta", b"allow: GET, POST"),
        ("HEAD", "/webhooks/meta", b"allow: GET, POST"),
        ("DELETE", "/webhooks/shopify/acme", b"allow: POST"),
        ("GET", "/webhooks/shopify/acme", b"allow: POST"),
    ],
)
async def test_other_methods(method: str, path: str, allowed: bytes) -> None:
    async with opened() as house:
        reader, writer = await house.connect(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 405")
        assert allowed in answer
        writer.close()


@pytest.mark.parametrize("path", ["/webhooks/", "/webhooks/meta/", "/webhooks/shopify", "/webhooks/shopify/a/b", "/"])
async def test_other_paths_are_not_found(path: str) -> None:
    async with opened() as house:
        assert (await house.ask(f"POST {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).startswith(b"HTTP/1.1 404")


async def test_a_sender_that_asks_first_is_told_to_go_on() -> None:
    async with opened() as house:
        head = META + SIGNED + f"Expect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        reader, writer = await house.connect(head)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 100")
        writer.write(BODY)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_body_in_chunks_is_put_together() -> None:
    async with opened() as house:
        chunks = b"".join(b"1\r\n" + BODY[at : at + 1] + b"\r\n" for at in range(len(BODY)))
        head = META + SIGNED + b"Transfer-Encoding: chunked\r\n\r\n"
        assert (await house.ask(head, chunks[:40], chunks[40:] + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert house.kept == [BODY]


async def test_a_body_in_chunks_is_413_once_it_is_too_large() -> None:
    async with opened() as house:
        chunk = f"{2**20:x}\r\n".encode() + b"x" * 2**20 + b"\r\n"
        answer = await house.ask(META + SIGNED + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4)
        assert answer.startswith(b"HTTP/1.1 413")


SHOPIFY = b"POST /webhooks/shopify/acme HTTP/1.1\r\nHost: a\r\n"
SHOPIFY_SIGNED = (
    b"X-Shopify-Hmac-Sha256: "
    + base64.b64encode(hmac.digest(b"the-shopify-secret", BODY, "sha256"))
    + b"\r\n"
    + f"Content-Length: {len(BODY)}\r\n\r\n".encode()
)


async def test_shopifys_headers_go_with_the_body() -> None:
    async with opened() as house:
        headers = (
            b"X-Shopify-Topic: customers/update\r\nX-Shopify-Shop-Domain: acme.example.com\r\n"
            b"X-Shopify-Event-Id: e-1\r\nX-Shopify-Webhook-Id: w-1\r\nX-Shopify-Triggered-At: 2026-11-22T10:00:00Z\r\n"
            b"X-Shopify-Api-Version: 2026-10\r\n"
        )
        assert (await house.ask(SHOPIFY + headers + SHOPIFY_SIGNED + BODY)).startswith(b"HTTP/1.1 200")
        found = dict(house.topics.records[0].headers)
        assert {name: value for name, value in found.items() if name.startswith("shopify_")} == {
            "shopify_topic": b"customers/update",
            "shopify_shop": b"acme.example.com",
            "shopify_event_id": b"e-1",
            "shopify_webhook_id": b"w-1",
            "shopify_triggered_at": b"2026-11-22T10:00:00Z",
        }
        assert (found["source"], found["workspace_id"]) == (b"shopify", b"acme")


async def test_a_header_that_comes_twice_decides_nothing() -> None:
    async with opened() as house:
        topics = b"X-Shopify-Topic: customers/update\r\nX-Shopify-Topic: customers/delete\r\n"
        assert (await house.ask(SHOPIFY + topics + SHOPIFY_SIGNED + BODY)).startswith(b"HTTP/1.1 400")
        wrong = b"X-Hub-Signature-256: sha256=" + b"0" * 64 + b"\r\n"
        for both in (SIGNED + wrong, wrong + SIGNED, SIGNED + SIGNED):
            answer = await house.ask(META + both + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            assert answer.startswith(b"HTTP/1.1 401")
        await until(lambda: len(house.topics.on(Topic.WEBHOOK_REFUSED)) == 3)
        assert {dict(record.headers)["cause"] for record in house.topics.records} == {b"signature is repeated"}


async def test_kafka_away_is_a_503_that_asks_for_a_repeat() -> None:
    async with opened() as house:
        house.topics.is_away = True
        answer = (await house.post()).lower()
        assert answer.startswith(b"http/1.1 503")
        assert b"retry-after: 5" in answer
        assert b"connection: close" not in answer
        house.topics.is_away = False
        assert (await house.post()).startswith(b"HTTP/1.1 200")


async def test_what_comes_together_is_published_together() -> None:
    async with opened() as house:
        answers = await asyncio.gather(*(house.post() for _ in range(40)))
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert sum(house.topics.batches) == 40
        assert len(house.topics.batches) < 40


async def test_the_time_of_a_200_counts_and_of_no_other_answer() -> None:
    """A 503 counts against the promise by its own counter, and whoever isn't Meta doesn't count at all."""
    async with opened() as house:
        assert (await house.ask(whole())).startswith(b"HTTP/1.1 200")
        assert (await house.post(headers=b"X-More: 1\r\n")).startswith(b"HTTP/1.1 200")
        assert house.timed == house.counted("received") == 2
        wrong = whole().replace(b"sha256=", b"sha256=0")
        assert (await house.ask(wrong)).startswith(b"HTTP/1.1 401")
        _, writer = await house.connect(META + SIGNED + b"Content-Length: 9\r\n\r\n", b"half")
        writer.close()
        await until(lambda: house.counted("cut") == 1)
        house.topics.is_away = True
        assert (await house.ask(whole())).startswith(b"HTTP/1.1 503")
        assert (await house.post(headers=b"X-More: 1\r\n")).startswith(b"HTTP/1.1 503")
        assert (house.counted("refused"), house.counted("unavailable")) == (1, 2)
        assert house.timed == 2


async def test_of_what_comes_together_none_is_taken_for_kept_if_kafka_is_away() -> None:
    async with opened() as house:
        house.topics.is_away = True
        answers = await asyncio.gather(*(house.post() for _ in range(5)))
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
        assert house.topics.records == []


class Slow:
    """Kafka that takes each batch when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[bytes | None]] = []
        self.taken: list[asyncio.Event] = []
        self.told: list[bytes] = []

    async def publish(self, records: Sequence[Outgoing], *, timeout_seconds: float) -> None:
        self.batches.append([record.key for record in records])
        self.taken.append(taken := asyncio.Event())
        await taken.wait()

    def keep(self, gathering: Gathering, name: bytes) -> None:
        gathering.keep(
            Outgoing(Topic.WEBHOOK_RECEIVED, name, b"", anywhere=True), lambda _error: self.told.append(name)
        )


async def test_while_kafka_has_not_taken_one_batch_the_next_one_grows() -> None:
    kafka = Slow()
    gathering = Gathering(kafka.publish, gathered_seconds=0, waited_seconds=3600)
    kafka.keep(gathering, b"a")
    await until(lambda: kafka.batches == [[b"a"]])
    for name in (b"b", b"c", b"d"):
        kafka.keep(gathering, name)
        for _ in range(5):
            await asyncio.sleep(0)
    assert kafka.batches == [[b"a"]]
    kafka.taken[0].set()
    await until(lambda: kafka.batches == [[b"a"], [b"b", b"c", b"d"]])
    assert kafka.told == [b"a"]
    kafka.taken[1].set()
    await until(lambda: kafka.told == [b"a", b"b", b"c", b"d"])


@pytest.mark.parametrize(("first", "batches"), [(MANY - 1, [MANY - 1, 1]), (MANY, [MANY + 1]), (ENOUGH, [ENOUGH, 1])])
async def test_many_wait_for_company_and_few_or_enough_do_not(first: int, batches: list[int]) -> None:
    topics, told = Topics(), list[Exception | None]()
    gathering = Gathering(topics.publish, gathered_seconds=0, waited_seconds=3600)
    record = Outgoing(Topic.WEBHOOK_RECEIVED, b"", b"", anywhere=True)
    for _ in range(first):
        gathering.keep(record, told.append)
    # The first sleep has begun, and ended.
    for _ in range(2):
        await asyncio.sleep(0)
    gathering.keep(record, told.append)
    await until(lambda: len(told) == first + 1)
    assert topics.batches == batches


async def test_a_batch_that_is_stuck_holds_up_none_that_come_later() -> None:
    kafka = Slow()
    gathering = Gathering(kafka.publish, gathered_seconds=0, waited_seconds=0.01)
    for number, name in enumerate((b"a", b"b", b"c")):
        kafka.keep(gathering, name)
        await until(lambda expected=number + 1: len(kafka.batches) == expected)
    kafka.taken[2].set()
    kafka.taken[1].set()
    await until(lambda: kafka.told == [b"c", b"b"])
    kafka.taken[0].set()
    await until(lambda: kafka.told == [b"c", b"b", b"a"])


async def test_what_the_end_of_the_process_leaves_inside_is_a_503() -> None:
    topics, told = Topics(), list[Message]()
    topics.open.clear()
    door = Door(FastAPI(), topics.publish, Metrics(Service.WEBHOOK_INGEST), SETTINGS)
    headers = [(b"x-hub-signature-256", signature(BODY).encode()), (b"content-length", str(len(BODY)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/webhooks/meta", "headers": headers}

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        told.append(message)

    inside = asyncio.create_task(door(scope, receive, send))
    await until(lambda: topics.waiting == 1)
    inside.cancel()
    await inside
    assert told[0]["status"] == 503
    assert {b"retry-after", b"connection"} <= {name for name, _ in told[0]["headers"]}


async def test_more_than_the_door_holds_are_503_and_the_others_are_kept() -> None:
    async with opened(places=5) as house:
        house.topics.open.clear()
        inside = [asyncio.create_task(house.post(b"%d" % number)) for number in range(5)]
        await until(lambda: house.topics.waiting == 5)
        # Of a webhook beyond that the body is not even asked for.
        answer = await house.ask(
            META + SIGNED + f"Expect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in answer.lower()
        house.topics.open.set()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*inside))
        assert sorted(house.kept, key=str) == [b"%d" % number for number in range(5)]
        assert (await house.post()).startswith(b"HTTP/1.1 200")


async def test_a_refused_webhooks_connection_serves_the_next_one() -> None:
    async with opened(places=1) as house:
        house.topics.open.clear()
        inside = asyncio.create_task(house.post(b"{}"))
        await until(lambda: house.topics.waiting == 1)
        request = META + SIGNED + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
        reader, writer = await house.connect(request)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 503")
        house.topics.open.set()
        await inside
        writer.write(request)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
async def test_bodies_that_never_end_keep_nobody_out(framing: bytes) -> None:
    async with opened(places=10) as house:
        slow = [await house.connect(META + framing) for _ in range(10)]
        loop = asyncio.get_running_loop()
        came = loop.time()
        while not (answer := await house.post()).startswith(b"HTTP/1.1 200"):
            # Whoever has just come is given some time.
            assert answer.startswith(b"HTTP/1.1 503")
            assert loop.time() < came + PATIENCE_SECONDS + 20
            await asyncio.sleep(0.1)
        told = await answer_of(slow[0][0])
        assert told.startswith(b"HTTP/1.1 503")
        assert await asyncio.wait_for(slow[0][0].read(), 20) == b""
        for _, writer in slow:
            writer.close()


async def test_large_bodies_count_as_they_announce_themselves_and_leave_room_when_they_break_off() -> None:
    async with opened(size=10 * 2**20) as house:
        head = META + SIGNED + f"Content-Length: {3 * 2**20}\r\n\r\n".encode()
        large = [await house.connect(head + b"x") for _ in range(3)]
        await until(lambda: house.room.places == 3)
        assert (await house.ask(head)).startswith(b"HTTP/1.1 503")
        assert (await house.post()).startswith(b"HTTP/1.1 200")
        for _, writer in large:
            writer.close()
        await until(lambda: house.counted("cut") == 3)
        reader, writer = await house.connect(head)
        writer.write(b"x" * (3 * 2**20))
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 401")
        writer.close()


def test_the_budget_of_refusals_tells_of_all_others() -> None:
    budget = Budget(REFUSED_PER_SECOND)
    taken = [budget.take(1000 + number / 100) for number in range(350)]
    assert [sum(1 for told in taken[at : at + 100] if told is not None) for at in (0, 100, 200)] == [10, 10, 10]
    told = [one for one in taken if one is not None]
    assert len(told) + sum(told) == 310
