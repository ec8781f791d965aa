"""A steady, seeded load on the whole system, as its neighbours would make it: upstream systems, people, operators who
top up, and somebody hostile. Every action stands in the journal before it is done and after it."""

import asyncio
import hashlib
import hmac
import json
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from history import (
    Canary,
    Contact,
    Journal,
    Planted,
    PublishBegan,
    PublishEnded,
    Said,
    Sender,
    TopUpBegan,
    TopUpEnded,
    WebhookBegan,
    WebhookEnded,
)
from outside import Json, Outside, template, text
from poison import HOSTILE_BYTES, POISONS, hostile_text
from rig import Rig

WORKSPACES = 4
PER_SECOND_MAX = 80
# The last workspace runs out of credits again and again.
CREDITS = (100_000, 100_000, 100_000, 150)
TOP_UPS = (500, 500, 500, 40)
BEAT_SECONDS = 0.2
OUTSTANDING_MAX = 2_000
SEND_SECONDS = 20.0
ACKNOWLEDGED_SECONDS = 90.0
POST_SECONDS = 10.0
POST_TRIES = 40
CANARY_PHONES = 20
REPEATED = 0.04
KEPT_FOR_REPEATS = 400
# What Meta does with calls, beside taking them: shares.
ANSWERS = {
    "answer_131016": 0.02,
    "answer_131008": 0.01,
    "failed_131026": 0.03,
    "failed_after_sent": 0.01,
    "error_with_200": 0.003,
    "html_502": 0.001,
    "html_502_taken": 0.002,
    "reset_after_acceptance": 0.002,
    "reset_before_acceptance": 0.001,
    "half_body": 0.001,
    "timeout_after_acceptance": 0.001,
    "status_before_answer": 0.03,
    "read_without_delivered": 0.02,
    "reversed": 0.02,
    "delivered_and_failed": 0.01,
    "sent_then_silence": 0.01,
}
META_SETTINGS: Json = {
    "latency_ms": 40,
    "answers": ANSWERS,
    "webhooks": {"batch": 10, "reorder": 0.1, "double": 0.1, "delay_ms": [0, 400]},
}
# Shares of requests: origin and content.
KINDS = {"campaign": 0.55, "automation": 0.15, "api": 0.2, "delayed": 0.04, "short": 0.02, "reply": 0.04}
EVERY_SECONDS = {"speak": 1.0, "consent": 2.0, "top_up": 3.0, "poison": 4.0, "hostile": 3.0}


class Tenant(Outside):
    """A workspace with a number and people of its own, named by its place: a seed makes the same ones again."""

    def __init__(self, rig: Rig, producer: AIOKafkaProducer, number: int, people: int) -> None:
        super().__init__(rig.state_dir / "stack.json", rig.http, producer)
        self.number = number
        self.workspace = f"faults-{number}"
        self.sender_id, self.waba_id = f"7{number:09d}", f"8{number:09d}"
        self.display = f"1555{number:07d}"
        self.people = [(f"c{each}", f"+5255{10_000_000 + number * 1_000_000 + each}") for each in range(people)]
        self.speakers: dict[str, datetime] = {}

    @property
    def canary_phones(self) -> list[str]:
        return [phone for _, phone in self.people[:CANARY_PHONES]]


@dataclass
class Signed:
    """A webhook that the workload posts itself, with who said what in it."""

    body: bytes
    tenant: Tenant
    contact: tuple[str, str]


@dataclass
class Workload:
    """`rate`: requests a second of all workspaces together. `people`: of each workspace."""

    rig: Rig
    journal: Journal
    seed: int
    rate: float
    people: int
    counts: Counter[str] = field(default_factory=Counter)
    tenants: list[Tenant] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._recent: deque[tuple[str, bytes, bytes, Json]] = deque(maxlen=KEPT_FOR_REPEATS)
        self._valid: deque[bytes] = deque(maxlen=50)
        self._starts: list[Signed] = []
        self._stopped: dict[str, tuple[Tenant, tuple[str, str]]] = {}
        self._room = asyncio.Semaphore(OUTSTANDING_MAX)
        self._actions: set[asyncio.Task[None]] = set()
        self._streams: list[asyncio.Task[None]] = []
        self._is_going = True
        self._number = 0
        self._said = 0

    # --- set up ---

    async def set_up(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.rig.bootstrap, acks="all", linger_ms=5, max_request_size=8_000_000
        )
        await self._producer.start()
        # Kept: the file is away while the stack is.
        self._stack = self.rig.stack
        await self.rig.sim("PUT", "/settings", META_SETTINGS)
        hook = f"{self.rig.fronts['webhook-ingest'].url}/webhooks/meta"
        self.tenants += [Tenant(self.rig, self._producer, number, self.people) for number in range(1, WORKSPACES + 1)]
        for tenant, credits in zip(self.tenants, CREDITS, strict=True):
            await self._set_up(tenant, credits, hook)
        self._bury_canaries()

    async def _set_up(self, tenant: Tenant, credits: int, hook: str) -> None:
        await tenant.set_up(credits=0, per_second=PER_SECOND_MAX, webhook_url=hook)
        self.journal.write(
            Sender(
                workspace_id=tenant.workspace,
                sender_id=tenant.sender_id,
                portfolio_id=f"p{tenant.waba_id}",
                messages_per_second=PER_SECOND_MAX,
                messaging_limit=100_000,
            )
        )
        await self._top_up(tenant, credits, "first")
        await tenant.contacts(tenant.people)
        for contact_id, phone in tenant.people:
            self.journal.write(Contact(workspace_id=tenant.workspace, contact_id=contact_id, phone=phone))

    def _bury_canaries(self) -> None:
        names = ("admin_token", "meta_app_secret", "meta_verify_token")
        secrets = {name: self._stack[name] for name in names}
        secrets |= {f"token of {tenant.sender_id}": f"token-{tenant.sender_id}" for tenant in self.tenants}
        phones = {f"phone {phone[-4:]}": phone for tenant in self.tenants for phone in tenant.canary_phones}
        for name, value in (secrets | phones).items():
            self.journal.write(Canary(name=name, value=value))

    # --- running ---

    def start(self) -> None:
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "speak": self._speak,
            "consent": self._say,
            "top_up": self._top_up_someone,
            "poison": self._plant,
            "hostile": self._attack,
        }
        self._streams = [asyncio.create_task(self._request_steadily())]
        self._streams += [asyncio.create_task(self._steadily(EVERY_SECONDS[name], act)) for name, act in acts.items()]

    async def stop(self) -> None:
        """No new action; those that have begun are awaited."""
        for task in self._streams:
            task.cancel()
        ended = await asyncio.gather(*self._streams, return_exceptions=True)
        while self._actions:
            await asyncio.wait(self._actions)
        for one in ended:
            if isinstance(one, Exception):
                raise one

    async def close(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._producer.stop(), 20)

    def pause(self) -> bool:
        """No new requests until `go_on`; whether there were any."""
        was_going, self._is_going = self._is_going, False
        return was_going

    def go_on(self) -> None:
        self._is_going = True

    def check(self) -> None:
        """Raises what ended a stream: a bug of the workload's."""
        for task in self._streams:
            if task.done():
                task.result()

    @property
    def outstanding(self) -> int:
        return len(self._actions)

    def act(self, action: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(action)
        self._actions.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._actions.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._streams.append(asyncio.create_task(_fail(error)))

    async def _steadily(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * seconds)
            # A simulator or a door that is away just now is no reason to end.
            with suppress(httpx.HTTPError):
                await act()

    async def _request_steadily(self) -> None:
        due = 0.0
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            now = loop.time()
            # What was missed for more than a beat or two isn't made up for: the rate would be another.
            due += self.rate * min(now - last, 3 * BEAT_SECONDS)
            last = now
            while due >= 1:
                due -= 1
                if self._is_going:
                    self._request()
            await asyncio.sleep(BEAT_SECONDS)

    # --- requests ---

    def _request(self) -> None:
        if self._recent and self._chance.random() < REPEATED:
            self.counts["repeated"] += 1
            self.act(self._publish(*self._chance.choice(self._recent)))
            return
        tenant = self._chance.choice(self.tenants)
        self._number += 1
        (kind,) = self._chance.choices(list(KINDS), list(KINDS.values()))
        body = self._body(tenant, kind, f"m{self._number}")
        key = (body["to"].get("contact_id") or body["to"]["phone"]).encode()
        record = ("send.requested", json.dumps(body).encode(), key, body)
        self._recent.append(record)
        self.counts["requests"] += 1
        self.act(self._publish(*record))

    def _body(self, tenant: Tenant, kind: str, message_id: str) -> Json:
        contact_id, _ = self._chance.choice(tenant.people)
        origin: Json = {"kind": "campaign", "id": f"sale-{self._number // 2_000}"}
        changes: Json = {"origin": origin}
        now = datetime.now(UTC)
        if kind == "automation":
            origin |= {"kind": "automation", "id": "welcome", "node_id": f"n{self._chance.randrange(4)}"}
        elif kind == "reply" and tenant.speakers:
            contact_id = self._chance.choice(list(tenant.speakers))
            origin.update({"kind": "inbox", "id": None, "thread_id": contact_id, "agent": "ann"})
            changes["content"] = text("Your table is ready.")
        elif kind != "campaign":
            origin.update({"kind": "api", "id": None})
            changes["content"] = template("4711", name="order_update", language="en_US")
        if kind == "delayed":
            changes["send_at"] = _iso(now + timedelta(seconds=self._chance.uniform(4, 20)))
        if kind == "short":
            changes["expires_at"] = _iso(now + timedelta(seconds=self._chance.uniform(1, 8)))
        body = tenant.request(message_id, contact_id, **changes)
        if self._chance.random() < 0.1:
            body["to"]["phone"] = dict(tenant.people)[contact_id]
        if self._chance.random() < 0.1:
            body["metadata"] = {"order": message_id}
        return body

    async def _publish(self, topic: str, value: bytes, key: bytes, body: Json | None = None) -> None:
        """Publish a record; of a `body` None is known that it is bad."""
        action, digest = self.journal.action(), hashlib.sha256(value).hexdigest()
        self.journal.write(
            PublishBegan(
                action=action,
                topic=topic,
                value_sha256=digest,
                what="request" if body else "planted",
                workspace_id=body["workspace_id"] if body else None,
                message_id=body["message_id"] if body else None,
            )
        )
        async with self._room:
            ended = await self._send(topic, value, key)
        ended.action = action
        self.counts[ended.outcome] += 1
        self.journal.write(ended)

    async def _send(self, topic: str, value: bytes, key: bytes) -> PublishEnded:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                future = await self._producer.send(topic, value, key=key)
            # Not cancelled when time is up: it may still be stored, which is what "failed" means.
            done, _ = await asyncio.wait({future}, timeout=ACKNOWLEDGED_SECONDS)
            if not done:
                return PublishEnded(action="", outcome="failed", error="not acknowledged in time")
            stored = future.result()
        except (KafkaError, TimeoutError) as error:
            return PublishEnded(action="", outcome="failed", error=type(error).__name__)
        return PublishEnded(action="", outcome="acknowledged", partition=stored.partition, offset=stored.offset)

    # --- people ---

    async def _speak(self) -> None:
        """Somebody writes, which opens the window for replies."""
        tenant = self._chance.choice(self.tenants)
        contact_id, phone = self._chance.choice(tenant.people[self._stoppers :])
        await self._hear(tenant, phone, "Is my order on its way?")
        tenant.speakers[contact_id] = datetime.now(UTC)

    @property
    def _stoppers(self) -> int:
        """So many people of each workspace, the first ones, say STOP and START."""
        return max(4, self.people // 10)

    async def _hear(self, tenant: Tenant, phone: str, words: str) -> str:
        message = {"type": "text", "text": {"body": words}}
        inbound = {"phone_number_id": tenant.sender_id, "from": phone, "message": message}
        answer = await self.rig.sim("POST", "/inbound", inbound)
        self.counts["inbound"] += 1
        return str(answer.json()["id"])

    async def _say(self) -> None:
        """STOP, or START of somebody who has stopped; through the simulator, or in a webhook of our own that is posted
        again later."""
        start = len(self._stopped) > self._stoppers and self._chance.random() < 0.7
        if start:
            key = self._chance.choice(list(self._stopped))
            tenant, contact = self._stopped.pop(key)
        else:
            tenant = self._chance.choice(self.tenants)
            contact = self._chance.choice(tenant.people[: self._stoppers])
            if f"{tenant.workspace}/{contact[0]}" in self._stopped:
                return
        word: Literal["start", "stop"] = "start" if start else "stop"
        if self._chance.random() < 0.5:
            wamid = await self._hear(tenant, contact[1], word.upper())
            self._note_said(tenant, contact, word, wamid=wamid)
        else:
            wamid, body = self._spoken(tenant, contact, word.upper())
            self._note_said(tenant, contact, word, wamid=wamid, sha256=hashlib.sha256(body).hexdigest())
            self.act(self._post(body, "valid", signature=self._signature(body)))
            if start:
                self._starts.append(Signed(body, tenant, contact))
        if not start:
            self._stopped[f"{tenant.workspace}/{contact[0]}"] = (tenant, contact)
            self._replay_a_start(tenant, contact)
        self.counts[word] += 1

    def _note_said(
        self,
        tenant: Tenant,
        contact: tuple[str, str],
        word: Literal["start", "stop"],
        *,
        wamid: str | None = None,
        sha256: str | None = None,
        repeat: bool = False,
    ) -> None:
        contact_id, phone = contact
        self.journal.write(
            Said(
                workspace_id=tenant.workspace,
                contact_id=contact_id,
                phone=phone,
                word=word,
                wamid=wamid,
                sha256=sha256,
                repeat=repeat,
            )
        )

    def _replay_a_start(self, tenant: Tenant, contact: tuple[str, str]) -> None:
        """An old START of theirs comes once more after their STOP: its signature holds for ever."""
        old = next((one for one in self._starts if (one.tenant, one.contact) == (tenant, contact)), None)
        if old is not None:
            self._note_said(tenant, contact, "start", sha256=hashlib.sha256(old.body).hexdigest(), repeat=True)
            self.act(self._post(old.body, "replayed", signature=self._signature(old.body)))
            self.counts["replayed"] += 1

    def _spoken(self, tenant: Tenant, contact: tuple[str, str], words: str) -> tuple[str, bytes]:
        """A webhook as Meta would post it."""
        self._said += 1
        wamid = f"wamid.said{self.seed}.{self._said}"
        wa_id = contact[1].removeprefix("+")
        message = {"from": wa_id, "id": wamid, "timestamp": str(int(datetime.now(UTC).timestamp())), "type": "text"}
        value = {
            "messaging_product": "whatsapp",
            "metadata": {"display_phone_number": tenant.display, "phone_number_id": tenant.sender_id},
            "contacts": [{"profile": {"name": "Inés"}, "wa_id": wa_id}],
            "messages": [message | {"text": {"body": words}}],
        }
        entry = {"id": tenant.waba_id, "changes": [{"field": "messages", "value": value}]}
        body = json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
        self._valid.append(body)
        return wamid, body

    # --- webhooks of our own ---

    def _signature(self, body: bytes, secret: str | None = None) -> str:
        key = (secret or self._stack["meta_app_secret"]).encode()
        return f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"

    async def _post(self, body: bytes, what: str, *, signature: str | None) -> None:
        """Until it is answered by something else than a 503 or nothing, as Meta does."""
        url = f"{self.rig.fronts['webhook-ingest'].url}/webhooks/meta"
        headers = {"content-type": "application/json"}
        if signature is not None:
            headers["x-hub-signature-256"] = signature
        digest = hashlib.sha256(body).hexdigest()
        for _ in range(POST_TRIES):
            action = self.journal.action()
            self.journal.write(WebhookBegan(action=action, sha256=digest, size=len(body), what=what, url=url))
            status, error = None, None
            try:
                status = (
                    await self.rig.http.post(url, content=body, headers=headers, timeout=POST_SECONDS)
                ).status_code
            except httpx.HTTPError as failure:
                error = type(failure).__name__
            self.journal.write(WebhookEnded(action=action, status=status, error=error))
            self.counts[f"posts {what}"] += 1
            if status is not None and status != 503:
                return
            await asyncio.sleep(1)

    async def _attack(self) -> None:
        """Hostile, broken and repeated webhooks."""
        (what,) = self._chance.choices(
            ["unsigned", "wrong-signature", "rubbish", "too-large", "duplicate"], [3, 3, 3, 0.3, 3]
        )
        # A few bytes of their own make the digest tell which one it was.
        mark = f"{self.seed}.{self.counts['hostile']}"
        self.counts["hostile"] += 1
        forged = self._spoken(self.tenants[0], self.tenants[0].people[0], f"forged {mark}")[1]
        if what == "duplicate":
            if self._valid:
                body = self._chance.choice(list(self._valid)[:-1] or [forged])
                self.act(self._post(body, what, signature=self._signature(body)))
            return
        self._valid.remove(forged)
        if what == "unsigned":
            self.act(self._post(forged, what, signature=None))
        elif what == "wrong-signature":
            self.act(self._post(forged, what, signature=self._signature(forged, "another app's secret")))
        elif what == "too-large":
            body = forged + b" " * HOSTILE_BYTES
            self.act(self._post(body, what, signature=self._signature(body)))
        else:
            body = hostile_text(self._chance, mark)
            self._note_planted("webhook.received", body, "signed, but no JSON", 1)
            self.act(self._post(body, what, signature=self._signature(body)))

    # --- bad records ---

    async def _plant(self) -> None:
        poison = self._chance.choice(POISONS)
        self._plant_one(poison.topic, poison.make(self._chance, f"p{self.seed}-{self._planted}"), poison)

    async def plant_many(self, count: int) -> None:
        """A burst of bad records, for the scenario of that name."""
        for _ in range(count):
            await self._plant()

    @property
    def _planted(self) -> int:
        return self.counts["planted"]

    def _plant_one(self, topic: str, value: bytes, poison: Any) -> None:
        self._note_planted(topic, value, poison.why, poison.dead_letters)
        self.act(self._publish(topic, value, b"poison"))

    def _note_planted(self, topic: str, value: bytes, why: str, dead_letters: int) -> None:
        self.counts["planted"] += 1
        digest = hashlib.sha256(value).hexdigest()
        self.journal.write(Planted(topic=topic, value_sha256=digest, why=why, dead_letters=dead_letters))

    # --- credits ---

    async def _top_up_someone(self) -> None:
        tenant = self._chance.choice(self.tenants)
        self.counts["top_ups"] += 1
        key = f"top-up-{self.seed}-{self.counts['top_ups']}"
        credits = TOP_UPS[tenant.number - 1]
        times = self._chance.choice([1, 1, 2, 3])
        for _ in range(times):
            # At once: somebody's client is impatient.
            self.act(self._top_up(tenant, credits, key))

    async def _top_up(self, tenant: Tenant, credits: int, key: str) -> None:
        """Repeated with the same key until it is answered for good: a 409 says that an equal one is under way."""
        url = f"{self.rig.fronts['billing'].url}/v1/workspaces/{tenant.workspace}/top-ups"
        headers = {"authorization": f"Bearer {self._stack['admin_token']}", "idempotency-key": key}
        body = {"credits": credits, "reference": key}
        for _ in range(POST_TRIES):
            action = self.journal.action()
            self.journal.write(
                TopUpBegan(action=action, workspace_id=tenant.workspace, credits=credits, idempotency_key=key)
            )
            status, error = None, None
            try:
                status = (await self.rig.http.post(url, json=body, headers=headers, timeout=30)).status_code
            except httpx.HTTPError as failure:
                error = type(failure).__name__
            self.journal.write(TopUpEnded(action=action, status=status, error=error))
            if status is not None and status < 500 and status != 409:
                return
            await asyncio.sleep(1)


async def _fail(error: BaseException) -> None:
    raise error


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
