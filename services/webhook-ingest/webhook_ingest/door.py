"""The door that Meta and Shopify knock at: raw bytes in, signature, Kafka, 200. Nothing is parsed here.

Plain Starlette routes: at three webhooks a message the door is the busiest place of all.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import structlog
from aiokafka.errors import KafkaError
from sendwhy.kafka import PublishError
from sendwhy.logs import describe
from sendwhy.metrics import Metric
from sendwhy.service import Runtime
from sendwhy.settings import Secrets
from sendwhy.topics import Headers, Outgoing, Topic
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from webhook_ingest.settings import Settings

ACK_TIMEOUT_SECONDS = 4.0
# Bodies that wait for Kafka at once; beyond it the answer is 503 before the body is read.
HELD_BYTES_MAX = 256 * 1024 * 1024
REFUSED_PER_SECOND = 10
REFUSED_BYTES_KEPT = 2048
CHALLENGE_LENGTH_MAX = 1024
HEADER_LENGTH_MAX = 256
NOSNIFF = {"x-content-type-options": "nosniff"}
# Compared where a workspace is unknown, so that the answer takes as long as a wrong signature's.
_NOBODYS_SECRET = (b"no workspace has this secret",)

log = structlog.get_logger("sendwhy")


def meta_signer(secrets: Secrets, body: bytes, given: str | None) -> str | None:
    """The app whose secret made X-Hub-Signature-256 over exactly these bytes. All secrets are always compared."""
    signature = (given or "").encode("latin-1", "replace")
    found = None
    for app_id, secret in _pairs(secrets):
        expected = b"sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
        if hmac.compare_digest(expected, signature):
            found = app_id
    return found


def shopify_is_signed(secrets: Iterable[bytes], body: bytes, given: str | None) -> bool:
    """Whether one of the workspace's secrets made X-Shopify-Hmac-Sha256."""
    signature = (given or "").encode("latin-1", "replace")
    matches = [
        hmac.compare_digest(base64.b64encode(hmac.new(secret, body, hashlib.sha256).digest()), signature)
        for secret in secrets
    ]
    return any(matches)


def _pairs(secrets: Secrets) -> Iterator[tuple[str, bytes]]:
    return ((owner, secret) for owner, several in secrets.items() for secret in several)


class Door:
    """Answers webhook requests; `held_bytes` of bodies wait for Kafka right now."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._app_secrets = settings.app_secrets
        self._shopify_secrets = settings.shopify_secrets
        self._verify_token = settings.meta_verify_token.get_secret_value().encode()
        self._held_bytes = 0
        self._refused = _Budget(REFUSED_PER_SECOND)
        self._tasks: set[asyncio.Task[None]] = set()

    async def meta(self, request: Request) -> Response:
        return await self._receive(request, "meta") if request.method == "POST" else self._verify(request)

    async def shopify(self, request: Request) -> Response:
        return await self._receive(request, "shopify")

    def _verify(self, request: Request) -> Response:
        asked = request.query_params
        token = asked.get("hub.verify_token", "").encode("utf-8", "replace")
        is_right = hmac.compare_digest(token, self._verify_token)
        challenge = asked.get("hub.challenge", "")
        if not is_right or asked.get("hub.mode") != "subscribe" or len(challenge) > CHALLENGE_LENGTH_MAX:
            return Response(status_code=403)
        return Response(challenge, media_type="text/plain", headers=NOSNIFF)

    async def _receive(self, request: Request, source: str) -> Response:
        started = time.monotonic()
        status, result = await self._take(request, source)
        self._runtime.metrics.inc(Metric.WEBHOOK_DELIVERIES, source=source, result=result)
        self._runtime.metrics.observe(Metric.WEBHOOK_ACK_SECONDS, time.monotonic() - started, source=source)
        headers = {"retry-after": "5"} if status == 503 else None
        return Response(status_code=status, headers=headers)

    async def _take(self, request: Request, source: str) -> tuple[int, str]:
        if self._held_bytes >= HELD_BYTES_MAX:
            return 503, "overloaded"
        try:
            body = await request.body()
        except ClientDisconnect:
            return 400, "cut"
        with self._holding(len(body)):
            headers = self._signed_meta(request, body) if source == "meta" else self._signed_shopify(request, body)
            if headers is None:
                self._refuse(request, body, source)
                return 401, "refused"
            return await self._keep(body, (("source", source.encode()), *headers))

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        self._held_bytes += size
        try:
            yield
        finally:
            self._held_bytes -= size

    def _signed_meta(self, request: Request, body: bytes) -> Headers | None:
        app_id = meta_signer(self._app_secrets, body, request.headers.get("x-hub-signature-256"))
        return None if app_id is None else (("app_id", app_id.encode()),)

    def _signed_shopify(self, request: Request, body: bytes) -> Headers | None:
        workspace: str = request.path_params["workspace_id"]
        known = self._shopify_secrets.get(workspace)
        is_right = shopify_is_signed(known or _NOBODYS_SECRET, body, request.headers.get("x-shopify-hmac-sha256"))
        if known is None or not is_right:
            return None
        topic = request.headers.get("x-shopify-topic", "")[:HEADER_LENGTH_MAX]
        return (("workspace_id", workspace.encode()), ("shopify_topic", topic.encode()))

    async def _keep(self, body: bytes, signed: Headers) -> tuple[int, str]:
        digest = hashlib.sha256(body).hexdigest().encode()
        headers = (
            *signed,
            ("received_at", datetime.now(UTC).isoformat().encode()),
            ("delivery_id", digest),
            ("content-type", b"application/json"),
        )
        try:
            await self._runtime.producer.publish(
                [Outgoing(Topic.WEBHOOK_RECEIVED, digest, body, headers)], timeout_seconds=ACK_TIMEOUT_SECONDS
            )
        except (PublishError, KafkaError, TimeoutError, OSError) as error:
            log.warning("a webhook was not kept, its sender repeats it", error=describe(error))
            return 503, "unavailable"
        return 200, "received"

    def _refuse(self, request: Request, body: bytes, source: str) -> None:
        """Put a trace of the refused delivery on webhook.refused, without making the answer wait."""
        unrecorded = self._refused.take()
        if unrecorded is None:
            return
        name = "x-hub-signature-256" if source == "meta" else "x-shopify-hmac-sha256"
        cause = b"signature is wrong" if name in request.headers else b"signature is missing"
        digest = hashlib.sha256(body).hexdigest().encode()
        headers: Headers = (
            ("source", source.encode()),
            ("cause", cause),
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
            await self._runtime.producer.publish([record], timeout_seconds=ACK_TIMEOUT_SECONDS)
        except (PublishError, KafkaError, TimeoutError, OSError) as error:
            log.warning("a refused webhook was not recorded", error=describe(error))


class _Budget:
    """So many a second; the rest is counted and told with the next one."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second, self._used, self._over = 0, 0, 0

    def take(self) -> int | None:
        """How many were turned away since the last one that passed, or None to be turned away."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._used = second, 0
        if self._used >= self._per_second:
            self._over += 1
            return None
        self._used += 1
        over, self._over = self._over, 0
        return over
