"""The door that Meta and Shopify knock at: raw bytes in, signature, Kafka, 200. Nothing is parsed here.

Plain ASGI, before all routing and middleware: at three webhooks a message the door is the busiest place of all, and
what stood before a route took as long as all that is done here.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Literal, Protocol
from urllib.parse import parse_qsl

import structlog
from aiokafka.errors import KafkaError
from sendwhy.http import HeaderList, answer_early
from sendwhy.kafka import PublishError
from sendwhy.logs import describe
from sendwhy.metrics import Metric, Metrics
from sendwhy.problems import problem_response
from sendwhy.settings import Secrets
from sendwhy.topics import MAX_WEBHOOK_BYTES, Headers, Outgoing, Topic
from sendwhy.values import value_class
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from webhook_ingest.room import Place, Room
from webhook_ingest.settings import Settings

ACK_TIMEOUT_SECONDS = 4.0
# Meta asks for an answer within 250 ms. Each batch takes Kafka a flush, a millisecond of CPU, and whoever reads it a
# transaction: where many come, they may wait three times as long for company, until there are enough of them.
GATHERED_SECONDS, WAITED_SECONDS = 0.05, 0.1
MANY, ENOUGH, TIMES_LONGER = 16, 250, 3
RETRY_AFTER_SECONDS = 5
# Deliveries inside at once, coming or waiting for Kafka. At 3,000/s a thousand is a third of a second: whoever comes
# on top would wait longer than Meta likes, and is better told to come again.
INSIDE_MAX = 1_000
INSIDE_BYTES_MAX = 192 * 1024 * 1024
# What a body in chunks, which announces nothing, is taken for until more of it has come.
CHUNKED_BYTES = 64 * 1024
REFUSED_PER_SECOND = 10
REFUSED_BYTES_KEPT = 2048
CHALLENGE_LENGTH_MAX = 1024
HEADER_LENGTH_MAX = 256

META_PATH, SHOPIFY_PATH = "/webhooks/meta", "/webhooks/shopify/"
_META_TARGET = META_PATH.encode()
# By the header's name, under what it stands on the record. Shopify signs none of them.
SHOPIFY_HEADERS: Mapping[bytes, str] = {
    b"x-shopify-topic": "shopify_topic",
    b"x-shopify-shop-domain": "shopify_shop",
    b"x-shopify-event-id": "shopify_event_id",
    b"x-shopify-webhook-id": "shopify_webhook_id",
    b"x-shopify-triggered-at": "shopify_triggered_at",
}
_SIGNATURES = {"meta": b"x-hub-signature-256", "shopify": b"x-shopify-hmac-sha256"}
_FRAMING = (b"content-length", b"content-encoding", b"transfer-encoding")
_USUAL = {b"content-length", _SIGNATURES["meta"]}
_READ = frozenset({*_FRAMING, *_SIGNATURES.values(), *SHOPIFY_HEADERS})
# Compared where a workspace is unknown, so that the answer takes as long as a wrong signature's.
_NOBODYS_SECRET = (b"no workspace has this secret",)

_NOT_KEPT = (PublishError, KafkaError, TimeoutError, OSError)

log = structlog.get_logger("sendwhy")


def meta_signer(secrets: Secrets, body: bytes, given: bytes) -> str | None:
    """The app whose secret made X-Hub-Signature-256 over exactly these bytes. All secrets are always compared."""
    found = None
    for app_id, secret in _pairs(secrets):
        expected = b"sha256=" + hmac.digest(secret, body, "sha256").hex().encode()
        if hmac.compare_digest(expected, given):
            found = app_id
    return found


def shopify_is_signed(secrets: Iterable[bytes], body: bytes, given: bytes) -> bool:
    """Whether one of the workspace's secrets made X-Shopify-Hmac-Sha256."""
    matches = [hmac.compare_digest(base64.b64encode(hmac.digest(secret, body, "sha256")), given) for secret in secrets]
    return any(matches)


def _pairs(secrets: Secrets) -> Iterator[tuple[str, bytes]]:
    return ((owner, secret) for owner, several in secrets.items() for secret in several)


@value_class
class Post:
    """A delivery without its body: the headers that matter here, and which of them came more than once."""

    source: Literal["meta", "shopify"]
    workspace: str
    headers: Mapping[bytes, bytes]
    repeated: frozenset[bytes]

    @property
    def signature(self) -> bytes:
        name = _SIGNATURES[self.source]
        return b"" if name in self.repeated else self.headers.get(name, b"")

    @property
    def why_unsigned(self) -> bytes:
        name = _SIGNATURES[self.source]
        if name in self.repeated:
            return b"signature is repeated"
        return b"signature is wrong" if name in self.headers else b"signature is missing"


def post_of(source: Literal["meta", "shopify"], workspace: str, headers: Iterable[tuple[bytes, bytes]]) -> Post:
    read: dict[bytes, bytes] = {}
    repeated: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name in _READ:
            if name in read:
                repeated |= {name}
            read[name] = value
    return Post(source, workspace, read, repeated)


class Refused(Exception):
    """A delivery that isn't answered with 200; `result` counts it, `early`: its body has not been read."""

    def __init__(self, response: Response, result: str, *, early: bool = False) -> None:
        super().__init__(result)
        self.response, self.result, self.early = response, result, early


def announced(post: Post) -> int | None:
    """The bytes that the body will have; None where it comes in chunks. Raises Refused where it won't be taken."""
    if twice := sorted(name for name in post.repeated if name in _FRAMING or name in SHOPIFY_HEADERS):
        raise _refused(400, f"The header {twice[0].decode()} is there more than once.", "malformed")
    if post.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        # The signature is over the bytes as they come; neither Meta nor Shopify packs them.
        raise _refused(415, "A webhook's body comes as it was signed: without Content-Encoding.", "encoded")
    if post.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        raise _refused(400, "The only Transfer-Encoding taken here is chunked.", "malformed")
    given = post.headers.get(b"content-length")
    if given is None:
        return None if b"transfer-encoding" in post.headers else 0
    if not given.isdigit() or int(given) > MAX_WEBHOOK_BYTES:
        raise _too_large()
    return int(given)


def _refused(status: int, detail: str, result: str) -> Refused:
    return Refused(problem_response(status, detail, headers={"connection": "close"}), result, early=True)


def _too_large() -> Refused:
    return _refused(413, f"The body is longer than {MAX_WEBHOOK_BYTES} bytes.", "too_large")


def _busy(detail: str, **more: str) -> Response:
    return problem_response(503, detail, headers={"retry-after": str(RETRY_AFTER_SECONDS), **more})


_TAKEN = Response()
_UNSIGNED = Response(status_code=401)
_CUT = Response(status_code=400, headers={"connection": "close"})
_FULL = _busy("More webhooks wait here than this process holds. Send it again.")
_AWAY = _busy("Kafka didn't take the webhook in time. Send it again.")
_ENDING = _busy("The process ends. Send it again.", connection="close")
_SLOW = _busy("The body came slowly, and others waited. Send it again.", connection="close")


class Publish(Protocol):
    """Returns once Kafka has all records; raises PublishError (`Producer.publish`)."""

    async def __call__(self, records: Sequence[Outgoing], *, timeout_seconds: float) -> None: ...


Told = Callable[[Exception | None], None]


class Gathering:
    """What comes within GATHERED_SECONDS, or three times that where it is many, goes to Kafka as one batch, which it
    flushes to disk once. While it has not taken the one before, the next one goes on growing, for WAITED_SECONDS at
    most: what is stuck holds up nobody else.
    """

    def __init__(
        self,
        publish: Publish,
        gathered_seconds: float = GATHERED_SECONDS,
        waited_seconds: float = WAITED_SECONDS,
    ) -> None:
        self._publish = publish
        self._gathered_seconds, self._waited_seconds = gathered_seconds, waited_seconds
        self._records: list[Outgoing] = []
        self._told: list[Told] = []
        self._last: asyncio.Task[None] | None = None

    def keep(self, record: Outgoing, told: Told) -> None:
        """`told` is called once Kafka has it, or with what publishing raised for all that were gathered."""
        if not self._records:
            self._last = asyncio.create_task(self._publish_gathered(self._last))
        self._records.append(record)
        self._told.append(told)

    async def _publish_gathered(self, before: asyncio.Task[None] | None) -> None:
        for _ in range(TIMES_LONGER):
            await asyncio.sleep(self._gathered_seconds)
            if not MANY <= len(self._records) < ENOUGH:
                break
        if before is not None and not before.done():
            await asyncio.wait([before], timeout=self._waited_seconds)
        records, waiting = self._records, self._told
        self._records, self._told = [], []
        failed = None
        try:
            await self._publish(records, timeout_seconds=ACK_TIMEOUT_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are to know
            failed = error
        for told in waiting:
            told(failed)


class Door:
    """ASGI: answers webhook requests, and hands all others on to `app`."""

    def __init__(
        self, app: ASGIApp, publish: Publish, metrics: Metrics, settings: Settings, room: Room | None = None
    ) -> None:
        self._app, self._publish, self._gathering = app, publish, Gathering(publish)
        self._counter = lru_cache(
            lambda source, result: metrics.bound(Metric.WEBHOOK_DELIVERIES, source=source, result=result)
        )
        self._seconds = {source: metrics.bound(Metric.WEBHOOK_ACK_SECONDS, source=source) for source in _SIGNATURES}
        self._app_secrets = settings.app_secrets
        self._shopify_secrets = settings.shopify_secrets
        self._verify_token = settings.meta_verify_token.get_secret_value().encode()
        self._room = room or Room(INSIDE_MAX, INSIDE_BYTES_MAX)
        self._refused = Budget(REFUSED_PER_SECOND)
        self._logged = Budget(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"] if scope["type"] == "http" else ""
        workspace = path.removeprefix(SHOPIFY_PATH)
        if path == META_PATH:
            await self._open(post_of("meta", "", scope["headers"]), scope, receive, send)
        elif workspace != path and "/" not in workspace:
            await self._open(post_of("shopify", workspace, scope["headers"]), scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def at_once(
        self, method: bytes, target: bytes, headers: HeaderList, body: bytes, answer: Callable[[Response], None]
    ) -> bool:
        """Take a webhook of Meta's that is signed and came whole, as nearly all do (`sendwhy.http.AtOnce`)."""
        if target != _META_TARGET or method != b"POST":
            return False
        started = time.monotonic()
        post = post_of("meta", "", headers)
        if post.repeated or post.headers.keys() != _USUAL:
            return False
        signed = self._signed_meta(post, body)
        if signed is None or not self._room.admit(len(body), started):
            return False

        def told(error: Exception | None) -> None:
            self._room.release(len(body))
            if error is None:
                result, response = "received", _TAKEN
            else:
                result, response = "unavailable", _AWAY
                self._log_not_kept(error)
            self._count(post.source, result, started)
            answer(response)

        self._gathering.keep(_record_of(body, signed), told)
        return True

    def _count(self, source: str, result: str, started: float) -> None:
        """The time of a 200 alone: how long somebody's unsigned body took to come or to break off is not ours."""
        self._counter(source, result).inc()
        if result == "received":
            self._seconds[source].observe(time.monotonic() - started)

    async def _open(self, post: Post, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await self._answer(post, scope, receive, send)
        elif scope["method"] == "GET" and post.source == "meta":
            await self._verify(scope["query_string"])(scope, receive, send)
        else:
            allowed = {"allow": "GET, POST" if post.source == "meta" else "POST", "connection": "close"}
            response = problem_response(405, f"{allowed['allow']} only.", headers=allowed)
            await answer_early(response, scope, receive, send)

    def _verify(self, query: bytes) -> Response:
        asked = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        token = asked.get("hub.verify_token", "").encode("utf-8", "replace")
        is_right = hmac.compare_digest(token, self._verify_token)
        challenge = asked.get("hub.challenge", "")
        if not is_right or asked.get("hub.mode") != "subscribe" or len(challenge) > CHALLENGE_LENGTH_MAX:
            return Response(status_code=403)
        return Response(challenge, media_type="text/plain", headers={"x-content-type-options": "nosniff"})

    async def _answer(self, post: Post, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        result, response, early = "received", _TAKEN, False
        try:
            await self._take(post, receive)
        except Refused as refused:
            result, response, early = refused.result, refused.response, refused.early
        except asyncio.CancelledError:
            # The process ends and has waited as long as it may; uvicorn would answer 500.
            result, response = "unavailable", _ENDING
        self._count(post.source, result, started)
        if early:
            await answer_early(response, scope, receive, send)
        else:
            await response(scope, receive, send)

    async def _take(self, post: Post, receive: Receive) -> None:
        """Returns once Kafka has the delivery. Raises Refused."""
        size = announced(post)
        try:
            async with asyncio.timeout(None) as patience:
                place = self._room.enter(
                    CHUNKED_BYTES if size is None else size, time.monotonic(), lambda: patience.reschedule(0)
                )
                if place is None:
                    raise Refused(_FULL, "overloaded")
                try:
                    body = await self._read(place, receive, grows=size is None)
                except BaseException:
                    self._room.leave(place)
                    raise
        except TimeoutError:
            raise Refused(_SLOW, "overloaded") from None
        try:
            await self._keep(body, self._signed(post, body))
        finally:
            self._room.leave(place)

    async def _read(self, place: Place, receive: Receive, *, grows: bool) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(_CUT, "cut")
            parts.append(message["body"])
            size += len(message["body"])
            if size > MAX_WEBHOOK_BYTES:
                raise _too_large()
            more = message["more_body"]
            if more and grows and not self._room.grow(place, size + CHUNKED_BYTES, time.monotonic()):
                raise Refused(_SLOW, "overloaded")
        self._room.arrived(place, size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _signed(self, post: Post, body: bytes) -> Headers:
        headers = self._signed_meta(post, body) if post.source == "meta" else self._signed_shopify(post, body)
        if headers is None:
            self._record_refusal(post, body)
            raise Refused(_UNSIGNED, "refused")
        return headers

    def _signed_meta(self, post: Post, body: bytes) -> Headers | None:
        app_id = meta_signer(self._app_secrets, body, post.signature)
        return None if app_id is None else (("source", b"meta"), ("app_id", app_id.encode()))

    def _signed_shopify(self, post: Post, body: bytes) -> Headers | None:
        known = self._shopify_secrets.get(post.workspace)
        is_right = shopify_is_signed(known or _NOBODYS_SECRET, body, post.signature)
        if known is None or not is_right:
            return None
        told = tuple(
            (key, post.headers[name][:HEADER_LENGTH_MAX])
            for name, key in SHOPIFY_HEADERS.items()
            if name in post.headers
        )
        return (("source", b"shopify"), ("workspace_id", post.workspace.encode()), *told)

    async def _keep(self, body: bytes, signed: Headers) -> None:
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gathering.keep(_record_of(body, signed), partial(_resolve, kept))
        try:
            await kept
        except _NOT_KEPT as error:
            self._log_not_kept(error)
            raise Refused(_AWAY, "unavailable") from error

    def _log_not_kept(self, error: Exception) -> None:
        unlogged = self._logged.take(time.monotonic())
        if unlogged is not None:
            what = "webhooks were not kept, their senders repeat them"
            log.warning(what, count=unlogged + 1, error=describe(error))

    def _record_refusal(self, post: Post, body: bytes) -> None:
        """Put a trace of the refused delivery on webhook.refused, without making the answer wait."""
        unrecorded = self._refused.take(time.monotonic())
        if unrecorded is None:
            return
        digest = hashlib.sha256(body).hexdigest().encode()
        headers: Headers = (
            ("source", post.source.encode()),
            ("cause", post.why_unsigned),
            ("size", str(len(body)).encode()),
            ("digest", digest),
            ("received_at", datetime.now(UTC).isoformat().encode()),
            ("unrecorded_before", str(unrecorded).encode()),
        )
        record = Outgoing(Topic.WEBHOOK_REFUSED, digest, body[:REFUSED_BYTES_KEPT], headers)
        task = asyncio.create_task(self._record(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _record(self, record: Outgoing) -> None:
        try:
            await self._publish([record], timeout_seconds=ACK_TIMEOUT_SECONDS)
        except _NOT_KEPT as error:
            log.warning("a refused webhook was not recorded", error=describe(error))


def _record_of(body: bytes, signed: Headers) -> Outgoing:
    digest = hashlib.sha256(body).hexdigest().encode()
    headers = (
        *signed,
        ("received_at", datetime.now(UTC).isoformat().encode()),
        ("delivery_id", digest),
        ("content-type", b"application/json"),
    )
    return Outgoing(Topic.WEBHOOK_RECEIVED, digest, body, headers, anywhere=True)


def _resolve(kept: "asyncio.Future[None]", error: Exception | None) -> None:
    if kept.done():
        # Whoever waited for it is gone.
        return
    if error is None:
        kept.set_result(None)
    else:
        kept.set_exception(error)


class Budget:
    """So many a second; the rest is counted and told with the next one."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second, self._used, self._over = 0, 0, 0

    def take(self, now: float) -> int | None:
        """How many were turned away since the last one that passed, or None to be turned away."""
        second = int(now)
        if second != self._second:
            self._second, self._used = second, 0
        if self._used >= self._per_second:
            self._over += 1
            return None
        self._used += 1
        over, self._over = self._over, 0
        return over
