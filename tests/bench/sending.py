"""What the dispatcher makes of one number, or of many: messages/s, its worst sliding second, CPU by process.

    .venv/bin/python tests/bench/sending.py --latency 0 50 300 --messages 20000
    .venv/bin/python tests/bench/sending.py --latency 50 --senders 20 --per-second 80
    .venv/bin/python tests/bench/sending.py --latency 50 --profile

The simulated Meta is a process of its own and answers after `--latency` ms. All messages of a round stand on
send.funded, and in the queue, before the first may go (`send_at`): so what queueing costs and what sending costs are
told apart. Messages/s and the worst sliding second are those that the simulator has seen (`at` in its log), the latter
per number against its limit. Meta tells a number's limit as STANDARD (80) or HIGH (1,000), whatever the simulator
allows. `--profile` runs the dispatcher under cProfile, which makes it slow, and shows where its own time goes.

Figures are printed, never asserted: machines are shared. CPU microseconds vary less than messages/s.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pstats
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
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
from stages import HEADERS, TOKEN, WABA, WORKSPACE, run


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT, META_PORT = unused_port(), unused_port()
URL, META = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{META_PORT}"
FIRST_SENDER = 100000000000100
STARTS_AFTER_SECONDS = 3.0
QUEUED_PER_SECOND = 1500
ACCEPTED_WITHIN_SECONDS = 900
PROFILE_LINES = 45
console = Console(width=140)
Cpu = dict[str, float]


@dataclass
class Round:
    """What one latency gave. `queueing` and `sending`: CPU seconds by process; `worst`: messages in the worst second of
    any number; `accepted`: messages/s from the first call to the last accepted event in Kafka."""

    latency_ms: int
    messages: int
    calls: int
    queueing: Cpu
    sending: Cpu
    called: float
    accepted: float
    worst: int
    in_flight_max: int


class Bench:
    def __init__(self, options: argparse.Namespace, kafka: Kafka, postgres: Postgres, meta: psutil.Process) -> None:
        self.options, self.kafka, self.postgres, self.meta = options, kafka, postgres, meta
        self.senders = [str(FIRST_SENDER + number) for number in range(options.senders)]
        self.first = 0
        self.database = ""

    async def environment(self) -> dict[str, str]:
        self.database = await self.postgres.ensure_database("dispatcher")
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DATABASE_URL": self.database,
            "HTTP_PORT": str(PORT),
            "API_TOKENS": f"{TOKEN}:admin:*",
            "META_GRAPH_URL": META,
            "TOKEN_ENCRYPTION_KEY": Fernet.generate_key().decode(),
            "PRIVACY_KEY": "bench-privacy-key-0123456789",
        }
        return os.environ | {f"SENDWHY_{name}": value for name, value in settings.items()}

    async def tell_meta(self) -> None:
        components = [{"type": "BODY", "text": "Hola {{1}}"}]
        template = {"name": "autumn_sale", "language": "es_MX", "category": "MARKETING", "components": components}
        async with httpx.AsyncClient() as http:
            await http.put(f"{META}/_sim/accounts/{WABA}", json={"portfolio_id": "3", "templates": [template]})
            for sender in self.senders:
                number: dict[str, Any] = {
                    "waba_id": WABA,
                    "access_token": "bench-token",
                    "app_id": "1",
                    "messages_per_second": self.options.per_second,
                }
                (await http.put(f"{META}/_sim/numbers/{sender}", json=number)).raise_for_status()

    async def set_up(self) -> None:
        """Numbers with their templates, and everybody as a contact."""
        async with httpx.AsyncClient(timeout=60) as http:
            for sender in self.senders:
                number = {"access_token": "bench-token", "waba_id": WABA, "app_id": "1"}
                path = f"/v1/workspaces/{WORKSPACE}/senders/{sender}"
                (await http.put(URL + path, json=number, headers=HEADERS)).raise_for_status()
        total = self.options.messages * len(self.options.latency)
        await self.publish(Topic.CONTACT_UPDATED, (contact(number) for number in range(total)))
        await self.until("select count(*) from contact", total)
        synced = "select count(*) from sender where templates_synced_at is not null and messages_per_second is not null"
        await self.until(synced, len(self.senders))

    async def until(self, count: str, wanted: int) -> None:
        connection = await asyncpg.connect(self.database)
        async with asyncio.timeout(ACCEPTED_WITHIN_SECONDS):
            while await connection.fetchval(count) < wanted:
                await asyncio.sleep(0.2)
        await connection.close()

    async def publish(self, topic: Topic, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap, linger_ms=20)
        await producer.start()
        pending = [await producer.send(topic, json.dumps(body).encode(), key=key.encode()) for key, body in records]
        await asyncio.gather(*pending)
        await producer.stop()

    def cpu(self, dispatcher: psutil.Process) -> Cpu:
        return {
            "dispatcher": cpu_of(dispatcher, alone=True),
            "PostgreSQL": cpu_of(psutil.Process(self.postgres.process.pid)),
            "Kafka": cpu_of(psutil.Process(self.kafka.process.pid)),
            "simulator": cpu_of(self.meta, alone=True),
        }

    async def go(self, dispatcher: psutil.Process, latency_ms: int) -> Round:
        messages = self.options.messages
        async with httpx.AsyncClient() as http:
            (await http.put(f"{META}/_sim/settings", json={"latency_ms": latency_ms})).raise_for_status()
        seconds = STARTS_AFTER_SECONDS + messages / QUEUED_PER_SECOND * (3 if self.options.profile else 1)
        start = datetime.now(UTC) + timedelta(seconds=seconds)
        numbers = range(self.first, self.first + messages)
        self.first += messages
        before = self.cpu(dispatcher)
        await self.publish(Topic.SEND_FUNDED, (self.funded(number, start) for number in numbers))
        await self.until("select count(*) from message", self.first)
        late = (datetime.now(UTC) - start).total_seconds()
        if late > 0:
            console.print(f"queued {late:.1f} s after the first was due: queueing and sending are mixed")
        queued = self.cpu(dispatcher)
        accepted_at = await self.accepted(start)
        ended = self.cpu(dispatcher)
        calls = await self.calls(start - timedelta(seconds=5))
        first, last = min(at for _, at in calls), max(at for _, at in calls)
        return Round(
            latency_ms=latency_ms,
            messages=messages,
            calls=len(calls),
            queueing={name: queued[name] - before[name] for name in queued},
            sending={name: ended[name] - queued[name] for name in queued},
            called=(len(calls) - 1) / (last - first),
            accepted=messages / (accepted_at - first),
            worst=worst_second(calls),
            in_flight_max=most_within(sorted(at for _, at in calls), max(latency_ms, 1) / 1000),
        )

    async def accepted(self, start: datetime) -> float:
        """Wait until every message so far is told to be accepted; returns when (unix seconds)."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap)
        await consumer.start()
        places = [
            TopicPartition(Topic.STATUS_UPDATED, number) for number in range(TOPICS[Topic.STATUS_UPDATED].partitions)
        ]
        await asyncio.sleep(max(0.0, (start - datetime.now(UTC)).total_seconds()))
        async with asyncio.timeout(ACCEPTED_WITHIN_SECONDS):
            while sum((await consumer.end_offsets(places)).values()) < self.first:
                await asyncio.sleep(0.1)
        await consumer.stop()
        return time.time()

    async def calls(self, since: datetime) -> list[tuple[str, float]]:
        """The sends that the simulator has seen: number and moment (unix seconds)."""
        found = []
        async with httpx.AsyncClient(timeout=120) as http:
            params = {"since": since.isoformat()}
            async with http.stream("GET", f"{META}/_sim/calls", params=params) as answer:
                async for line in answer.aiter_lines():
                    call = json.loads(line)
                    if call["method"] == "POST":
                        found.append((call["phone_number_id"], datetime.fromisoformat(call["at"]).timestamp()))
        return found

    def funded(self, number: int, send_at: datetime) -> tuple[str, dict[str, Any]]:
        template = {
            "name": "autumn_sale",
            "language": {"code": "es_MX"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
        }
        request = {
            "message_id": f"m{number}",
            "workspace_id": WORKSPACE,
            "sender_id": self.senders[number % len(self.senders)],
            "to": {"contact_id": contact_id(number)},
            "origin": {"kind": "campaign", "id": "bench", "name": "Bench"},
            "content": {"type": "template", "template": template},
            "requested_at": moment(send_at - timedelta(minutes=1)),
            "metadata": {"order": str(number)},
        }
        funded = {
            "event_id": f"00000000-0000-4000-8000-{number:012}",
            "occurred_at": moment(send_at - timedelta(minutes=1)),
            "request": request,
            "resolved": {
                "contact_id": contact_id(number),
                "phone": phone(number),
                "country": "MX",
                "calling_code": "52",
                "purpose": "marketing",
            },
            "contact_version": 1,
            "needs_subscription": True,
            "send_at": moment(send_at),
            "expires_at": moment(send_at + timedelta(hours=2)),
            "price": {"credits": 1, "category": "marketing", "calling_code": "52"},
        }
        return f"m{number}", funded


def contact_id(number: int) -> str:
    return f"c{10_000_000 + number}"


def phone(number: int) -> str:
    return f"+5255{10_000_000 + number}"


def contact(number: int) -> tuple[str, dict[str, Any]]:
    state = {
        "event_id": f"00000000-0000-4000-9000-{number:012}",
        "occurred_at": moment(datetime.now(UTC)),
        "workspace_id": WORKSPACE,
        "contact_id": contact_id(number),
        "version": 1,
        "phone": phone(number),
        "name": f"Inés {number}",
        "marketing_state": "SUBSCRIBED",
        "since": "2026-01-01T00:00:00Z",
        "source": "import",
        "proof": "bench",
    }
    return f"{WORKSPACE}/{contact_id(number)}", state


def moment(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def worst_second(calls: list[tuple[str, float]]) -> int:
    """The most calls of one number within any second."""
    by_number: dict[str, list[float]] = defaultdict(list)
    for number, at in calls:
        by_number[number].append(at)
    return max(most_within(sorted(moments), 1.0) for moments in by_number.values())


def most_within(moments: list[float], seconds: float) -> int:
    most = start = 0
    for end, at in enumerate(moments):
        while moments[start] <= at - seconds:
            start += 1
        most = max(most, end - start + 1)
    return most


@contextlib.asynccontextmanager
async def running(
    arguments: list[str], ready: str, environment: dict[str, str] | None = None
) -> AsyncIterator[psutil.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(ready)).status_code == 200:
                        break
                assert process.returncode is None, f"{arguments} ended"
                await asyncio.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            # SIGTERM ends it before cProfile has written anything.
            process.send_signal(signal.SIGINT if "cProfile" in arguments else signal.SIGTERM)
        await process.wait()


def show(options: argparse.Namespace, rounds: list[Round]) -> None:
    names = list(rounds[0].sending)
    table = Table(
        "latency ms", "called/s", "accepted/s", "worst second", "per number", "calls", "at once", title="Pace"
    )
    for one in rounds:
        share = one.worst / options.per_second
        table.add_row(
            str(one.latency_ms),
            f"{one.called:,.0f}",
            f"{one.accepted:,.0f}",
            f"{one.worst} of {options.per_second} ({share:.0%})",
            f"{one.called / options.senders:,.1f}/s",
            f"{one.calls} for {one.messages}",
            str(one.in_flight_max),
        )
    console.print(table)
    for title, part in (("queueing", "queueing"), ("sending", "sending")):
        costs = Table("latency ms", *names, "all", title=f"CPU µs per message: {title}")
        for one in rounds:
            each = {name: getattr(one, part)[name] / one.messages * 1e6 for name in names}
            costs.add_row(str(one.latency_ms), *(f"{each[name]:,.0f}" for name in names), f"{sum(each.values()):,.0f}")
        console.print(costs)


def show_profile(path: Path, messages: int) -> None:
    """The functions with the most own time, per message."""
    stats: Any = pstats.Stats(str(path))
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])
    table = Table("own µs", "with what it calls", "calls", "function", title="The dispatcher's own time per message")
    by_file: Counter[str] = Counter()
    for (file, _line, function), (_primitive, count, own, whole, _callers) in rows:
        place = "/".join(Path(file).parts[-2:])
        by_file[place] += own
        if table.row_count < PROFILE_LINES:
            each = [f"{seconds / messages * 1e6:,.1f}" for seconds in (own, whole)]
            table.add_row(*each, f"{count / messages:,.2f}", f"{place}: {function}")
    console.print(table)
    files = Table("own µs", "file")
    for place, own in by_file.most_common(25):
        files.add_row(f"{own / messages * 1e6:,.1f}", place)
    console.print(files)


async def main(options: argparse.Namespace) -> None:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    profile = state / "dispatcher.profile"
    simulator = ["-m", "meta_simulator", "--host", "127.0.0.1", "--port", str(META_PORT)]
    served = ["-m", "cProfile", "-o", str(profile)] if options.profile else []
    async with (
        Kafka(state) as kafka,
        Postgres(state) as postgres,
        running(simulator, f"{META}/_sim/scenarios") as meta,
    ):
        await run(os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "sendwhy", "topics")
        bench = Bench(options, kafka, postgres, meta)
        environment = await bench.environment()
        await run(environment, "dispatcher", "migrate")
        await bench.tell_meta()
        serve = [*served, "-m", "dispatcher", "serve"]
        async with running(serve, f"{URL}/readyz", environment) as dispatcher:
            await bench.set_up()
            rounds = []
            for latency_ms in options.latency:
                rounds.append(await bench.go(dispatcher, latency_ms))
                console.print(f"{latency_ms} ms: {options.messages} messages are sent")
            memory = dispatcher.memory_info().rss / 2**20
    show(options, rounds)
    console.print(f"the dispatcher's memory at the end: {memory:.0f} MB")
    if options.profile:
        show_profile(profile, options.messages * len(options.latency))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 50, 300], help="ms until Meta answers")
    parser.add_argument("--messages", type=int, default=20_000, help="per latency, over all senders")
    parser.add_argument("--senders", type=int, default=1)
    parser.add_argument("--per-second", type=int, choices=(80, 1000), default=1000, help="each number's limit")
    parser.add_argument("--profile", action="store_true")
    asyncio.run(main(parser.parse_args()))
