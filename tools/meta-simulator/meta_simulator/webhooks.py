"""Posting webhooks as Meta does: signed, concurrent, repeated until answered 200 or seven days old."""

import asyncio
import dataclasses
import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

import httpx
from httpx_aiohttp import AiohttpTransport

from meta_simulator.clock import Clock

POSTS_AT_ONCE = 64
POST_TIMEOUT = 20.0
FIRST_GAP = 1.0
LONGEST_GAP = 3600.0
GIVE_UP_AFTER = 7 * 86_400.0
USER_AGENT = "facebookexternalua"

_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError)


Signature = Literal["right", "wrong", "missing"]


@dataclass(slots=True)
class Webhook:
    """One delivery. `tries`: unix time and the receiver's HTTP status, None without an answer.
    `secret` signs instead of the app's (an old one, say)."""

    body: bytes
    field: str
    status: str | None = None
    callback_data: str | None = None
    signature: Signature = "right"
    secret: str | None = None
    url: str | None = None
    at: float = dataclasses.field(default_factory=time.time)
    first_try: float = 0.0
    tries: list[tuple[float, int | None]] = dataclasses.field(default_factory=list)
    delivered: bool = False


def sign(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def gap_after(tries: int) -> float:
    """Simulated seconds until the next try: 1, 2, 4, ... up to an hour."""
    return float(min(FIRST_GAP * 2.0 ** min(tries - 1, 30), LONGEST_GAP))


class Outbox:
    """The webhooks of one number on their way, at most 64 at a time.

    `url` and `secret` are those of the moment of each try: a receiver that moved gets the retries.
    """

    def __init__(self, client: httpx.AsyncClient, clock: Clock) -> None:
        self.url: str | None = None
        self.secret = ""
        self._client = client
        self._clock = clock
        self._waiting: deque[Webhook] = deque()
        self._posting: set[asyncio.Task[None]] = set()

    def put(self, webhook: Webhook) -> None:
        self._waiting.append(webhook)
        if len(self._posting) < POSTS_AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._post_waiting())
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)

    async def _post_waiting(self) -> None:
        while self._waiting:
            await self.post(self._waiting.popleft())

    async def post(self, webhook: Webhook) -> None:
        """One try, and the next one planned if it fails."""
        if self.url is None:
            return
        if not webhook.tries:
            webhook.first_try = self._clock.now()
        webhook.url = self.url
        http_status = await self._try(self.url, webhook)
        webhook.tries.append((time.time(), http_status))
        webhook.delivered = http_status == 200
        age = self._clock.now() - webhook.first_try
        if not webhook.delivered and age < GIVE_UP_AFTER:
            self._clock.later(gap_after(len(webhook.tries)), self.put, webhook)

    async def _try(self, url: str, webhook: Webhook) -> int | None:
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if webhook.signature != "missing":
            secret = webhook.secret if webhook.secret is not None else self.secret
            headers["X-Hub-Signature-256"] = sign(
                webhook.body, secret if webhook.signature == "right" else f"not {secret}"
            )
        try:
            response = await self._client.post(url, content=webhook.body, headers=headers)
        except _FAILURES:
            return None
        return response.status_code


def webhook_client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=512, keepalive_expiry=2)
    return httpx.AsyncClient(
        transport=AiohttpTransport(limits=limits, trust_env=False), timeout=POST_TIMEOUT, trust_env=False
    )
