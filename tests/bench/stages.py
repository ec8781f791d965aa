"""What a stage costs: messages per second and CPU microseconds per message, for each service alone.

    .venv/bin/python tests/bench/stages.py --messages 20000

One message's way is gone stage by stage: everything is on the topic before a service starts (so its batches are full),
the service runs alone, and ends when nothing is left. Its CPU counts from the birth of its process, so that no work
goes unseen. What of that its start takes is found by going the way twice, with a fifth and with all of the messages:
what the difference costs is the price of a message, the rest is the start.

Each service's CPU is that of its process only; Kafka's, PostgreSQL's and the simulator's (which takes the sends and
makes three webhooks each, but posts none here: see tests/bench/simulator.py), of the larger round, stand in their own
columns. Figures are printed, never asserted: machines are shared, and starts differ by some 0.1 s of CPU, which is
40 µs a message with --messages 3000 and 6 with 20,000.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from cryptography.fernet import Fernet
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from processes import cpu_of
from rich.console import Console
from rich.table import Table
from sendwhy.topics import TOPICS, Topic

SERVICES = ("consent", "billing", "dispatcher", "webhook_ingest", "message_log")
TOKEN = "bench-admin-token"
SECRET = "bench-app-secret"
POSTS_AT_ONCE = 64
WORKSPACE, SENDER, WABA = "bench", "100000000000777", "200000000000777"
ENCRYPTION_KEY = Fernet.generate_key().decode()
HEADERS = {"authorization": f"Bearer {TOKEN}"}
console = Console()


@dataclass
class Took:
    """What one stage took for a round: CPU seconds of the service since its birth, of the servers meanwhile; and its
    pace, messages/s from the first result seen to the last (None: all came at once)."""

    messages: int
    own: float
    kafka: float
    postgres: float
    simulator: float
    pace: float | None


class Bench:
    def __init__(
        self, kafka: Kafka, postgres: Postgres, consumer: AIOKafkaConsumer, meta: tuple[psutil.Process, str]
    ) -> None:
        self.kafka, self.postgres, self.consumer = kafka, postgres, consumer
        self.simulator, self.meta = meta
        self.numbers = range(0)
        self.took: dict[str, list[Took]] = {}
        self.urls: dict[str, str] = {}

    async def environment(self, service: str) -> dict[str, str]:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DATABASE_URL": await self.postgres.ensure_database(service),
            "HTTP_PORT": str(21000 + SERVICES.index(service)),
            "API_TOKENS": f"{TOKEN}:admin:*",
            "META_GRAPH_URL": self.meta,
            "META_APP_SECRETS": f"1:{SECRET}",
            "META_VERIFY_TOKEN": "bench-verify",
            "TOKEN_ENCRYPTION_KEY": ENCRYPTION_KEY,
            "PRIVACY_KEY": "bench-privacy-key-0123456789",
        }
        return os.environ | {f"SENDWHY_{name}": value for name, value in settings.items()}

    @contextlib.asynccontextmanager
    async def running(self, service: str) -> AsyncIterator[psutil.Process]:
        environment = await self.environment(service)
        self.urls[service] = f"http://127.0.0.1:{environment['SENDWHY_HTTP_PORT']}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", service, "serve", env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await self.ready(service)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            await process.wait()

    async def ready(self, service: str) -> None:
        async with httpx.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{self.urls[service]}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.2)

    async def measure(
        self,
        service: str,
        results: Callable[[], Awaitable[int]],
        *,
        each: int = 1,
        meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Run the service until it has given `each` results more for every message of this round."""
        before = await results()
        servers = [*map(psutil.Process, (self.kafka.process.pid, self.postgres.process.pid)), self.simulator]
        early = [cpu_of(server) for server in servers]
        async with self.running(service) as process:
            working = asyncio.create_task(meanwhile()) if meanwhile else None
            first: tuple[float, int] | None = None
            while (done := await results() - before) < each * len(self.numbers):
                if done and first is None:
                    first = (time.monotonic(), done)
                await asyncio.sleep(0.05)
            pace = (done - first[1]) / each / (time.monotonic() - first[0]) if first else None
            if working:
                await working
            own = cpu_of(process, alone=True)
            kafka, postgres, meta = (cpu_of(server) - then for server, then in zip(servers, early, strict=True))
        self.took.setdefault(service, []).append(Took(len(self.numbers), own, kafka, postgres, meta, pace))
        console.print(f"{service}: {len(self.numbers)} messages, {own:.2f} s of CPU with its start")

    def records_on(self, topic: Topic) -> Callable[[], Awaitable[int]]:
        return lambda: self.count(topic)

    async def count(self, topic: Topic) -> int:
        places = [TopicPartition(topic, number) for number in range(TOPICS[topic].partitions)]
        return sum((await self.consumer.end_offsets(places)).values())

    async def publish(self, topic: Topic, bodies: list[bytes]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap, linger_ms=20)
        await producer.start()
        pending = [await producer.send(topic, body, key=str(n).encode()) for n, body in enumerate(bodies)]
        await asyncio.gather(*pending)
        await producer.stop()

    # --- the way of a message ---

    async def go(self, numbers: range) -> None:
        """One round, with the messages of these numbers."""
        self.numbers = numbers
        await self.import_contacts()
        await self.publish(Topic.SEND_REQUESTED, [self.request(n) for n in numbers])
        await self.measure("consent", self.records_on(Topic.SEND_CONSENTED))
        await self.measure("billing", self.records_on(Topic.SEND_FUNDED))
        await self.measure("dispatcher", self.records_on(Topic.STATUS_UPDATED))
        bodies = [self.webhook(number, status) for status in ("sent", "delivered", "read") for number in numbers]
        statuses = self.records_on(Topic.STATUS_UPDATED)
        await self.measure("webhook_ingest", statuses, each=3, meanwhile=lambda: self.post(bodies))
        await self.measure("message_log", self.read_messages)

    async def import_contacts(self) -> None:
        told = await self.count(Topic.CONTACT_UPDATED)
        async with self.running("consent"), httpx.AsyncClient(timeout=600) as http:
            rows = "".join(f"c{10_000_000 + n},+5255{10_000_000 + n},SUBSCRIBED,import,bench\n" for n in self.numbers)
            answer = await http.post(
                f"{self.urls['consent']}/v1/workspaces/{WORKSPACE}/contacts/import",
                content=("contact_id,phone,marketing_state,source,proof\n" + rows).encode(),
                headers=HEADERS | {"content-type": "text/csv"},
            )
            answer.raise_for_status()
            while await self.count(Topic.CONTACT_UPDATED) < told + len(self.numbers):
                await asyncio.sleep(0.1)

    def request(self, number: int) -> bytes:
        template = {
            "name": "autumn_sale",
            "language": {"code": "es_MX"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
        }
        body = {
            "message_id": f"m{number}",
            "workspace_id": WORKSPACE,
            "sender_id": SENDER,
            "to": {"contact_id": f"c{10_000_000 + number}"},
            "origin": {"kind": "campaign", "id": f"bench-{self.numbers.start}"},
            "content": {"type": "template", "template": template},
            "requested_at": datetime.now(UTC).isoformat(),
        }
        return json.dumps(body).encode()

    async def prepare(self) -> None:
        """Tables, credits and a number, before anything is on its way."""
        for service in SERVICES:
            await run(await self.environment(service), service, "migrate")
        account = f"/v1/workspaces/{WORKSPACE}/top-ups"
        sender = f"/v1/workspaces/{WORKSPACE}/senders/{SENDER}"
        number = {"access_token": "bench-token", "waba_id": WABA, "app_id": "1", "default": True}
        async with self.running("billing"), self.running("dispatcher"), httpx.AsyncClient(timeout=60) as http:
            credits = {"credits": 1_000_000, "reference": "bench"}
            keyed = HEADERS | {"idempotency-key": "bench"}
            (await http.post(self.urls["billing"] + account, json=credits, headers=keyed)).raise_for_status()
            (await http.put(self.urls["dispatcher"] + sender, json=number, headers=HEADERS)).raise_for_status()
            await asyncio.sleep(3)  # until its templates are synced

    def webhook(self, number: int, status: str) -> bytes:
        told = {
            "id": f"wamid.bench{number}",
            "status": status,
            "timestamp": str(int(time.time())),
            "recipient_id": "525512345678",
            "biz_opaque_callback_data": f"sw1:{WORKSPACE}:m{number}",
        }
        metadata = {"display_phone_number": "15550100777", "phone_number_id": SENDER}
        value = {"messaging_product": "whatsapp", "metadata": metadata, "statuses": [told]}
        entry = {"id": WABA, "changes": [{"value": value, "field": "messages"}]}
        return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()

    async def post(self, bodies: list[bytes]) -> None:
        waiting = iter(bodies)

        async def post_some(http: aiohttp.ClientSession) -> None:
            for body in waiting:
                signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
                headers = {"x-hub-signature-256": f"sha256={signature}"}
                url = f"{self.urls['webhook_ingest']}/webhooks/meta"
                async with http.post(url, data=body, headers=headers) as answer:
                    answer.raise_for_status()

        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(post_some(http) for _ in range(POSTS_AT_ONCE)))

    async def read_messages(self) -> int:
        """How many of this round's messages the log shows as read; 0 while it isn't up."""
        url = f"{self.urls.get('message_log')}/v1/workspaces/{WORKSPACE}/campaigns/bench-{self.numbers.start}"
        async with httpx.AsyncClient(timeout=60) as http:
            with contextlib.suppress(httpx.TransportError, httpx.UnsupportedProtocol):
                answer = await http.get(url, headers=HEADERS)
                return int(answer.json()["by_status"].get("read", 0)) if answer.status_code == 200 else 0
        return 0


async def run(environment: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@contextlib.asynccontextmanager
async def simulator() -> AsyncIterator[tuple[psutil.Process, str]]:
    port = 21100
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "meta_simulator",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await http.get(f"{url}/_sim/scenarios")
                    break
                await asyncio.sleep(0.1)
            components = [{"type": "BODY", "text": "Hola {{1}}"}]
            template = {"name": "autumn_sale", "language": "es_MX", "category": "MARKETING", "components": components}
            await http.put(f"{url}/_sim/accounts/{WABA}", json={"portfolio_id": "3", "templates": [template]})
            number: dict[str, Any] = {
                "waba_id": WABA,
                "display_phone_number": "15550100777",
                "access_token": "bench-token",
                "app_id": "1",
                "app_secret": SECRET,
                # No webhook_url: the door gets its webhooks from this script.
                "messages_per_second": 1000,
            }
            (await http.put(f"{url}/_sim/numbers/{SENDER}", json=number)).raise_for_status()
            await http.put(f"{url}/_sim/settings", json={"latency_ms": 20})
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        await process.wait()


def show(took: dict[str, list[Took]]) -> None:
    columns = ("service", "messages/s", "own", "Kafka", "PostgreSQL", "simulator", "start s")
    table = Table(*columns, title="CPU per message in µs, and of the start in s")
    for service, (small, large) in took.items():
        each = (large.own - small.own) / (large.messages - small.messages)
        servers = [seconds / large.messages for seconds in (large.kafka, large.postgres, large.simulator)]
        table.add_row(
            service,
            f"{large.pace:,.0f}" if large.pace else "all at once",
            *(f"{seconds * 1e6:,.0f}" for seconds in (each, *servers)),
            f"{small.own - each * small.messages:.2f}",
        )
    console.print(table)


async def main(messages: int) -> None:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres, simulator() as meta:
        await run(os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "sendwhy", "topics")
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
        await consumer.start()
        bench = Bench(kafka, postgres, consumer, meta)
        await bench.prepare()
        small = max(1, messages // 5)
        await bench.go(range(small))
        await bench.go(range(small, small + messages))
        await consumer.stop()
        show(bench.took)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    asyncio.run(main(parser.parse_args().messages))
