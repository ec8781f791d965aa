"""The dispatcher alone: real processes with a Kafka, a PostgreSQL and a simulated Meta of their own. `send.funded`
comes straight from here, so that consent and billing slow nothing down."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest
from cryptography.fernet import Fernet
from local_stack.deploy import create_topics, migrate
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from proxies import is_refusal
from sendwhy.events import OriginKind, Price, Purpose, Resolved, SendFunded, SendRequested, event_id_of

Json = dict[str, Any]
HERE = Path(__file__).parent
TOKEN = "chaos-admin-token"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
TOLD = ("send.rejected", "status.updated", "send.held")
TEMPLATES = [
    {
        "name": "autumn_sale",
        "language": "en_US",
        "status": "APPROVED",
        "category": "MARKETING",
        "components": [{"type": "BODY", "text": "Sale for {{1}}"}],
    }
]


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 120, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(pause)


@dataclass
class Dispatcher:
    """A process. `name` is its replica's name."""

    name: str
    pid: int
    url: str
    log: Path

    def signal(self, what: signal.Signals) -> None:
        os.kill(self.pid, what)

    def is_there(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    async def gone(self) -> None:
        async def is_gone() -> bool:
            return not self.is_there()

        await until(is_gone, f"{self.name} has ended", 40)

    def said(self) -> list[Json]:
        """Its log lines so far."""
        lines: list[Json] = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines


@dataclass
class Account:
    """A workspace with one sender of its own account and portfolio."""

    number: int
    workspace: str
    per_second: int
    credential: str
    limit: int | None

    @property
    def sender_id(self) -> str:
        return f"{100_000_000_000_000 + self.number}"

    @property
    def waba_id(self) -> str:
        return f"{200_000_000_000_000 + self.number}"

    def phone(self, number: int) -> str:
        return f"+5255{self.number % 100 * 1_000_000 + number + 10_000_000:08d}"

    def funded(self, number: int, *, reply: bool = False, **changes: Any) -> SendFunded:
        """A campaign's message, or a reply in a conversation, to a person of its own."""
        now = datetime.now(UTC)
        body = {"type": "body", "parameters": [{"type": "text", "text": "Ines"}]}
        template = {"name": "autumn_sale", "language": {"code": "en_US"}, "components": [body]}
        content = {"type": "text", "text": {"body": "Here"}} if reply else {"type": "template", "template": template}
        phone = self.phone(number)
        request = SendRequested.model_validate(
            {
                "message_id": f"{'r' if reply else 'm'}{number}",
                "workspace_id": self.workspace,
                "sender_id": self.sender_id,
                "to": {"contact_id": f"c{number}", "phone": phone},
                "origin": {"kind": OriginKind.CAMPAIGN, "id": "autumn"},
                "content": content,
                "requested_at": now,
            }
        )
        purpose = Purpose.CONVERSATION if reply else Purpose.MARKETING
        event = SendFunded(
            event_id=event_id_of(f"{self.workspace}/{request.message_id}", "funded"),
            occurred_at=now,
            request=request,
            resolved=Resolved(contact_id=f"c{number}", phone=phone, country="MX", calling_code="52", purpose=purpose),
            contact_version=1,
            needs_subscription=not reply,
            send_at=now,
            expires_at=now + timedelta(hours=24),
            price=Price(credits=1, category="marketing"),
        )
        return event.model_copy(update=changes)


class Zygote:
    """Forks dispatchers (zygote.py)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def fork(self, environment: Mapping[str, str], log: Path) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return int(await self._process.stdout.readline())


@dataclass
class Rig:
    folder: Path
    kafka: Kafka
    postgres: Postgres
    database_url: str
    meta_url: str
    zygote: Zygote
    http: httpx.AsyncClient
    producer: AIOKafkaProducer
    key: str = field(default_factory=lambda: Fernet.generate_key().decode())
    started: list[Dispatcher] = field(default_factory=list)
    accounts: int = field(default_factory=lambda: random.SystemRandom().randrange(1, 90_000) * 100)

    # --- processes ---

    async def start(
        self, name: str, *, meta_url: str | None = None, postgres_port: int | None = None, **settings: Any
    ) -> Dispatcher:
        """A replica that answers. `postgres_port`: a proxy's."""
        url = urlsplit(self.database_url)
        if postgres_port is not None:
            url = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{postgres_port}", query="sslmode=disable")
        port = _free_port()
        told = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DATABASE_URL": url.geturl(),
            "HTTP_PORT": port,
            "DRAIN_SECONDS": 0,
            "API_TOKENS": f"{TOKEN}:admin:*",
            "META_GRAPH_URL": meta_url or self.meta_url,
            "TOKEN_ENCRYPTION_KEY": self.key,
            "PRIVACY_KEY": "chaos-privacy-key-0123456789",
            "REPLICA": name,
            "META_CONNECT_TIMEOUT_SECONDS": 2,
            "META_READ_TIMEOUT_SECONDS": 2,
            **{key.upper(): value for key, value in settings.items()},
        }
        log = self.folder / f"{name}-{len(self.started)}.log"
        log.touch()
        pid = await self.zygote.fork({f"SENDWHY_{key}": str(value) for key, value in told.items()}, log)
        one = Dispatcher(name, pid, f"http://127.0.0.1:{port}", log)
        self.started.append(one)
        return one

    async def ready(self, one: Dispatcher) -> Dispatcher:
        async def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await self.http.get(f"{one.url}/readyz")).status_code == 200
            assert one.is_there(), one.said()
            return False

        await until(is_ready, f"{one.name} is ready", 60)
        return one

    async def stop(self, *dispatchers: Dispatcher) -> None:
        for one in dispatchers:
            with contextlib.suppress(ProcessLookupError):
                one.signal(signal.SIGCONT)
                one.signal(signal.SIGTERM)
        for one in dispatchers:
            await one.gone()

    async def bury(self, one: Dispatcher) -> None:
        """Wait for a killed process to be gone, and tell Kafka: else its groups wait 10 s for it before they go on."""
        await one.gone()
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        try:
            for name in [name for name, _ in await admin.list_consumer_groups()]:
                # One at a time: aiokafka can't read an answer that tells of several.
                (told,) = await admin.describe_consumer_groups([name])
                for member in told.to_object()["groups"][0]["members"]:
                    leave = LeaveGroupRequest(name, member["member_id"])
                    await admin._send_request(leave, await admin.find_coordinator(name))
        finally:
            await admin.close()

    # --- what is set up ---

    async def sim(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = await self.http.request(method, f"{self.meta_url}/_sim{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    async def account(self, through: Dispatcher, *, per_second: int = 80, limit: int | None = None) -> Account:
        """A new account, set up by this dispatcher."""
        self.accounts += 1
        name = f"chaos-{self.accounts}"
        one = Account(self.accounts, name, per_second, credential=f"token-of-{name}", limit=limit)
        portfolio = {"portfolio_id": one.waba_id, "messaging_limit": limit, "templates": TEMPLATES}
        await self.sim("PUT", f"/accounts/{one.waba_id}", portfolio)
        await self.number(one)
        await self.put_sender(through, one)

        async def is_synced() -> bool:
            return bool((await self.sender(through, one))["synced_at"])

        await until(is_synced, "the templates are synced")
        # Meta's word knows two paces only; the next sync comes in an hour.
        await self.sql("update sender set messages_per_second = $2 where sender_id = $1", one.sender_id, per_second)
        return one

    async def number(self, account: Account) -> None:
        number = {
            "waba_id": account.waba_id,
            "display_phone_number": f"1555{account.number:09d}"[:11],
            "access_token": account.credential,
            "quality_rating": "GREEN",
            "messages_per_second": 1000 if account.per_second >= 1000 else account.per_second,
        }
        await self.sim("PUT", f"/numbers/{account.sender_id}", number)

    async def put_sender(self, through: Dispatcher, account: Account, *, seconds: float = 60) -> None:
        body = {"access_token": account.credential, "waba_id": account.waba_id, "default": True}
        body["portfolio_id"] = account.waba_id
        url = f"{through.url}/v1/workspaces/{account.workspace}/senders/{account.sender_id}"
        answer = await self.http.put(url, json=body, headers=HEADERS, timeout=seconds)
        assert answer.status_code == 200, answer.text

    async def resume_sender(self, through: Dispatcher, account: Account, *, seconds: float = 60) -> None:
        url = f"{through.url}/v1/workspaces/{account.workspace}/senders/{account.sender_id}/resume"
        answer = await self.http.post(url, headers=HEADERS, timeout=seconds)
        assert answer.status_code == 200, answer.text

    async def sender(self, through: Dispatcher, account: Account) -> Json:
        url = f"{through.url}/v1/workspaces/{account.workspace}/senders/{account.sender_id}"
        told: Json = (await self.http.get(url, headers=HEADERS)).json()
        return told

    async def publish(self, events: Iterable[SendFunded]) -> None:
        sent = [
            await self.producer.send("send.funded", one.to_json(), key=(one.request.to.contact_id or "").encode())
            for one in events
        ]
        await asyncio.gather(*sent)

    # --- what can be seen ---

    async def sql(self, query: str, *values: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            rows: list[Any] = await connection.fetch(query, *values)
            return rows
        finally:
            await connection.close()

    async def states(self, *accounts: Account) -> Counter[str]:
        rows = await self.sql(
            "select state, count(*) as n from message where workspace_id = any($1::text[]) group by 1",
            [one.workspace for one in accounts],
        )
        return Counter({row["state"]: row["n"] for row in rows})

    async def fence(self, account: Account) -> int:
        (row,) = await self.sql("select fence from sender where sender_id = $1", account.sender_id)
        return int(row["fence"])

    async def calls(self, *accounts: Account) -> dict[str, list[Json]]:
        """By `workspace:message`, the calls to Meta in their order."""
        names = {one.workspace for one in accounts}
        found: dict[str, list[Json]] = defaultdict(list)
        for line in (await self.sim("GET", "/calls")).text.splitlines():
            call = json.loads(line)
            _, _, key = (call["biz_opaque_callback_data"] or "").partition(":")
            if key.partition(":")[0] in names:
                found[key].append(call)
        return found

    async def events(self, *accounts: Account) -> dict[str, dict[str, list[Json]]]:
        """By topic and `workspace:message` (without one: `workspace:`), what was told, each event once."""
        names = {one.workspace for one in accounts}
        found: dict[str, dict[str, dict[str, Json]]] = {topic: defaultdict(dict) for topic in TOLD}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            for topic in TOLD:
                places = [TopicPartition(topic, number) for number in await self.producer.partitions_for(topic)]
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
                await consumer.seek_to_beginning(*places)
                while any([await consumer.position(place) < ends[place] for place in places]):
                    for batch in (await consumer.getmany(timeout_ms=200, max_records=5_000)).values():
                        for event in (json.loads(record.value) for record in batch if record.value):
                            if event["workspace_id"] in names:
                                key = f"{event['workspace_id']}:{event.get('message_id') or ''}"
                                found[topic][key][event["event_id"]] = event
        finally:
            await consumer.stop()
        return {topic: {key: list(each.values()) for key, each in keys.items()} for topic, keys in found.items()}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    # Not pytest's own folder: PostgreSQL's user must get in.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-chaos-"))
    try:
        async with contextlib.AsyncExitStack() as stack:
            kafka, postgres = Kafka(folder), Postgres(folder)
            await asyncio.gather(stack.enter_async_context(kafka), stack.enter_async_context(postgres))
            database_url = await postgres.ensure_database("dispatcher")
            await asyncio.gather(create_topics(kafka.bootstrap), migrate("dispatcher", database_url))
            meta_url = await stack.enter_async_context(_simulator())
            zygote = await stack.enter_async_context(_zygote())
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=60, trust_env=False))
            producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=5)
            await stack.enter_async_context(producer)
            one = Rig(folder, kafka, postgres, database_url, meta_url, zygote, http, producer)
            try:
                yield one
            finally:
                for each in one.started:
                    with contextlib.suppress(ProcessLookupError):
                        each.signal(signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _simulator() -> AsyncIterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", "meta_simulator", "--host", "127.0.0.1", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"ready" in await process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def _zygote() -> AsyncIterator[Zygote]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, HERE / "zygote.py", stdin=pipe, stdout=pipe)
    try:
        yield Zygote(process)
    finally:
        process.kill()
        await process.communicate()


# --- the verdict ---


@dataclass
class Verdict:
    """What became of messages: how many by outcome or wait, and what must not have happened."""

    table: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    calls: int = 0


def may_be_taken(call: Json) -> bool:
    """Whether Meta may have taken the message by this call: its request came whole, and no error object answered it."""
    return bool(call["whole"]) and not is_refusal(call["http_status"], json.dumps(call["answer"]))


def judge_calls(key: str, calls: list[Json]) -> list[str]:
    """Nothing is called again after a call that may have been taken."""
    taken = [index for index, call in enumerate(calls) if may_be_taken(call)]
    if taken and taken[0] != len(calls) - 1:
        told = [(call["at"], call["http_status"], call["whole"]) for call in calls]
        return [f"{key} was called again after a possible acceptance: {told}"]
    return []


async def judge(rig: Rig, *accounts: Account) -> Verdict:
    """Each message has one outcome, or waits and says for what; none was called again after a possible acceptance."""
    verdict = Verdict()
    calls, events = await rig.calls(*accounts), await rig.events(*accounts)
    rejected, statuses = events["send.rejected"], events["status.updated"]
    rows = await rig.sql(
        "select workspace_id, message_id, state, outcome, waiting_for, not_before from message"
        " where workspace_id = any($1::text[])",
        [one.workspace for one in accounts],
    )
    for row in rows:
        key = f"{row['workspace_id']}:{row['message_id']}"
        made, refusals, taken = calls.get(key, []), rejected.get(key, []), statuses.get(key, [])
        verdict.calls += len(made)
        verdict.violations += judge_calls(key, made)
        if row["state"] == "accepted":
            # What was given up may still turn out to have been taken, by a late answer: that is the one change of mind.
            refusals = [one for one in refusals if one["reason"]["code"] != "SEND_OUTCOME_UNKNOWN"]
        expected = {"accepted": (0, 1), "rejected": (1, 0), "waiting": (0, 0)}.get(row["state"])
        if (len(refusals), len(taken)) != expected:
            verdict.violations.append(
                f"{key} is {row['state']}, told {len(refusals)} rejections, {len(taken)} statuses"
            )
        if row["state"] == "accepted" and not any(may_be_taken(call) for call in made):
            verdict.violations.append(f"{key} is accepted without a call")
        if row["state"] == "waiting" and row["waiting_for"] == "turn":
            verdict.violations.append(f"{key} waits for nothing")
        code = refusals[0]["reason"]["code"] if refusals else None
        if code == "SEND_OUTCOME_UNKNOWN" and not refusals[0]["reason"]["evidence"].get("called_at"):
            verdict.violations.append(f"{key}: SEND_OUTCOME_UNKNOWN without evidence")
        if code and code != "SEND_OUTCOME_UNKNOWN" and any(may_be_taken(call) for call in made):
            verdict.violations.append(f"{key} is rejected as {code}, and may have been taken")
        name = f"waiting for {row['waiting_for']}" if row["state"] == "waiting" else code or row["state"]
        verdict.table[name] += 1
    return verdict
