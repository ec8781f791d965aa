"""Posting webhooks as Meta does: signed, concurrent, repeated until answered 200 or seven days old."""

import asyncio
import dataclasses
import hashlib
import hmac
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from meta_simulator.clock import Clock
from meta_simulator.poster import Poster

POSTS_AT_ONCE = 64
FIRST_GAP = 1.0
LONGEST_GAP = 3600.0
GIVE_UP_AFTER = 7 * 86_400.0
# Updates are gathered for so long where they may share a POST, and fill it up to Meta's 3 MB.
BATCH_SECONDS = 0.1
BATCH_BYTES = 3_000_000

Signature = Literal["right", "wrong", "missing"]


@dataclass(slots=True)
class Webhook:
    """One update, alone or with others in a POST. `entry` is its part of a POST (None: `body` is bytes of one's own).

    `tries`: unix time, the receiver's HTTP status (None without an answer) and the SHA-256 of the POST's body. `secret`
    signs instead of the app's (an old one, say). `is_json` None: nobody looked. Of the first `lost` tries the answers
    get lost on their way.
    """

    entry: bytes | None
    field: str
    status: str | None = None
    callback_data: str | None = None
    own_body: bytes = b""
    signature: Signature = "right"
    secret: str | None = None
    url: str | None = None
    is_json: bool | None = True
    lost: float = 0
    once: bool = False
    batch: int = 1
    at: float = dataclasses.field(default_factory=time.time)
    tries: list[tuple[float, int | None, str]] = dataclasses.field(default_factory=list)
    delivered: bool = False

    @property
    def body(self) -> bytes:
        return self.own_body if self.entry is None else body_of(self.entry)

    @property
    def may_share(self) -> bool:
        return self.entry is not None and self.signature == "right" and self.secret is None and not self.lost


def body_of(*entries: bytes) -> bytes:
    return b'{"object":"whatsapp_business_account","entry":[' + b",".join(entries) + b"]}"


def sign(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.digest(secret.encode(), body, hashlib.sha256).hex()


def gap_after(tries: int) -> float:
    """Simulated seconds until the next try: 1, 2, 4, ... up to an hour."""
    return float(min(FIRST_GAP * 2.0 ** min(tries - 1, 30), LONGEST_GAP))


@dataclass(slots=True)
class Post:
    """The updates of one POST, which is repeated whole."""

    webhooks: list[Webhook]
    body: bytes
    sha256: str = ""
    tries: int = 0
    first_try: float = 0.0


class Outbox:
    """The webhooks of one number on their way, at most 64 posts at a time, each with up to `batch` updates.

    `url` and `secret` are those of the moment of each try: a receiver that moved gets the retries.
    """

    def __init__(self, poster: Poster, clock: Clock, batch: int) -> None:
        self.url: str | None = None
        self.secret = ""
        self.batch = batch
        self._poster = poster
        self._clock = clock
        self._waiting: deque[Webhook] = deque()
        self._again: deque[Post] = deque()
        self._posting: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.TimerHandle | None = None

    def put(self, webhook: Webhook) -> None:
        self._waiting.append(webhook)
        if self.batch == 1:
            self._start()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        for _ in range(math.ceil(len(self._waiting) / self.batch)):
            self._start()

    def _put_again(self, post: Post) -> None:
        self._again.append(post)
        self._start()

    def _start(self) -> None:
        if len(self._posting) < POSTS_AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._post_waiting())
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)

    async def _post_waiting(self) -> None:
        while True:
            if self._again:
                await self._try(self._again.popleft())
            elif self._waiting:
                await self._try(self._next())
            else:
                return

    def _next(self) -> Post:
        first = self._waiting.popleft()
        if self.batch == 1 or not first.may_share:
            return Post([first], first.body)
        webhooks, size = [first], len(first.entry or b"")
        while self._waiting and len(webhooks) < self.batch and self._waiting[0].may_share:
            size += len(self._waiting[0].entry or b"") + 1
            if size > BATCH_BYTES:
                break
            webhooks.append(self._waiting.popleft())
        for webhook in webhooks:
            webhook.batch = len(webhooks)
        return Post(webhooks, body_of(*(each.entry or b"" for each in webhooks)))

    async def post(self, webhook: Webhook) -> int | None:
        """The first try, without a wait for others; the HTTP status."""
        await self._try(Post([webhook], webhook.body))
        return webhook.tries[-1][1] if webhook.tries else None

    async def _try(self, post: Post) -> None:
        """One try, and the next one planned if it fails."""
        if self.url is None:
            return
        if not post.tries:
            post.first_try = self._clock.now()
            post.sha256 = hashlib.sha256(post.body).hexdigest()
        post.tries += 1
        first = post.webhooks[0]
        answer = await self._poster.post(self.url, post.body, self._signature(first, post.body))
        http_status = answer.http_status if answer and post.tries > first.lost else None
        done = (time.time(), http_status, post.sha256)
        for webhook in post.webhooks:
            webhook.url = self.url
            webhook.tries.append(done)
            webhook.delivered |= http_status == 200
        if http_status != 200 and not first.once and self._clock.now() - post.first_try < GIVE_UP_AFTER:
            self._clock.later(gap_after(post.tries), self._put_again, post)

    def _signature(self, webhook: Webhook, body: bytes) -> str | None:
        if webhook.signature == "missing":
            return None
        secret = webhook.secret if webhook.secret is not None else self.secret
        return sign(body, secret if webhook.signature == "right" else f"not {secret}")
