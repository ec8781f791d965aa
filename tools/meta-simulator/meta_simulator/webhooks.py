"""Posting webhooks as Meta does: signed, concurrent, repeated until answered 200 or seven days old."""

import asyncio
import dataclasses
import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Self

import aiohttp

from meta_simulator.clock import Clock

POSTS_AT_ONCE = 64
POST_TIMEOUT = 20.0
ANSWER_READ = 65_536
FIRST_GAP = 1.0
LONGEST_GAP = 3600.0
GIVE_UP_AFTER = 7 * 86_400.0
USER_AGENT = "facebookexternalua"

_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


Signature = Literal["right", "wrong", "missing"]


@dataclass(slots=True)
class Webhook:
    """One delivery. `tries`: unix time and the receiver's HTTP status, None without an answer.
    `secret` signs instead of the app's (an old one, say). `is_json` None: nobody looked."""

    body: bytes
    field: str
    status: str | None = None
    callback_data: str | None = None
    signature: Signature = "right"
    secret: str | None = None
    url: str | None = None
    is_json: bool | None = True
    at: float = dataclasses.field(default_factory=time.time)
    first_try: float = 0.0
    tries: list[tuple[float, int | None]] = dataclasses.field(default_factory=list)
    delivered: bool = False


def sign(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def gap_after(tries: int) -> float:
    """Simulated seconds until the next try: 1, 2, 4, ... up to an hour."""
    return float(min(FIRST_GAP * 2.0 ** min(tries - 1, 30), LONGEST_GAP))


class Receivers:
    """The connections to whoever receives webhooks. (aiohttp itself: httpx costs 2.5 times the CPU a post.)"""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=512, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=POST_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int | None:
        """The HTTP status, None where there was no answer."""
        answer = await self._ask("POST", url, data=body, headers=headers)
        return answer[0] if answer else None

    async def get(self, url: str, params: dict[str, str]) -> tuple[int, str] | None:
        return await self._ask("GET", url, params=params)

    async def _ask(self, method: str, url: str, **how: Any) -> tuple[int, str] | None:
        if self._session is None:
            return None
        try:
            async with self._session.request(method, url, allow_redirects=False, **how) as response:
                body = await response.content.read(ANSWER_READ)
                return response.status, body.decode(errors="replace")
        except _NO_ANSWER:
            return None


class Outbox:
    """The webhooks of one number on their way, at most 64 at a time.

    `url` and `secret` are those of the moment of each try: a receiver that moved gets the retries.
    """

    def __init__(self, receivers: Receivers, clock: Clock) -> None:
        self.url: str | None = None
        self.secret = ""
        self._receivers = receivers
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
        return await self._receivers.post(url, webhook.body, headers)
