"""What the door takes: signed webhooks at a fixed rate, one status each, of messages that are known.

    .venv/bin/python tests/bench/webhooks.py --rate 3000 --seconds 20
    .venv/bin/python tests/bench/webhooks.py --times 3

webhook-ingest runs on a Kafka and a PostgreSQL of its own. A load generator of its own process sends each webhook at
its moment, whether or not earlier ones have been answered, and counts an answer's time from that moment, so that a
stalled door can't hide behind a stalled sender. Nothing is sent twice: a refusal is counted by its status. At the end
everything that was answered 200 must be on webhook.received, and nothing more often than it was sent.

Figures are printed, never asserted, apart from that: machines are shared. CPU is that of the measured seconds only,
and of catching up after them.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import psutil
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from posts import NO_ANSWER, Posts, post_request
from processes import cpu_of
from rich.console import Console
from rich.table import Table
from sendwhy.events import SenderUpdated, Status, StatusUpdated, To, event_id_of
from sendwhy.kafka import Producer, create_topics
from sendwhy.metrics import Metrics
from sendwhy.reasons import Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import TOPICS, Topic, outgoing

PORT, APP, SECRET, WORKSPACE = 21950, "1", "bench-app-secret", "bench"
SENDER, WABA = "100000000000777", "200000000000777"
TICK_SECONDS = 0.004
ANSWER_SECONDS = 30.0
CAUGHT_UP_SECONDS = 300.0
console = Console(width=120)


def webhook(number: int) -> bytes:
    """One `delivered`, as Meta writes it."""
    told = {
        "id": wamid(number),
        "status": "delivered",
        "timestamp": "1795340008",
        "recipient_id": "525512345678",
        "biz_opaque_callback_data": f"sw1:{WORKSPACE}:m{number}",
        "pricing": {"billable": True, "pricing_model": "PMP", "type": "regular", "category": "marketing"},
    }
    metadata = {"display_phone_number": "15550100777", "phone_number_id": SENDER}
    value = {"messaging_product": "whatsapp", "metadata": metadata, "statuses": [told]}
    entry = {"id": WABA, "changes": [{"value": value, "field": "messages"}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


def wamid(number: int) -> str:
    return f"wamid.HBgMNTI1NTEyMzQ1Njc4FQIAERgSMjlDMUIyODlF{number:08}"


# --- the load generator: a process of its own ---


class Load:
    """Offers `requests` at `rate` a second; `statuses` (0: no answer) and `seconds` by number."""

    def __init__(self, requests: Sequence[bytes], rate: float) -> None:
        self.requests, self._rate = requests, rate
        self.statuses = array("h", [0]) * len(requests)
        self.seconds = array("d", [0.0]) * len(requests)
        self._due = array("d", [0.0]) * len(requests)
        self._posts = Posts("127.0.0.1", PORT, self._answered)
        self._left = len(requests)
        self._done = asyncio.Event()

    async def run(self) -> tuple[float, float]:
        """Returns over how many seconds the requests were really offered, and until all were answered."""
        loop = asyncio.get_running_loop()
        started, sent = loop.time(), 0
        while sent < len(self.requests):
            due = min(len(self.requests), int((loop.time() - started) * self._rate) + 1)
            for number in range(sent, due):
                self._due[number] = started + number / self._rate
                self._posts.offer(number, self.requests[number])
            sent = due
            await asyncio.sleep(TICK_SECONDS)
        offered = loop.time() - started
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), ANSWER_SECONDS)
        return offered, loop.time() - started

    def _answered(self, number: int, status: int) -> None:
        self.statuses[number] = status
        if status != NO_ANSWER:
            self.seconds[number] = asyncio.get_running_loop().time() - self._due[number]
        self._left -= 1
        if self._left == 0:
            self._done.set()


async def generate(first: int, count: int, rate: float, out: Path) -> None:
    def request(number: int) -> bytes:
        body = webhook(number)
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return post_request("/webhooks/meta", "127.0.0.1", body, signature)

    load = Load([request(number) for number in range(first, first + count)], rate)
    made = cpu_of(psutil.Process(), alone=True)
    offered, lasted = await load.run()
    result = {
        "offered_seconds": offered,
        "lasted_seconds": lasted,
        "statuses": load.statuses.tolist(),
        "seconds": load.seconds.tolist(),
        "cpu": cpu_of(psutil.Process(), alone=True) - made,
    }
    await asyncio.to_thread(out.write_text, json.dumps(result))


# --- what is measured ---


@dataclass
class Measured:
    """Of one run: `cpu` seconds by process; `lag` when the last webhook was answered."""

    first: int
    offered_seconds: float
    lasted_seconds: float
    statuses: list[int]
    seconds: list[float]
    cpu: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    lag: int = 0
    caught_up_seconds: float = 0.0


class Bench:
    def __init__(self, kafka: Kafka, postgres: Postgres, database: str, state: Path) -> None:
        self.kafka, self.postgres, self.database, self.state = kafka, postgres, database, state
        self.settings = KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap)
        self.service: psutil.Process
        self.peak_bytes = 0

    def environment(self) -> dict[str, str]:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DATABASE_URL": self.database,
            "HTTP_PORT": str(PORT),
            "META_APP_SECRETS": f"{APP}:{SECRET}",
            "META_VERIFY_TOKEN": "bench-verify",
            "API_TOKENS": "",
            "PRIVACY_KEY": "bench-privacy-key-0123456789",
        }
        return os.environ | {f"SENDWHY_{name}": value for name, value in settings.items()}

    async def tell_of_messages(self, count: int) -> None:
        """The number, and `accepted` of every message, before the service starts."""
        now = datetime.now(UTC)
        producer = Producer(self.settings, Metrics(Service.DISPATCHER))
        await producer.start()
        sender = SenderUpdated(
            event_id=event_id_of(SENDER, "bench"),
            occurred_at=now,
            sender_id=SENDER,
            workspace_id=WORKSPACE,
            version=1,
            waba_id=WABA,
            app_id=APP,
            default=True,
        )
        await producer.publish([outgoing(sender, source="bench")])
        for start in range(0, count, 5_000):
            await producer.publish(
                [outgoing(accepted(n, now), source="bench") for n in range(start, min(count, start + 5_000))]
            )
        await producer.stop()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        environment = self.environment()
        await run(environment, "webhook_ingest", "migrate")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "webhook_ingest",
            "serve",
            env=environment,
            stderr=(self.state / "webhook_ingest.log").open("wb"),
        )
        try:
            await ready()
            self.service = psutil.Process(process.pid)
            yield
        finally:
            process.terminate()
            await process.wait()

    async def known(self, count: int) -> None:
        """Wait until the service knows that many messages."""
        connection = await asyncpg.connect(self.database)
        while await connection.fetchval("select count(*) from message") < count:
            await asyncio.sleep(0.2)
        await connection.close()

    async def offer(self, first: int, count: int, rate: float) -> Measured:
        out = self.state / f"load-{first}.json"
        watched = self.watched()
        before = {name: cpu_of(process) for name, process in watched.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--generate", f"{first}:{count}", "--rate", str(rate), "--out", str(out)
        )
        watching = asyncio.create_task(self.watch_memory())
        assert await process.wait() == 0
        load = json.loads(out.read_text())
        result = Measured(first, load["offered_seconds"], load["lasted_seconds"], load["statuses"], load["seconds"])
        result.lag, ended = await self.lag(), time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUGHT_UP_SECONDS):
                while await self.lag():
                    await asyncio.sleep(0.2)
        result.caught_up_seconds = time.monotonic() - ended
        watching.cancel()
        result.cpu = {name: cpu_of(process) - before[name] for name, process in watched.items()}
        result.cpu["load generator"] = load["cpu"]
        result.peak_bytes = self.peak_bytes
        return result

    def watched(self) -> dict[str, psutil.Process]:
        return {
            "door and parser": self.service,
            "Kafka": psutil.Process(self.kafka.process.pid),
            "PostgreSQL": psutil.Process(self.postgres.process.pid),
        }

    async def watch_memory(self) -> None:
        self.peak_bytes = 0
        while True:
            self.peak_bytes = max(self.peak_bytes, self.service.memory_info().rss)
            await asyncio.sleep(0.25)

    async def lag(self) -> int:
        """Webhooks that the parser hasn't committed yet."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        group = f"sendwhy-{Service.WEBHOOK_INGEST}.{Topic.WEBHOOK_RECEIVED}"
        committed = await admin.list_consumer_group_offsets(group)
        await admin.close()
        async with AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap) as consumer:
            ends = await consumer.end_offsets(places())
        return sum(end - (committed[place].offset if place in committed else 0) for place, end in ends.items())

    async def received(self) -> Counter[bytes]:
        """How often each delivery stands on webhook.received, by its digest."""
        found: Counter[bytes] = Counter()
        async with AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap) as consumer:
            consumer.assign(places())
            await consumer.seek_to_beginning()
            ends = sum((await consumer.end_offsets(places())).values())
            while found.total() < ends:
                for records in (await consumer.getmany(timeout_ms=1000, max_records=5000)).values():
                    found.update(hashlib.sha256(record.value or b"").digest() for record in records)
        return found


def accepted(number: int, now: datetime) -> StatusUpdated:
    return StatusUpdated(
        event_id=event_id_of(f"m{number}", "accepted"),
        occurred_at=now,
        observed_at=now,
        message_id=f"m{number}",
        workspace_id=WORKSPACE,
        sender_id=SENDER,
        provider_message_id=wamid(number),
        service=Service.DISPATCHER,
        status=Status.ACCEPTED,
        to=To(contact_id=f"c{number}"),
        receipt_deadline=now + timedelta(days=1),
    )


def places() -> list[TopicPartition]:
    return [TopicPartition(Topic.WEBHOOK_RECEIVED, n) for n in range(TOPICS[Topic.WEBHOOK_RECEIVED].partitions)]


async def run(environment: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, env=environment)
    assert await process.wait() == 0


async def ready() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(f"http://127.0.0.1:{PORT}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.1)


# --- what is printed ---


def show(result: Measured) -> None:
    offered, answers = len(result.statuses), Counter(result.statuses)
    taken = sorted(s for s, status in zip(result.seconds, result.statuses, strict=True) if status == 200)
    table = Table("what", "figure", title=f"{offered:,} webhooks, {result.offered_seconds:.1f} s")
    for name, value in (*_pace(result, answers[200], offered), *_times(taken)):
        table.add_row(name, value)
    refusals = ", ".join(f"{n:,} × {status or 'no answer'}" for status, n in answers.items() if status != 200)
    table.add_row("not taken", refusals or "none")
    table.add_row("door and parser, memory", f"{result.peak_bytes / 2**20:,.0f} MB at most")
    table.add_row("parser's lag at the end", f"{result.lag:,}, caught up after {result.caught_up_seconds:.1f} s")
    console.print(table)
    spent = Table("process", "CPU s", "µs per webhook offered", title="CPU")
    for name, seconds in (*result.cpu.items(), ("all", sum(result.cpu.values()))):
        spent.add_row(name, f"{seconds:.2f}", f"{seconds / offered * 1e6:,.0f}")
    console.print(spent)


def _pace(result: Measured, taken: int, offered: int) -> Iterator[tuple[str, str]]:
    yield "offered/s", f"{offered / result.offered_seconds:,.0f}"
    yield "accepted/s", f"{taken / result.lasted_seconds:,.0f}"


def _times(taken: list[float]) -> Iterator[tuple[str, str]]:
    if not taken:
        return
    yield "median", f"{statistics.median(taken) * 1000:,.0f} ms"
    yield "p99", f"{taken[int(len(taken) * 0.99)] * 1000:,.0f} ms"
    yield "above 1 s", f"{sum(1 for s in taken if s > 1) / len(taken):.2%}"


def check(results: Sequence[Measured], received: Counter[bytes]) -> bool:
    """Whether all that was answered 200 is there, and nothing more often than it was sent."""
    missing = [
        number
        for result in results
        for number, status in enumerate(result.statuses, result.first)
        if status == 200 and not received[hashlib.sha256(webhook(number)).digest()]
    ]
    doubled = sum(1 for times in received.values() if times > 1)
    console.print(f"answered 200 and not on webhook.received: {len(missing)}; there more than once: {doubled}")
    return not missing and not doubled


async def main(rate: float, seconds: float, warm_up: float) -> bool:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres:
        await create_topics(KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap))
        bench = Bench(kafka, postgres, await postgres.ensure_database("webhook_ingest"), state)
        first, count = int(rate * warm_up), int(rate * seconds)
        await bench.tell_of_messages(first + count)
        async with bench.running():
            await bench.known(first + count)
            results = [await bench.offer(0, first, rate)] if first else []
            results.append(await bench.offer(first, count, rate))
            show(results[-1])
            return check(results, await bench.received())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=3000, help="webhooks a second (3000)")
    parser.add_argument("--times", type=float, default=1, help="so many times that rate (1)")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--warm-up", type=float, default=5, help="seconds before, in which Kafka's JVM compiles (5)")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        start, number = map(int, given.generate.split(":"))
        uvloop.run(generate(start, number, given.rate, given.out))
    else:
        rate = given.rate * given.times
        sys.exit(0 if asyncio.run(main(rate, given.seconds, given.warm_up)) else 1)
