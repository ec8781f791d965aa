"""A Meta that costs next to nothing, to measure beside: takes sends, answers after `--latency`, posts three statuses.

    python tests/bench/lean_meta.py --latency 50

It knows one account and any number of it, believes every token, limits and refuses nothing: the simulator judges, this
one only counts. What it posts has the shape of Meta's samples (as the simulator's), is signed, and is
repeated until it is answered 200. For each message, whose id ends in a number, it keeps when the call came, when each
status was posted, and when that was answered: GET /_books tells (unix seconds), POST /_target says where webhooks go.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import uvloop
from posts import Posts, post_request

WABA, PORTFOLIO, APP, TOKEN = "200000000000777", "300000000000777", "400000000000001", "bench-token"
TEMPLATE, LANGUAGE = "autumn_sale", "es_MX"
STATUSES = (b"sent", b"delivered", b"read")
# After the answer, as the simulator's.
DELAYS = (0.1, 0.3, 0.6)
# Between two looks at what is due, where something is and where nothing is: less than any of these.
TICK_SECONDS, IDLE_SECONDS, BATCH_SECONDS, AGAIN_SECONDS = 0.01, 0.05, 0.1, 1.0
CALLBACK = re.compile(rb'"biz_opaque_callback_data":\s*"([^"]*?(\d+))"')
TO = re.compile(rb'"to":\s*"\+?(\d+)"')
SENDER = re.compile(rb"/(\d+)/messages")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# As the simulator's `delivered` and `read`, and as json.dumps with Meta's separators writes them.
_PRICED = b',"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"marketing"}'
_ENTRY = (
    b'{"id":"%b","changes":[{"value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550100777",'
    b'"phone_number_id":"%b"},"statuses":[{"id":"%b","status":"%b","timestamp":"%d","recipient_id":"%b",'
    b'"biz_opaque_callback_data":"%b"%b}]},"field":"messages"}]}'
)
_ANSWER = (
    b'{"messaging_product":"whatsapp","contacts":[{"input":"+%b","wa_id":"%b"}],'
    b'"messages":[{"id":"%b","message_status":"accepted"}]}'
)


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was taken."""

    number: int
    sender: bytes
    to: bytes
    callback: bytes
    wamid: bytes


class Books:
    """By message number, unix seconds, 0.0 where nothing happened. `posted` and `answered` have three each."""

    def __init__(self) -> None:
        self.called, self.posted, self.answered = array("d"), array("d"), array("d")
        self.answer_seconds = array("d")
        self.calls = self.doubled = self.refused = 0

    def call(self, number: int) -> None:
        if number >= len(self.called):
            more = max(10_000, number - len(self.called) + 1)
            self.called.extend([0.0] * more)
            self.posted.extend([0.0] * (3 * more))
            self.answered.extend([0.0] * (3 * more))
        self.calls += 1
        self.doubled += self.called[number] > 0
        self.called[number] = time.time()

    def part(self, first: int, end: int, posts: int) -> dict[str, Any]:
        """Of the messages from first to end, and the webhooks after so many."""
        return {
            "calls": self.calls,
            "doubled": self.doubled,
            "webhooks": len(self.answer_seconds),
            "refused": self.refused,
            "called": self.called[first:end].tolist(),
            "posted": self.posted[3 * first : 3 * end].tolist(),
            "answered": self.answered[3 * first : 3 * end].tolist(),
            "answer_seconds": self.answer_seconds[posts:].tolist(),
        }


class Meta:
    """Sends come in by `take`; their statuses go out by a clock that ticks, in the order in which they are due."""

    def __init__(self, latency: float, batch: int) -> None:
        self.latency, self.batch, self.books = latency, batch, Books()
        self._due: list[deque[tuple[float, Sent]]] = [deque() for _ in STATUSES]
        self._gathered: list[tuple[int, bytes]] = []
        self._gathering_since = 0.0
        self._posts: Posts | None = None
        self._path, self._host, self._secret = "/", "", b""
        self._requests: dict[int, tuple[bytes, list[int]]] = {}
        self._again: deque[tuple[float, int]] = deque()
        self._post = 0

    def target(self, url: str, secret: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._path, self._host, self._secret = parts.path, parts.netloc, secret.encode()
        self._posts = Posts(parts.hostname, parts.port, self._told)

    def take(self, path: bytes, body: bytes) -> bytes:
        """The answer's body."""
        to, sender = TO.search(body), SENDER.search(path)
        callback = CALLBACK.search(body)
        phone = to[1] if to else b"0"
        number = int(callback[2]) if callback else 0
        wamid = b"wamid." + base64.b64encode(b"%b-%010d" % (phone, number), b"+-")
        if callback and sender:
            self.books.call(number)
            answered = asyncio.get_running_loop().time() + self.latency
            sent = Sent(number, sender[1], phone, callback[1], wamid)
            for queue, delay in zip(self._due, DELAYS, strict=True):
                queue.append((answered + delay, sent))
        return _ANSWER % (phone, phone, wamid)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            is_idle = not (any(self._due) or self._gathered or self._again)
            await asyncio.sleep(IDLE_SECONDS if is_idle else TICK_SECONDS)
            now = loop.time()
            for place, queue in enumerate(self._due):
                while queue and queue[0][0] <= now:
                    self._tell(place, queue.popleft()[1], now)
            if self._gathered and now - self._gathering_since >= BATCH_SECONDS:
                self._send_gathered()
            while self._again and self._again[0][0] <= now:
                self._offer(self._again.popleft()[1])

    def _tell(self, place: int, sent: Sent, now: float) -> None:
        if not self._gathered:
            self._gathering_since = now
        entry = webhook(sent.sender, sent.wamid, STATUSES[place], sent.to, sent.callback)
        self._gathered.append((3 * sent.number + place, entry))
        if len(self._gathered) >= self.batch:
            self._send_gathered()

    def _send_gathered(self) -> None:
        places = [place for place, _ in self._gathered]
        body = body_of([entry for _, entry in self._gathered])
        self._gathered = []
        signature = hmac.digest(self._secret, body, hashlib.sha256).hex()
        self._post += 1
        self._requests[self._post] = (post_request(self._path, self._host, body, signature), places)
        posted = time.time()
        for place in places:
            self.books.posted[place] = posted
        self._offer(self._post)

    def _offer(self, post: int) -> None:
        assert self._posts is not None, "POST /_target comes first"
        self._posts.offer(post, self._requests[post][0])

    def _told(self, post: int, status: int) -> None:
        if status != 200:
            self.books.refused += 1
            self._again.append((asyncio.get_running_loop().time() + AGAIN_SECONDS, post))
            return
        _, places = self._requests.pop(post)
        answered = time.time()
        self.books.answer_seconds.append(answered - self.books.posted[places[0]])
        for place in places:
            self.books.answered[place] = answered


def webhook(sender: bytes, wamid: bytes, status: bytes, to: bytes, callback: bytes) -> bytes:
    """An entry of a webhook with one status."""
    priced = b"" if status == b"read" else _PRICED
    return _ENTRY % (WABA.encode(), sender, wamid, status, int(time.time()), to, callback, priced)


def body_of(entries: list[bytes]) -> bytes:
    return b'{"object":"whatsapp_business_account","entry":[' + b",".join(entries) + b"]}"


class Connection(asyncio.Protocol):
    def __init__(self, meta: Meta) -> None:
        self._meta, self._received = meta, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._received, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < whole:
                return
            head, body = self._received[:end], self._received[end + 4 : whole]
            self._received = self._received[whole:]
            self._take(head, body)

    def _take(self, head: bytes, body: bytes) -> None:
        method, target, _ = head[: head.find(b"\r\n")].split(b" ", 2)
        if method == b"POST" and b"/messages" in target:
            answer = _http(self._meta.take(target, body))
            if self._meta.latency:
                asyncio.get_running_loop().call_later(self._meta.latency, self._transport.write, answer)
                return
        else:
            answer = _http(json.dumps(other(self._meta, method, target.decode(), body)).encode())
        self._transport.write(answer)


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def other(meta: Meta, method: bytes, target: str, body: bytes) -> dict[str, Any]:
    """What is rare: how a sender's state is read, and the controls."""
    parts = urlsplit(target)
    asked = parse_qs(parts.query)
    name = parts.path.rpartition("/")[2]
    if method == b"POST":
        told = json.loads(body)
        meta.target(told["url"], told["secret"])
        return {}
    if name == "_books":
        return meta.books.part(*(int(asked[key][0]) for key in ("first", "end", "posts")))
    if name == "message_templates":
        return {"data": [_template()]}
    if name == "subscribed_apps":
        return {"data": [{"whatsapp_business_api_data": {"id": APP, "name": "bench", "link": ""}}]}
    if name == WABA:
        return {"id": WABA, "owner_business_info": {"id": PORTFOLIO, "name": "bench"}}
    return {
        "id": name,
        "display_phone_number": "+1 555 010 0777",
        "quality_rating": "GREEN",
        "throughput": {"level": "HIGH"},
        "whatsapp_business_manager_messaging_limit": "TIER_UNLIMITED",
    }


def _template() -> dict[str, Any]:
    return {
        "id": "7000000000000001",
        "name": TEMPLATE,
        "language": LANGUAGE,
        "status": "APPROVED",
        "category": "MARKETING",
        "parameter_format": "POSITIONAL",
        "quality_score": {"score": "GREEN"},
        "rejected_reason": "NONE",
        "components": [{"type": "BODY", "text": "Hola {{1}}", "example": {"body_text": [["Inés"]]}}],
    }


async def main(port: int, latency_ms: float, batch: int) -> None:
    meta = Meta(latency_ms / 1000, batch)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(meta), "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await meta.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds until a send is answered (50)")
    parser.add_argument("--batch", type=int, default=1, help="statuses in a POST at most (1), gathered for 0.1 s")
    given = parser.parse_args()
    uvloop.run(main(given.port, given.latency, given.batch))
