"""A steady, seeded load on the whole system, as its neighbours would make it: upstream systems, people, operators who
top up, and somebody hostile. Every action stands in the journal before it is done and after it."""

import asyncio
import hashlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from actions import Actions, Tenant
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from history import (
    Canary,
    Contact,
    Journal,
    PublishBegan,
    PublishEnded,
    Sender,
)
from outside import Json, template, text
from people import People
from poison import POISONS
from rig import Rig

WORKSPACES = 4
PER_SECOND = 80
# The last workspace runs out of credits again and again.
CREDITS = (100_000, 100_000, 100_000, 150)
TOP_UPS = (500, 500, 500, 40)
BEAT_SECONDS = 0.2
OUTSTANDING_MAX = 2_000
SEND_SECONDS = 20.0
ACKNOWLEDGED_SECONDS = 90.0
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
KINDS = {
    "campaign": 0.5,
    "scheduled": 0.05,
    "automation": 0.15,
    "api": 0.2,
    "delayed": 0.04,
    "short": 0.02,
    "reply": 0.04,
}
# A campaign's messages to those who say STOP now and then: long enough for one to come in between, in calm too.
SCHEDULED_SECONDS = (20, 60)
EVERY_SECONDS = {"speak": 1.0, "consent": 2.0, "top_up": 3.0, "poison": 4.0, "hostile": 3.0}


@dataclass
class Workload:
    """`rate`: requests a second of all workspaces together. `people`: of each workspace. `pace`: messages a second that
    each number may."""

    rig: Rig
    journal: Journal
    seed: int
    rate: float
    people: int
    pace: int = PER_SECOND

    def __post_init__(self) -> None:
        self._actions = Actions(self.rig, self.journal, self.seed)
        self._people = People(self._actions, self.people)
        self._recent: deque[tuple[str, bytes, bytes, Json]] = deque(maxlen=KEPT_FOR_REPEATS)
        self._room = asyncio.Semaphore(OUTSTANDING_MAX)
        self._streams: list[asyncio.Task[None]] = []
        self._is_going = True
        self._number = 0

    @property
    def counts(self) -> Counter[str]:
        return self._actions.counts

    @property
    def tenants(self) -> list[Tenant]:
        return self._actions.tenants

    @property
    def under_way(self) -> int:
        return self._actions.under_way

    # --- set up ---

    async def set_up(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.rig.bootstrap, acks="all", linger_ms=5, max_request_size=8_000_000
        )
        await self._producer.start()
        self._actions.stack = self.rig.stack
        await self.rig.sim("PUT", "/settings", META_SETTINGS)
        hook = f"{self.rig.fronts['webhook-ingest'].url}/webhooks/meta"
        self._actions.tenants += [
            Tenant(self.rig, self._producer, number, self.people) for number in range(1, WORKSPACES + 1)
        ]
        for tenant, credits in zip(self.tenants, CREDITS, strict=True):
            await self._set_up(tenant, credits, hook)
        self._bury_canaries()

    async def _set_up(self, tenant: Tenant, credits: int, hook: str) -> None:
        await tenant.set_up(credits=0, per_second=self.pace, is_told=self.pace < 80, webhook_url=hook)
        self.journal.write(
            Sender(
                workspace_id=tenant.workspace,
                sender_id=tenant.sender_id,
                portfolio_id=f"p{tenant.waba_id}",
                messages_per_second=self.pace,
                messaging_limit=100_000,
            )
        )
        await self._actions.top_up(tenant, credits, "first")
        await tenant.contacts(tenant.people)
        for contact_id, phone in tenant.people:
            self.journal.write(Contact(workspace_id=tenant.workspace, contact_id=contact_id, phone=phone))

    def _bury_canaries(self) -> None:
        names = ("admin_token", "meta_app_secret", "meta_verify_token")
        secrets = {name: self._actions.stack[name] for name in names}
        secrets |= {f"token of {tenant.sender_id}": f"token-{tenant.sender_id}" for tenant in self.tenants}
        phones = {f"phone {phone[-4:]}": phone for tenant in self.tenants for phone in tenant.canary_phones}
        for name, value in (secrets | phones).items():
            self.journal.write(Canary(name=name, value=value))

    # --- running ---

    def start(self) -> None:
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "speak": self._people.speak,
            "consent": self._people.say,
            "top_up": self._top_up_someone,
            "poison": self._plant,
            "hostile": self._people.attack,
        }
        self._streams = [asyncio.create_task(self._request_steadily())]
        self._streams += [asyncio.create_task(self._steadily(EVERY_SECONDS[name], act)) for name, act in acts.items()]

    async def stop(self) -> None:
        """No new action; those that have begun are awaited."""
        for task in self._streams:
            task.cancel()
        ended = await asyncio.gather(*self._streams, return_exceptions=True)
        await self._actions.finish()
        self._actions.check()
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
        """Raises what an action or a stream met that it should not have: a bug of the workload's."""
        self._actions.check()
        for task in self._streams:
            if task.done():
                task.result()

    async def _steadily(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._actions.chance.uniform(0.5, 1.5) * seconds)
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
        if self._recent and self._actions.chance.random() < REPEATED:
            self.counts["repeated"] += 1
            self._actions.begin(self._publish(*self._actions.chance.choice(self._recent)))
            return
        tenant = self._actions.chance.choice(self.tenants)
        self._number += 1
        (kind,) = self._actions.chance.choices(list(KINDS), list(KINDS.values()))
        body = self._body(tenant, kind, f"m{self._number}")
        key = (body["to"].get("contact_id") or body["to"]["phone"]).encode()
        record = ("send.requested", json.dumps(body).encode(), key, body)
        self._recent.append(record)
        self.counts["requests"] += 1
        self._actions.begin(self._publish(*record))

    def _body(self, tenant: Tenant, kind: str, message_id: str) -> Json:
        contact_id, _ = self._actions.chance.choice(tenant.people)
        origin: Json = {"kind": "campaign", "id": f"sale-{self._number // 2_000}"}
        changes: Json = {"origin": origin}
        now = datetime.now(UTC)
        if kind == "automation":
            origin |= {"kind": "automation", "id": "welcome", "node_id": f"n{self._actions.chance.randrange(4)}"}
        elif kind == "reply" and tenant.speakers:
            contact_id = self._actions.chance.choice(list(tenant.speakers))
            origin.update({"kind": "inbox", "id": None, "thread_id": contact_id, "agent": "ann"})
            changes["content"] = text("Your table is ready.")
        elif kind == "scheduled":
            contact_id, _ = self._actions.chance.choice(tenant.people[: self._people.stoppers])
            changes["send_at"] = _iso(now + timedelta(seconds=self._actions.chance.uniform(*SCHEDULED_SECONDS)))
        elif kind != "campaign":
            origin.update({"kind": "api", "id": None})
            changes["content"] = template("4711", name="order_update", language="en_US")
        if kind == "delayed":
            changes["send_at"] = _iso(now + timedelta(seconds=self._actions.chance.uniform(4, 20)))
        if kind == "short":
            changes["expires_at"] = _iso(now + timedelta(seconds=self._actions.chance.uniform(1, 8)))
        body = tenant.request(message_id, contact_id, **changes)
        if self._actions.chance.random() < 0.1:
            body["to"]["phone"] = dict(tenant.people)[contact_id]
        if self._actions.chance.random() < 0.1:
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

    # --- bad records ---

    async def _plant(self) -> None:
        poison = self._actions.chance.choice(POISONS)
        self._plant_one(poison.topic, poison.make(self._actions.chance, f"p{self.seed}-{self._planted}"), poison)

    async def plant_many(self, count: int) -> None:
        """A burst of bad records, for the scenario of that name."""
        for _ in range(count):
            await self._plant()

    @property
    def _planted(self) -> int:
        return self.counts["planted"]

    def _plant_one(self, topic: str, value: bytes, poison: Any) -> None:
        self._actions.note_planted(topic, value, poison.why, poison.dead_letters)
        self._actions.begin(self._publish(topic, value, b"poison"))

    # --- credits ---

    async def _top_up_someone(self) -> None:
        tenant = self._actions.chance.choice(self.tenants)
        self.counts["top_ups"] += 1
        key = f"top-up-{self.seed}-{self.counts['top_ups']}"
        credits = TOP_UPS[tenant.number - 1]
        times = self._actions.chance.choice([1, 1, 2, 3])
        for _ in range(times):
            # At once: somebody's client is impatient.
            self._actions.begin(self._actions.top_up(tenant, credits, key))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
