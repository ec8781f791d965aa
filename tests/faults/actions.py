"""What every action of the workload needs: where it goes, who acts, and that none is forgotten."""

import asyncio
import hashlib
import hmac
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer
from history import Journal, Planted, TopUpBegan, TopUpEnded, WebhookBegan, WebhookEnded
from outside import Json, Outside
from rig import Rig

POST_SECONDS = 10.0
POST_TRIES = 40
CANARY_PHONES = 20


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
class Actions:
    """`counts`: of what was done, by kind. `stack`: stack.json, kept, since the file is away while the stack is."""

    rig: Rig
    journal: Journal
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    tenants: list[Tenant] = field(default_factory=list)
    stack: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def begin(self, action: Coroutine[Any, Any, None]) -> None:
        """Goes on beside the rest."""
        task = asyncio.create_task(action)
        self._under_way.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def finish(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)

    def check(self) -> None:
        """Raises what an action met that it should not have: a bug of the workload's."""
        if self._errors:
            raise self._errors[0]

    def note_planted(self, topic: str, value: bytes, why: str, dead_letters: int) -> None:
        self.counts["planted"] += 1
        digest = hashlib.sha256(value).hexdigest()
        self.journal.write(Planted(topic=topic, value_sha256=digest, why=why, dead_letters=dead_letters))

    def signature(self, body: bytes, secret: str | None = None) -> str:
        key = (secret or self.stack["meta_app_secret"]).encode()
        return f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"

    async def post(self, body: bytes, what: str, *, signature: str | None) -> None:
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

    async def top_up(self, tenant: Tenant, credits: int, key: str) -> None:
        """Repeated with the same key until it is answered for good: a 409 says that an equal one is under way."""
        url = f"{self.rig.fronts['billing'].url}/v1/workspaces/{tenant.workspace}/top-ups"
        headers = {"authorization": f"Bearer {self.stack['admin_token']}", "idempotency-key": key}
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
