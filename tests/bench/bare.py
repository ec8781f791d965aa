"""The shape of the system with nothing of Sendwhy in it, on this machine: `make bench ARGS=bare`.

The same topics with as many partitions, the same requests and the same Meta; each service is a process that reads in
batches, keeps a row for each record by one statement a batch, and tells the next. All is allowed: there are no reasons,
windows, limits, templates, holds, retries, recovery, pages or metrics, and the log keeps five events and one row of a
message. So it tells what the libraries, Kafka and PostgreSQL take for a message's life before anything is decided on
this machine, in these minutes; Sendwhy is measured right after it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import aiohttp
import asyncpg
import httpx
import msgspec
import uvicorn
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from lean_meta import TOKEN
from local_stack import deploy
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from phases import LOOK_SECONDS, STUCK_SECONDS, WARM_UP, Phase, Runner
from processes import Watch, best_loop_ms
from report import console
from rich.table import Table
from sendwhy.service import spare_the_collector
from sendwhy.topics import Topic
from system import HERE, Shape, process, running

MESSAGES, CONTACTS, CALLS_AT_ONCE = 10_000, 20_000, 200
BATCH, REST_SECONDS, GATHER_SECONDS = 500, 0.08, 0.05
SECRET = b"a secret of benches only"
EMPTY = (b"content-length", b"0")
RANK = {"accepted": 1, "sent": 2, "delivered": 3, "read": 4}
TABLES = """
    create table consent (message_id text primary key, body bytea not null);
    create table billing (message_id text primary key, body bytea not null);
    create table dispatcher (message_id text primary key, body bytea not null, wamid text);
    create table parser (wamid text, status text, primary key (wamid, status));
    create table event (event_id uuid primary key, message_id text not null, kind text not null, body bytea not null);
    create index on event (message_id);
    create table message (message_id text primary key, rank int not null default 0);
"""
Records = Sequence[ConsumerRecord[bytes, bytes]]
Told = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Bare:
    """µs of CPU a message by process, of the shape alone and of Sendwhy after it; `pace`: messages/s; `loop`: ms of
    `processes.best_loop_ms` before, between and after."""

    alone: dict[str, float]
    sendwhy: dict[str, float]
    pace: tuple[float, float]
    loop: list[float]


class Service:
    """What a service of the shape has: where it reads and writes; `door`: the port that webhooks come to."""

    def __init__(self, kafka: str, postgres: str, meta: str, door: int) -> None:
        self.kafka, self.postgres, self.meta, self.door = kafka, postgres, meta, door
        self.producer: AIOKafkaProducer
        self.pool: asyncpg.Pool

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Service"]:
        options = {"bootstrap_servers": self.kafka, "acks": "all", "enable_idempotence": True, "linger_ms": 5}
        async with (
            asyncpg.create_pool(self.postgres, min_size=1, max_size=4) as self.pool,
            AIOKafkaProducer(**options, max_batch_size=512 * 1024) as self.producer,
        ):
            yield self

    async def tell(self, topic: Topic, told: Told) -> None:
        partitions = sorted(await self.producer.partitions_for(topic))
        batches: dict[int, Any] = {}
        sent = []
        for key, value in told:
            place = partitions[crc32(key) % len(partitions)]
            while place not in batches or batches[place].append(key=key, value=value, timestamp=None) is None:
                if place in batches:
                    sent.append(await self.producer.send_batch(batches[place], topic, partition=place))
                batches[place] = self.producer.create_batch()
        sent += [await self.producer.send_batch(batch, topic, partition=place) for place, batch in batches.items()]
        await asyncio.gather(*sent)

    async def read(self, name: str, topic: Topic, handle: Callable[[Records], Awaitable[None]]) -> None:
        options = {"group_id": f"bare-{name}.{topic}", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=self.kafka, fetch_max_wait_ms=2_000, **options
        ) as consumer:
            while True:
                found = await consumer.getmany(timeout_ms=2_000, max_records=BATCH)
                records = [record for some in found.values() for record in some]
                if records:
                    await handle(records)
                    await consumer.commit({place: some[-1].offset + 1 for place, some in found.items()})
                if len(records) < BATCH:
                    await asyncio.sleep(REST_SECONDS)


async def gate(service: Service, name: str, source: Topic, target: Topic) -> None:
    insert = f"insert into {name} select * from unnest($1::text[], $2::bytea[]) on conflict do nothing"

    async def handle(records: Records) -> None:
        told = []
        for record in records:
            message = msgspec.json.decode(record.value)
            message[name] = {"allowed": True, "at": time.time()}
            told.append((message["message_id"], msgspec.json.encode(message)))
        await service.pool.execute(insert, [one for one, _ in told], [body for _, body in told])
        await service.tell(target, [(one.encode(), body) for one, body in told])

    await service.read(name, source, handle)


async def dispatcher(service: Service) -> None:
    insert = "insert into dispatcher select * from unnest($1::text[], $2::bytea[]) on conflict do nothing"
    update = """update dispatcher set wamid = new.wamid from unnest($1::text[], $2::text[]) as new (message_id, wamid)
        where dispatcher.message_id = new.message_id"""
    places, done = asyncio.Semaphore(CALLS_AT_ONCE), list[tuple[str, str]]()
    calls: set[asyncio.Task[None]] = set()
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}

    async def call(http: aiohttp.ClientSession, message: Any) -> None:
        body = {"messaging_product": "whatsapp", "to": "+525510000000", **message["content"]}
        body["biz_opaque_callback_data"] = message["message_id"]
        url = f"{service.meta}/v25.0/{message['sender_id']}/messages"
        try:
            async with http.post(url, data=msgspec.json.encode(body), headers=headers) as answer:
                done.append((message["message_id"], msgspec.json.decode(await answer.read())["messages"][0]["id"]))
        finally:
            places.release()

    async def note() -> None:
        while True:
            await asyncio.sleep(GATHER_SECONDS)
            if not done:
                continue
            now, done[:] = list(done), []
            await service.pool.execute(update, *zip(*now, strict=True))
            told = [(one, {"message_id": one, "wamid": wamid, "status": "accepted"}) for one, wamid in now]
            await service.tell(
                Topic.STATUS_UPDATED, [(one.encode(), msgspec.json.encode(event)) for one, event in told]
            )

    async def handle(records: Records) -> None:
        messages = [msgspec.json.decode(record.value) for record in records]
        await service.pool.execute(insert, [one["message_id"] for one in messages], [one.value for one in records])
        for message in messages:
            await places.acquire()
            task = asyncio.create_task(call(http, message))
            calls.add(task)
            task.add_done_callback(calls.discard)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLS_AT_ONCE), trust_env=False) as http:
        await asyncio.gather(note(), service.read("dispatcher", Topic.SEND_FUNDED, handle))


async def door(service: Service) -> None:
    async def take(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        signature = dict(scope["headers"])[b"x-hub-signature-256"].decode().removeprefix("sha256=")
        signed = hmac.compare_digest(signature, hmac.digest(SECRET, body, hashlib.sha256).hex())
        if signed:
            await service.producer.send_and_wait(Topic.WEBHOOK_RECEIVED, body)
        await send({"type": "http.response.start", "status": 200 if signed else 401, "headers": [EMPTY]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(
        take, port=service.door, log_config=None, lifespan="off", http="httptools", loop="uvloop", backlog=4096
    )
    await uvicorn.Server(config).serve()


async def webhook_ingest(service: Service) -> None:
    await asyncio.gather(door(service), parser(service))


async def parser(service: Service) -> None:
    insert = "insert into parser select * from unnest($1::text[], $2::text[]) on conflict do nothing"

    async def handle(records: Records) -> None:
        found = [
            status
            for record in records
            for entry in msgspec.json.decode(record.value)["entry"]
            for change in entry["changes"]
            for status in change["value"]["statuses"]
        ]
        await service.pool.execute(insert, [one["id"] for one in found], [one["status"] for one in found])
        told = []
        for status in found:
            message_id = status["biz_opaque_callback_data"]
            event = {"message_id": message_id, "wamid": status["id"], "status": status["status"], "raw": status}
            told.append((message_id.encode(), msgspec.json.encode(event)))
        await service.tell(Topic.STATUS_UPDATED, told)

    await service.read("parser", Topic.WEBHOOK_RECEIVED, handle)


async def message_log(service: Service) -> None:
    events = """insert into event select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])
        on conflict do nothing"""
    fold = """insert into message select message_id, max(rank)
        from unnest($1::text[], $2::int[]) as new (message_id, rank) group by message_id order by message_id
        on conflict (message_id) do update set rank = greatest(message.rank, excluded.rank)"""

    async def handle(records: Records) -> None:
        found = [(msgspec.json.decode(record.value), record.value) for record in records]
        ids = [one["message_id"] for one, _ in found]
        kinds = [one.get("status", "requested") for one, _ in found]
        keys = [hashlib.md5(body, usedforsecurity=False).hexdigest() for _, body in found]
        async with service.pool.acquire() as connection, connection.transaction():
            await connection.execute(events, keys, ids, kinds, [body for _, body in found])
            await connection.execute(fold, ids, [RANK.get(kind, 0) for kind in kinds])

    await asyncio.gather(
        *(service.read("log", topic, handle) for topic in (Topic.SEND_REQUESTED, Topic.STATUS_UPDATED))
    )


PARTS: dict[str, Callable[[Service], Awaitable[None]]] = {
    "consent": lambda service: gate(service, "consent", Topic.SEND_REQUESTED, Topic.SEND_CONSENTED),
    "billing": lambda service: gate(service, "billing", Topic.SEND_CONSENTED, Topic.SEND_FUNDED),
    "dispatcher": dispatcher,
    "webhook-ingest": webhook_ingest,
    "message-log": message_log,
}


async def play(part: str, service: Service) -> None:
    async with service.open():
        spare_the_collector()
        await PARTS[part](service)


class Alone:
    """The running shape."""

    def __init__(self, bootstrap: str, postgres: str, pids: dict[str, int], state: Path) -> None:
        self._bootstrap, self._postgres, self._pids, self._state = bootstrap, postgres, pids, state
        self._sent = 0

    async def send(self, count: int, rate: float) -> tuple[dict[str, float], float]:
        """µs of CPU a message by process, and messages/s from the first request to the last `read` in the log."""
        watch, started = Watch(self._pids), time.monotonic()
        watch.start()
        told = {"bootstrap": self._bootstrap, "first": self._sent, "count": count, "rate": rate, "contacts": CONTACTS}
        options = [f"--{name}={value}" for name, value in (told | {"moments": self._state / "moments"}).items()]
        self._sent += count
        load = [sys.executable, str(HERE / "lean_load.py"), *options]
        async with process(load) as loading:
            await self._until_read()
            out, _ = await loading.communicate()
        seconds = time.monotonic() - started
        cpu = watch.stop() | {"load": json.loads(out)["cpu"]}
        return {name: taken / count * 1e6 for name, taken in cpu.items()}, count / seconds

    async def _until_read(self) -> None:
        connection = await asyncpg.connect(self._postgres)
        async with asyncio.timeout(STUCK_SECONDS):
            while await connection.fetchval("select count(*) from message where rank = 4") < self._sent:
                await asyncio.sleep(LOOK_SECONDS)
        await connection.close()


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[Alone]:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with (
        Kafka(state) as kafka,
        Postgres(state) as postgres,
        process([sys.executable, str(HERE / "lean_meta.py")]) as meta,
        contextlib.AsyncExitStack() as started,
    ):
        await deploy.create_topics(kafka.bootstrap)
        database = await postgres.ensure_database("bare")
        connection = await asyncpg.connect(database)
        await connection.execute(TABLES)
        await connection.close()
        assert meta.stdout is not None
        url = (await meta.stdout.readline()).decode().strip()
        port = kafka.state.ports("door")["door"]
        target = {"url": f"http://127.0.0.1:{port}/webhooks/meta", "secret": SECRET.decode()}
        async with httpx.AsyncClient(trust_env=False) as http:
            (await http.post(f"{url}/_target", json=target)).raise_for_status()
        pids: dict[str, int] = {}
        for part in PARTS:
            command = [sys.executable, __file__, part, kafka.bootstrap, database, url, str(port)]
            pids[part] = (await started.enter_async_context(process(command))).pid
        pids |= {"kafka": kafka.process.pid, "postgres": postgres.process.pid, "meta": meta.pid}
        yield Alone(kafka.bootstrap, database, pids, state)
    await asyncio.to_thread(shutil.rmtree, state)


async def bare() -> Bare:
    loops = [best_loop_ms()]
    async with alone() as shape:
        await shape.send(WARM_UP.messages, WARM_UP.rate)
        taken, pace = await shape.send(MESSAGES, rate=0)
    loops.append(best_loop_ms())
    shape_of_sendwhy = Shape(contacts=CONTACTS, senders=2)
    async with running(shape_of_sendwhy) as system:
        runner = Runner(system, shape_of_sendwhy)
        await runner.run(WARM_UP)
        result = await runner.run(Phase("burst", MESSAGES))
    loops.append(best_loop_ms())
    return Bare(taken, result.cpu_us, (pace, result.pace), loops)


def show(found: Bare) -> None:
    table = Table("process", "the shape alone", "Sendwhy", title=f"A burst of {MESSAGES:,}: CPU µs a message")
    for name in dict.fromkeys((*found.alone, *found.sendwhy)):
        table.add_row(name, *(f"{cpu[name]:,.0f}" if name in cpu else "" for cpu in (found.alone, found.sendwhy)))
    table.add_section()
    table.add_row("all", *(f"{sum(cpu.values()):,.0f}" for cpu in (found.alone, found.sendwhy)))
    table.add_row("messages/s", *(f"{pace:,.0f}" for pace in found.pace))
    table.add_row("ms a loop, before and after", *(f"{a:.0f}, {b:.0f}" for a, b in pairwise(found.loop)))
    console.print(table)


if __name__ == "__main__":
    part, kafka, postgres, meta, port = sys.argv[1:]
    uvloop.run(play(part, Service(kafka, postgres, meta, int(port))))
