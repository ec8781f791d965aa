"""What a message leaves and takes: bytes per table and topic, WAL, CPU per service, memory per process.

    .venv/bin/python tests/bench/footprint.py --messages 20000 --write docs/scaling.json

Messages go their whole way as in stages.py: a campaign's template to a contact of its own, sent, delivered and read,
each receipt in a webhook of its own, each service alone with everything on its topics, so that its batches are full.
The way is gone twice, with a fifth and with all of the messages; what the second time adds, by message, is the figure.
Tables and indexes are measured as they lie there, dead rows and half-empty pages included; topics by their files.

docs/scaling.py computes with these figures. Nothing is asserted: bytes hardly differ from machine to machine, CPU does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from rich.console import Console
from sendwhy.topics import TOPICS
from sizes import table_bytes, topic_bytes
from stages import SERVICES, Bench, Took, run, simulator

ROOT = Path(__file__).parents[2]
MIB = 2**20
console = Console()

# Leaves of partitioned tables count as their table. TOAST belongs to the table.
_SERVER = """
select (select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0'))::bigint as wal_bytes,
       (select sum(xact_commit) from pg_stat_database)::bigint as commits,
       (select coalesce(sum(fsyncs), 0) from pg_stat_io where object = 'wal')::bigint as wal_fsyncs
"""
Sizes = dict[tuple[str, ...], int]


@dataclass(frozen=True)
class Snapshot:
    """`tables`: bytes by (service, table, heap or indexes). `topics`: by (topic, bytes or records)."""

    tables: Sizes
    topics: Sizes


class Footprint(Bench):
    """The bench of stages.py, which also looks at memory, and at what a service's work makes PostgreSQL write."""

    def __init__(
        self,
        state: Path,
        kafka: Kafka,
        postgres: Postgres,
        consumer: AIOKafkaConsumer,
        meta: tuple[psutil.Process, str],
    ) -> None:
        super().__init__(kafka, postgres, consumer, meta)
        self.state = state
        self.memory: dict[str, int] = {}
        self.writes: dict[str, dict[str, int]] = {}

    @contextlib.asynccontextmanager
    async def running(self, service: str) -> AsyncIterator[psutil.Process]:
        async with super().running(service) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.memory[service] = max(self.memory.get(service, 0), process.memory_info().rss)

    async def measure(
        self,
        service: str,
        results: Callable[[], Awaitable[int]],
        *,
        each: int = 1,
        meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        before = await self.server()
        await super().measure(service, results, each=each, meanwhile=meanwhile)
        after = await self.server()
        self.writes[service] = {name: after[name] - before[name] for name in after}

    async def server(self) -> dict[str, int]:
        async with connected(self.postgres.url) as connection:
            # What ended processes did is told at once, what living ones did within a second.
            await asyncio.sleep(1.5)
            row = await connection.fetchrow(_SERVER)
            assert row is not None
            return dict(row)

    async def snapshot(self) -> Snapshot:
        tables: Sizes = {}
        for service in SERVICES:
            for name, parts in (await table_bytes((await self.environment(service))["SENDWHY_DATABASE_URL"])).items():
                for part, size in parts.items():
                    tables[service, name, part] = size
        topics: Sizes = {}
        files = topic_bytes(self.state / "kafka" / "data")
        for topic in TOPICS:
            topics[topic, "bytes"] = files.get(topic, 0)
            topics[topic, "records"] = await self.count(topic)
        return Snapshot(tables, topics)

    async def readers(self) -> dict[str, list[str]]:
        """The services that read each topic, by their consumer groups."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        try:
            groups = sorted(str(group[0]) for group in await admin.list_consumer_groups())
        finally:
            await admin.close()
        read: dict[str, list[str]] = {}
        for group in groups:
            service, _, topic = group.removeprefix("sendwhy-").partition(".")
            read.setdefault(topic, []).append(service)
        return read


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def grown(before: Sizes, after: Sizes, messages: int) -> dict[str, Any]:
    """By message, nested as the keys are; what didn't grow by a byte is left out."""
    nested: dict[str, Any] = {}
    for key, value in sorted(after.items()):
        each = (value - before.get(key, 0)) / messages
        place = nested
        if each < 1 and "records" not in key:
            continue
        for name in key[:-1]:
            place = place.setdefault(name.replace("_", "-") if name in SERVICES else name, {})
        place[key[-1]] = round(each, 2)
    return nested


def figures_of_service(took: list[Took], writes: Mapping[str, int], memory: int) -> dict[str, float]:
    small, large = took
    each = (large.own - small.own) / (large.messages - small.messages)
    return {
        "cpu_us": round(each * 1e6),
        "kafka_cpu_us": round(large.kafka / large.messages * 1e6),
        "postgres_cpu_us": round(large.postgres / large.messages * 1e6),
        "start_cpu_s": round(max(0.0, small.own - each * small.messages), 2),
        "memory_mib": round(memory / MIB),
        "messages_per_second": round(large.pace) if large.pace else 0,
        "wal_bytes": round(writes["wal_bytes"] / large.messages),
        "commits": round(writes["commits"] / large.messages, 4),
        "wal_fsyncs": round(writes["wal_fsyncs"] / large.messages, 4),
    }


def where_measured(messages: int) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "command": f".venv/bin/python tests/bench/footprint.py --messages {messages} --write docs/scaling.json",
        "commit": commit.stdout.strip(),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {round(psutil.virtual_memory().total / 2**30)} GiB",
        "load": round(os.getloadavg()[0]),
        "messages": messages,
    }


async def main(messages: int) -> str:
    """The figures as JSON."""
    state = Path(tempfile.mkdtemp(prefix="sendwhy-footprint-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres, simulator() as meta:
        await run(os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "sendwhy", "topics")
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
        await consumer.start()
        bench = Footprint(state, kafka, postgres, consumer, meta)
        await bench.prepare()
        small = max(1, messages // 5)
        await bench.go(range(small))
        before = await bench.snapshot()
        await bench.go(range(small, small + messages))
        after = await bench.snapshot()
        readers = await bench.readers()
        await consumer.stop()
    topics = grown(before.topics, after.topics, messages)
    figures = {
        "measured": where_measured(messages),
        "services": {
            service.replace("_", "-"): figures_of_service(took, bench.writes[service], bench.memory[service])
            for service, took in bench.took.items()
        },
        "topics": {name: sizes | {"readers": readers[name]} for name, sizes in topics.items() if sizes["records"]},
        "tables": grown(before.tables, after.tables, messages),
    }
    return json.dumps(figures, indent=1) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    text = asyncio.run(main(given.messages))
    if given.write:
        given.write.write_text(text)
        console.print(f"{given.write}: written")
    else:
        console.print_json(text)
