"""What a stage costs: messages per second and CPU microseconds per message, for each service alone.

    .venv/bin/python tests/bench/stages.py --messages 5000

One message's way is gone stage by stage: everything is on the topic before a service starts, the service runs alone,
and ends when nothing is left. Each service's CPU is that of its process only; Kafka's and PostgreSQL's stand in their
own columns, per message too. Times are printed, never asserted: this machine is shared.
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
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from cryptography.fernet import Fernet
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
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
class Row:
    """What one stage took: seconds on the clock, and CPU seconds of the service, Kafka and PostgreSQL."""

    name: str
    messages: int
    seconds: float
    own: float
    kafka: float
    postgres: float


class Bench:
    def __init__(self, kafka: Kafka, postgres: Postgres, consumer: AIOKafkaConsumer, meta: str, messages: int) -> None:
        self.kafka, self.postgres, self.consumer = kafka, postgres, consumer
        self.meta, self.messages = meta, messages
        self.rows: list[Row] = []
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
        await run(environment, service, "migrate")
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

    async def measure(self, name: str, topic: str, expected: int, process: psutil.Process) -> None:
        """From now until `expected` records stand on `topic`."""
        servers = [self.kafka.process.pid, self.postgres.process.pid]
        before = [cpu(process), *(cpu(psutil.Process(pid), children=True) for pid in servers)]
        started = time.monotonic()
        while await self.count(topic) < expected:
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - started
        after = [cpu(process), *(cpu(psutil.Process(pid), children=True) for pid in servers)]
        own, kafka, postgres = (late - early for early, late in zip(before, after, strict=True))
        self.rows.append(Row(name, self.messages, seconds, own, kafka, postgres))
        console.print(f"{name}: {self.messages / seconds:,.0f} messages/s")

    async def count(self, topic: str) -> int:
        places = [TopicPartition(topic, number) for number in range(TOPICS[Topic(topic)].partitions)]
        return sum((await self.consumer.end_offsets(places)).values())

    async def publish(self, topic: str, bodies: list[bytes]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap, linger_ms=20)
        await producer.start()
        pending = [await producer.send(topic, body, key=str(n).encode()) for n, body in enumerate(bodies)]
        await asyncio.gather(*pending)
        await producer.stop()

    # --- the way of a message ---

    async def consent(self) -> None:
        async with self.running("consent") as process:
            rows = "".join(
                f"c{n},+5255{n:08d},SUBSCRIBED,import,bench\n" for n in range(10_000_000, 10_000_000 + self.messages)
            )
            async with httpx.AsyncClient(timeout=600) as http:
                answer = await http.post(
                    f"{self.urls['consent']}/v1/workspaces/{WORKSPACE}/contacts/import",
                    content=("contact_id,phone,marketing_state,source,proof\n" + rows).encode(),
                    headers=HEADERS | {"content-type": "text/csv"},
                )
                answer.raise_for_status()
            await self.publish("send.requested", [self.request(n) for n in range(self.messages)])
            await self.measure("consent", "send.consented", self.messages, process)

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
            "origin": {"kind": "campaign", "id": "bench"},
            "content": {"type": "template", "template": template},
            "requested_at": datetime.now(UTC).isoformat(),
        }
        return json.dumps(body).encode()

    async def prepare(self) -> None:
        """Credits and a number, before anything is on its way."""
        account = f"/v1/workspaces/{WORKSPACE}/top-ups"
        sender = f"/v1/workspaces/{WORKSPACE}/senders/{SENDER}"
        number = {"access_token": "bench-token", "waba_id": WABA, "app_id": "1", "default": True}
        async with self.running("billing"), self.running("dispatcher"), httpx.AsyncClient(timeout=60) as http:
            credits = {"credits": 1_000_000, "reference": "bench"}
            keyed = HEADERS | {"idempotency-key": "bench"}
            (await http.post(self.urls["billing"] + account, json=credits, headers=keyed)).raise_for_status()
            (await http.put(self.urls["dispatcher"] + sender, json=number, headers=HEADERS)).raise_for_status()
            await asyncio.sleep(3)  # until its templates are synced

    async def billing(self) -> None:
        async with self.running("billing") as process:
            await self.measure("billing", "send.funded", self.messages, process)

    async def dispatcher(self) -> None:
        async with self.running("dispatcher") as process:
            await self.measure("dispatcher", "status.updated", self.messages, process)

    async def door(self) -> None:
        async with self.running("webhook_ingest") as process:
            bodies = [
                self.webhook(number, status)
                for status in ("sent", "delivered", "read")
                for number in range(self.messages)
            ]
            measured = asyncio.create_task(self.measure("webhook-ingest", "status.updated", 4 * self.messages, process))
            await self.post(bodies)
            await measured

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

        async def post_some(http: httpx.AsyncClient) -> None:
            for body in waiting:
                signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
                headers = {"x-hub-signature-256": f"sha256={signature}"}
                answer = await http.post(f"{self.urls['webhook_ingest']}/webhooks/meta", content=body, headers=headers)
                answer.raise_for_status()

        from httpx_aiohttp import AiohttpTransport

        async with httpx.AsyncClient(transport=AiohttpTransport(), timeout=60) as http:
            await asyncio.gather(*(post_some(http) for _ in range(POSTS_AT_ONCE)))

    async def message_log(self) -> None:
        started = time.monotonic()
        async with self.running("message_log") as process:
            early = cpu(process)
            async with httpx.AsyncClient(timeout=60) as http:
                while True:
                    answer = await http.get(
                        f"{self.urls['message_log']}/v1/workspaces/{WORKSPACE}/campaigns/bench", headers=HEADERS
                    )
                    if answer.status_code == 200 and answer.json()["by_status"].get("read", 0) >= self.messages:
                        break
                    await asyncio.sleep(0.5)
            seconds = time.monotonic() - started
            self.rows.append(Row("message-log (with its start)", self.messages, seconds, cpu(process) - early, 0, 0))


def cpu(process: psutil.Process, *, children: bool = False) -> float:
    everyone = [process, *(process.children(recursive=True) if children else ())]
    total = 0.0
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


async def run(environment: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@contextlib.asynccontextmanager
async def simulator() -> AsyncIterator[str]:
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
                # Nobody listens: the door gets its webhooks from this script.
                "webhook_url": "http://127.0.0.1:9/",
                "messages_per_second": 1000,
            }
            (await http.put(f"{url}/_sim/numbers/{SENDER}", json=number)).raise_for_status()
            await http.put(f"{url}/_sim/settings", json={"latency_ms": 20})
        yield url
    finally:
        process.terminate()
        await process.wait()


def show(rows: list[Row]) -> None:
    table = Table("service", "messages/s", "own CPU µs", "Kafka CPU µs", "PostgreSQL CPU µs", title="per message")
    for row in rows:
        each = [f"{seconds / row.messages * 1e6:,.0f}" for seconds in (row.own, row.kafka, row.postgres)]
        table.add_row(row.name, f"{row.messages / row.seconds:,.0f}", *each)
    console.print(table)


async def main(messages: int) -> None:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres, simulator() as meta:
        await run(os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "sendwhy", "topics")
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
        await consumer.start()
        bench = Bench(kafka, postgres, consumer, meta, messages)
        for stage in (bench.prepare, bench.consent, bench.billing, bench.dispatcher, bench.door, bench.message_log):
            await stage()
        await consumer.stop()
        show(bench.rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    asyncio.run(main(parser.parse_args().messages))
