"""What the dispatcher's own rounds cost at a steady rate: statements, and CPU by statement, without Kafka and HTTP.

    .venv/bin/python tests/bench/rounds.py --rate 300 --batch 20 --seconds 20

Batches of send.funded come at that rate; the real driver claims, a Meta within this process takes everything after
50 ms, results are stored and told, and each message's four statuses are heard. The first half is warm-up. A statement's
CPU is that of its PostgreSQL process since the statement before (Linux, /proc/PID/schedstat); Python's has the bench's
own in it.
"""

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import dispatcher
import lean_meta
from cryptography.fernet import Fernet
from dispatcher import people_store, queue_store, store
from dispatcher.answers import Taken
from dispatcher.app import SESSION
from dispatcher.decide import Template
from dispatcher.driver import Driver
from dispatcher.fleet import Fleet
from dispatcher.limits import Budget
from dispatcher.receipts import Accepted
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.store import NewSender, TemplateRow
from dispatcher.tokens import TokenVault
from local_stack.postgres import Postgres
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    Price,
    Purpose,
    Resolved,
    SendFunded,
    Status,
    StatusUpdated,
)
from sendwhy.kafka import BATCH_MAX_RECORDS, Producer
from sendwhy.postgres import leave_as_it_is, migrate
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import Stage
from sendwhy.topics import Outgoing, Topic, outgoing
from way import APP, KEY, Crowd, Line, request_of

SENDER, WORKSPACE = Crowd().sender(0), Crowd().workspace(0)
KNOWN_BEFORE = 40_000
SECRET = SecretStr(Fernet.generate_key().decode())
console = Console(width=150)

# As if the number had sent for a while: PostgreSQL plans otherwise for empty tables.
_HISTORY = """
insert into message (workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription,
                     not_before, expires_at, queued_at, state, outcome, wamid, attempts, funded, template)
select $1, 'old' || i, $2, 2, 'old', 'c' || i, '+52' || i, true, now(), now() + interval '1 day', now(), 'accepted',
       'accepted', 'wamid.' || i, 1, convert_to(repeat('x', 950), 'UTF8'), 'old/es_MX'
from generate_series(1, $3::int) i
"""


class Statements:
    """By text: how often, and microseconds of CPU."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.cpu: dict[str, float] = defaultdict(float)
        self.counting = False

    async def watch(self, connection: asyncpg.Connection) -> None:
        pid = connection.get_server_pid()
        last = cpu_of_process(pid)

        def on_query(query: Any) -> None:
            nonlocal last
            now = cpu_of_process(pid)
            if self.counting:
                text = re.sub(r"\s+", " ", query.query).strip()[:110]
                self.counts[text] += 1
                self.cpu[text] += now - last
            last = now

        connection.add_query_logger(on_query)


def cpu_of_process(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


class Taker:
    """Kafka's producer and Meta: both take everything."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []
        self.calls = 0

    async def publish(self, records: Sequence[Outgoing]) -> None:
        await asyncio.sleep(0.002)
        self.published += records

    async def send(self, *_: Any, may_start: Callable[[], bool], **__: Any) -> Taken | None:
        if not may_start():
            return None
        self.calls += 1
        wamid = f"wamid.{self.calls}"
        await asyncio.sleep(0.05)
        return Taken(wamid)


def funded(number: int, now: datetime) -> Outgoing:
    event = SendFunded(
        event_id=uuid4(),
        occurred_at=now,
        request=request_of(Crowd(), number),
        resolved=Resolved(
            contact_id=f"c{number:08}",
            phone=f"+5255{10_000_000 + number}",
            country="MX",
            calling_code="52",
            purpose=Purpose.MARKETING,
        ),
        contact_version=1,
        needs_subscription=True,
        send_at=now,
        expires_at=now + timedelta(hours=48),
        price=Price(credits=1, category="marketing", calling_code="52"),
    )
    return outgoing(event, source="billing")


def receipts_of(accepted: Outgoing) -> list[Outgoing]:
    """As the parser tells them."""
    told = json.loads(accepted.value or b"")
    now = datetime.now(UTC)
    names = ("message_id", "workspace_id", "sender_id", "provider_message_id")
    return [
        outgoing(
            StatusUpdated(
                event_id=uuid4(),
                occurred_at=now,
                observed_at=now,
                service=Service.WEBHOOK_INGEST,
                status=status,
                **{name: told[name] for name in names},
            ),
            source="webhook-ingest",
        )
        for status in (Status.SENT, Status.DELIVERED, Status.READ)
    ]


class Bench:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self.taker = Taker()
        settings = Settings(
            kafka_bootstrap_servers="nowhere:9092",
            database_url=SecretStr("postgresql://nowhere/x"),
            api_tokens=SecretStr(""),
            token_encryption_key=SECRET,
            privacy_key=SecretStr(KEY),
        )
        self.runtime = Runtime(Service.DISPATCHER, settings)
        self.runtime._pool = self.pool = pool
        self.runtime.producer = cast("Producer", self.taker)
        accepted, vault, budget = Accepted(), TokenVault(SECRET), Budget(settings.calls_in_flight_max)
        made_of: Any = (self.runtime, settings, self.taker, vault, budget)
        self.fleet = Fleet(self.runtime, lambda sender_id: Driver(sender_id, *made_of, accepted=accepted))
        self.lines: dict[Topic, Line] = {}
        self.runtime.stage = self._stage  # type: ignore[method-assign]
        Stages(self.runtime, settings, self.fleet, lambda: datetime.now(UTC), accepted).register()
        self.sealed = vault.seal(WORKSPACE, SENDER, "token")

    def _stage(self, topic: Topic, parse: Any, handle: Any, **options: Any) -> None:
        def stage(line: Line) -> Stage[Any]:
            ways: Any = {"pool": lambda: self.pool, "producer": line, "metrics": self.runtime.metrics}
            return Stage(topic, parse, handle, service=Service.DISPATCHER, **ways, **options)

        self.lines[topic] = Line(topic, stage)

    async def set_up(self, people: int) -> None:
        now = datetime.now(UTC)
        known = (SENDER, WORKSPACE, lean_meta.WABA, lean_meta.PORTFOLIO, APP, True, self.sealed)
        words = (
            lean_meta.TEMPLATE,
            lean_meta.LANGUAGE,
            "APPROVED",
            "MARKETING",
            [{"type": "BODY", "text": "Hola {{1}}"}],
        )
        template = TemplateRow(lean_meta.WABA, Template(*words, said_at=now), "POSITIONAL", None, now, 1)
        async with self.pool.acquire() as connection:
            await store.put_sender(connection, NewSender(*known), now)
            await connection.execute("update sender set templates_synced_at = now(), messages_per_second = 1000")
            await store.save_templates(connection, lean_meta.WABA, [template])
            await people_store.save_contacts(connection, [_contact(number, now) for number in range(people)])
            await connection.execute(_HISTORY, WORKSPACE, SENDER, KNOWN_BEFORE)
            await connection.execute("vacuum analyze")
            fence = await queue_store.take_over(connection, SENDER)
        assert fence is not None
        self.fleet._lease.renew(float("inf"))
        self.fleet._start(SENDER, fence)

    async def hear(self, messages: int) -> None:
        """All statuses of so many messages, as they come."""
        seen = 0
        pending: list[Outgoing] = []
        while pending or seen < messages:
            told = self.taker.published[seen:]
            seen += len(told)
            pending += [each for one in told for each in (one, *receipts_of(one))]
            batch, pending = pending[:BATCH_MAX_RECORDS], pending[BATCH_MAX_RECORDS:]
            if batch:
                await self.lines[Topic.STATUS_UPDATED].feed(batch)
            await asyncio.sleep(0.02)


def _contact(number: int, now: datetime) -> ContactUpdated:
    return ContactUpdated(
        event_id=uuid4(),
        occurred_at=now,
        workspace_id=WORKSPACE,
        contact_id=f"c{number:08}",
        version=1,
        phone=f"+5255{10_000_000 + number}",
        marketing_state=MarketingState.SUBSCRIBED,
        since=now,
        source="import",
    )


async def main(options: argparse.Namespace) -> None:
    batch, statements = options.batch, Statements()
    messages = int(options.rate * options.seconds) // (2 * batch) * 2 * batch
    async with Postgres(Path(tempfile.mkdtemp(prefix="sendwhy-rounds-"))) as postgres:
        url = await postgres.ensure_database("dispatcher")
        await migrate(url, Path(dispatcher.__file__ or "").parent / "migrations")
        async with asyncpg.create_pool(
            url, min_size=1, max_size=10, init=statements.watch, reset=leave_as_it_is, server_settings=SESSION
        ) as pool:
            bench = Bench(pool)
            await bench.set_up(messages)
            tasks = [asyncio.create_task(bench.runtime._sweep()), asyncio.create_task(bench.hear(messages))]
            now = datetime.now(UTC)
            records = [funded(number, now) for number in range(messages)]
            start, cpu = time.monotonic(), 0.0
            for first in range(0, messages, batch):
                if first == messages // 2:
                    statements.counting, cpu = True, time.process_time()
                await bench.lines[Topic.SEND_FUNDED].feed(records[first : first + batch])
                await asyncio.sleep(max(0.0, start + (first + batch) / options.rate - time.monotonic()))
            await tasks[1]
            show(statements, messages // 2, time.process_time() - cpu)
            tasks[0].cancel()
            await bench.fleet._stop_all(None)


def show(statements: Statements, messages: int, python: float) -> None:
    counts, cpu = statements.counts, statements.cpu
    table = Table("µs/message", "statements", "µs each", "statement")
    for text in sorted(counts, key=lambda one: -cpu[one]):
        cells = (f"{cpu[text] / messages:.1f}", f"{counts[text]:,}", f"{cpu[text] / counts[text]:,.0f}", text)
        table.add_row(*cells)
    console.print(table)
    each, database = sum(counts.values()) / messages, sum(cpu.values()) / messages
    console.print(f"{messages:,} messages: {each:.2f} statements and {database:.0f} µs of PostgreSQL a message;")
    console.print(f"Python {python * 1e6 / messages:.0f} µs a message, the bench's own included")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="messages/s")
    parser.add_argument("--batch", type=int, default=20, help="messages in a batch of send.funded")
    parser.add_argument("--seconds", type=float, default=20.0)
    asyncio.run(main(parser.parse_args()))
