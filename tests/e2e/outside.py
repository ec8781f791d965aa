"""A user of Sendwhy who knows contract.md and nothing of its code: any Kafka client, any HTTP client."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

Json = dict[str, Any]
LADDER = ["accepted", "sent", "delivered", "read", "played"]
PATIENCE_SECONDS = 120
TEMPLATES = [
    {
        "name": "autumn_sale",
        "language": "es_MX",
        "status": "APPROVED",
        "category": "MARKETING",
        "parameter_format": "POSITIONAL",
        "components": [{"type": "BODY", "text": "Hola {{1}}"}],
    },
    {
        "name": "order_update",
        "language": "en_US",
        "status": "APPROVED",
        "category": "UTILITY",
        "parameter_format": "POSITIONAL",
        "components": [{"type": "BODY", "text": "Order {{1}} is on its way"}],
    },
]


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.2)


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def template(*texts: str, name: str = "autumn_sale", language: str = "es_MX") -> Json:
    parameters = [{"type": "text", "text": text} for text in texts]
    components = [{"type": "body", "parameters": parameters}] if parameters else []
    return {"type": "template", "template": {"name": name, "language": {"code": language}, "components": components}}


def text(body: str = "Your table is ready.") -> Json:
    return {"type": "text", "text": {"body": body}}


class Outside:
    """The running stack, as its stack.json tells of it, and a workspace of this test's own."""

    def __init__(self, stack_file: Path, http: httpx.AsyncClient, producer: AIOKafkaProducer) -> None:
        self.stack_file, self.http, self.producer = stack_file, http, producer
        suffix = str(uuid.uuid4().int)[:9]
        self.workspace = f"e2e-{suffix}"
        self.sender_id = f"7{suffix}"
        self.waba_id = f"8{suffix}"
        self.display = f"1555{suffix[:7]}"
        self._people = int(suffix[:6])

    @property
    def stack(self) -> Json:
        told: Json = json.loads(self.stack_file.read_text())
        return told

    def at(self, service: str, path: str) -> str:
        return f"{self.stack['services'][service]}{path}"

    async def call(self, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        # httpx's own pool may hold connections of a service that was restarted meanwhile: the call is made again.
        bearer = {"authorization": f"Bearer {self.stack['admin_token']}"}
        for attempt in range(60):
            try:
                return await self.http.request(method, url, json=body, headers=bearer | headers)
            except httpx.TransportError:
                if attempt == 59:
                    raise
                await asyncio.sleep(0.5)
        raise AssertionError("not reached")

    async def ok(self, method: str, service: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = await self.call(method, self.at(service, f"/v1/workspaces/{self.workspace}{path}"), body, **headers)
        assert answer.status_code < 300, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def sim(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = await self.call(method, f"{self.stack['meta']}/_sim{path}", body)
        assert answer.status_code < 300, (path, answer.text)
        return answer

    # --- setting up, as contract.md's table has it ---

    async def set_up(
        self, *, credits: int = 1000, per_second: int = 80, is_told: bool = False, webhook_url: str | None = None
    ) -> None:
        """`is_told`: Meta tells the rate `per_second` as it is; else by the name of a level, 80 or 1,000."""
        account = {"portfolio_id": f"p{self.waba_id}", "messaging_limit": 100_000, "templates": TEMPLATES}
        await self.sim("PUT", f"/accounts/{self.waba_id}", account)
        number = {
            "waba_id": self.waba_id,
            "display_phone_number": self.display,
            "access_token": f"token-{self.sender_id}",
            "app_id": self.stack["meta_app_id"],
            "app_secret": self.stack["meta_app_secret"],
            "webhook_url": webhook_url or self.at("webhook-ingest", "/webhooks/meta"),
            "quality_rating": "GREEN",
            "messages_per_second": per_second,
        }
        if is_told:
            number["throughput_level"] = per_second
        await self.sim("PUT", f"/numbers/{self.sender_id}", number)
        sender = {
            "access_token": f"token-{self.sender_id}",
            "waba_id": self.waba_id,
            "portfolio_id": f"p{self.waba_id}",
            "app_id": self.stack["meta_app_id"],
            "default": True,
        }
        await self.ok("PUT", "dispatcher", f"/senders/{self.sender_id}", sender)
        if credits:
            top_up = {"credits": credits, "reference": "invoice 7"}
            await self.ok("POST", "billing", "/top-ups", top_up, **{"idempotency-key": "first"})

    def person(self) -> str:
        """A number that can exist and that no other test uses (Mexico City, mobile)."""
        self._people += 1
        return f"+5255{self._people % 10**8:08d}"

    async def contact(self, contact_id: str, phone: str, state: str = "SUBSCRIBED", **fields: Any) -> None:
        body = {"phone": phone, "name": "Inés", "marketing_state": state, "source": "import", "proof": "form 17"}
        await self.ok("PUT", "consent", f"/contacts/{contact_id}", body | fields)

    async def contacts(self, people: Iterable[tuple[str, str]]) -> None:
        rows = "".join(f"{name},{phone},SUBSCRIBED,import,form 17\n" for name, phone in people)
        url = self.at("consent", f"/v1/workspaces/{self.workspace}/contacts/import")
        headers = {"authorization": f"Bearer {self.stack['admin_token']}", "content-type": "text/csv"}
        body = "contact_id,phone,marketing_state,source,proof\n" + rows
        answer = await self.http.post(url, content=body.encode(), headers=headers)
        assert answer.status_code == 200, answer.text

    # --- sending ---

    def request(self, message_id: str, contact_id: str, **changes: Any) -> Json:
        base: Json = {
            "message_id": message_id,
            "workspace_id": self.workspace,
            "to": {"contact_id": contact_id},
            "origin": {"kind": "campaign", "id": "black-friday"},
            "content": template("Inés"),
            "requested_at": now_text(),
        }
        return base | changes

    async def publish(self, *requests: Json, topic: str = "send.requested") -> None:
        sent = [
            await self.producer.send(topic, json.dumps(one).encode(), key=one["to"]["contact_id"].encode())
            for one in requests
        ]
        await asyncio.gather(*sent)

    async def publish_raw(self, topic: str, value: bytes) -> None:
        await self.producer.send_and_wait(topic, value, key=b"rubbish")

    async def message(self, message_id: str) -> Json | None:
        path = f"/v1/workspaces/{self.workspace}/messages/{message_id}"
        answer = await self.call("GET", self.at("message-log", path))
        if answer.status_code == 404:
            return None
        told: Json = answer.json()
        return told

    async def settled(self, ids: Iterable[str], *, good: str = "read") -> Json:
        """Wait until each message failed or reached `good`; returns id -> (status, reason's code)."""
        left = set(ids)
        found: Json = {}

        async def all_settled() -> bool:
            for one in sorted(left):
                told = await self.message(one)
                if told and told["status"] in ("failed", good, "read"):
                    found[one] = (told["status"], told["reason"] and told["reason"]["code"])
                    left.discard(one)
            return not left

        try:
            await until(all_settled, "settled")
        except AssertionError as error:
            one = sorted(left)[0]
            raise AssertionError(f"{len(left)} messages are not settled, as {await self.message(one)}") from error
        return found

    async def settled_as(self, ids: Iterable[str], status: str) -> None:
        """Wait until each message has that status, whatever was told of it before."""
        for one in sorted(ids):

            async def told(one: str = one) -> bool:
                message = await self.message(one)
                return message is not None and message["status"] == status

            await until(told, f"{one} is {status}")

    async def calls(self) -> list[Json]:
        """The calls to Meta for this workspace's messages."""
        answer = await self.sim("GET", "/calls")
        rows = (json.loads(line) for line in answer.text.splitlines())
        mine = f"sw1:{self.workspace}:"
        return [row for row in rows if (row["biz_opaque_callback_data"] or "").startswith(mine)]

    async def ledger(self) -> list[Json]:
        rows: list[Json] = []
        cursor = ""
        while True:
            page = await self.ok("GET", "billing", f"/ledger?limit=500{cursor}")
            rows += page["items"]
            if not page["next_cursor"]:
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    async def balance(self) -> int:
        account = await self.ok("GET", "billing", "/account")
        balance: int = account["balance"]
        return balance

    async def post_webhook(self, body: bytes) -> int:
        key = self.stack["meta_app_secret"].encode()
        signature = hmac.new(key, body, hashlib.sha256).hexdigest()
        headers = {"x-hub-signature-256": f"sha256={signature}", "content-type": "application/json"}
        answer = await self.http.post(self.at("webhook-ingest", "/webhooks/meta"), content=body, headers=headers)
        return answer.status_code

    async def post_shopify(self, topic: str, customer: Json) -> int:
        """A shop's signed webhook; the stack has a secret for the workspace demo only."""
        body = json.dumps(customer).encode()
        signature = hmac.new(self.stack["shopify_secret"].encode(), body, hashlib.sha256).digest()
        headers = {
            "x-shopify-topic": topic,
            "x-shopify-hmac-sha256": base64.b64encode(signature).decode(),
            "content-type": "application/json",
        }
        url = self.at("webhook-ingest", "/webhooks/shopify/demo")
        return (await self.http.post(url, content=body, headers=headers)).status_code

    async def records(self, topic: str, *, holding: str | None = None) -> list[Any]:
        """Every record of a topic from its beginning to its present end."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.stack["kafka"], enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            partitions = await self.producer.partitions_for(topic)
            places = [TopicPartition(topic, number) for number in partitions]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            found: list[Any] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    found += batch
        finally:
            await consumer.stop()
        wanted = (self.workspace if holding is None else holding).encode()
        return [record for record in found if wanted in (record.value or b"")]

    async def events(self, topic: str) -> list[Json]:
        events = [json.loads(record.value) for record in await self.records(topic)]
        return [event for event in events if event["workspace_id"] == self.workspace]


def highest(events: Iterable[Json]) -> str | None:
    """The status that stands, by contract.md's "How to read them"."""
    told = {event["status"] for event in events}
    good = [status for status in LADDER if status in told]
    if good and good[-1] in ("delivered", "read", "played"):
        return good[-1]
    return "failed" if "failed" in told else good[-1] if good else None


@asynccontextmanager
async def outside(stack_file: Path) -> AsyncIterator[Outside]:
    stack = json.loads(stack_file.read_text())  # noqa: ASYNC240 - a test
    producer = AIOKafkaProducer(bootstrap_servers=stack["kafka"], acks="all", linger_ms=5, max_request_size=8_000_000)
    await producer.start()
    async with httpx.AsyncClient(timeout=60) as http:
        try:
            yield Outside(stack_file, http, producer)
        finally:
            await producer.stop()
