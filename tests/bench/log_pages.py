"""How long the message log's pages take with millions of messages, and how soon a page tells what just happened.

    .venv/bin/python tests/bench/log_pages.py --messages 10000000 --state /tmp/log-10m --json figures.json

The messages are made inside PostgreSQL (log_rows.py): 30 days, four of five in one workspace, one campaign of every
tenth. Then the real service runs on them with real Kafka and PostgreSQL, and somebody logged in asks for each page over
HTTP. `cold`: the first time after PostgreSQL was started anew and its files were taken out of the system's cache; then
the median and the worst of some more, and the CPU time of the service and PostgreSQL, which tells more on a machine
that has other things to do. Two times the way from an event on Kafka to whoever looks is gone: until the message's page
shows it, until the list does, and until the live stream tells it. Last, the pace of the fold: statuses of messages all
over the log, from when they lie on the topic to when the last of them is in the log.

A state directory that is named is kept, and its messages are taken as they are the next time; ten million take some
50 GB. Figures are printed, never asserted. Aims: the first page 300 ms, each filter 1 s, an event 1 s.

Seen on 2026-11-26 on 2 cores that others used too. One million, load 5, whole pages over HTTP, median: the first page
52 ms (38 of CPU), the second 58, each filter and range 30 to 180, the slowest pages a search for a name and the
webhook log, both mended since; from an event to the message's page 131 ms, to the list 220, to the live stream 294
(worst 632); 760 statuses folded a second. Ten million, load 9 to 20, whole pages, warm median and CPU of service and
PostgreSQL (128 MB of shared buffers): the first page 394 ms (78), 276 of PostgreSQL alone at another time, of which
237 are the count of what is open (a running campaign had 52,000); the second 458 (86); filters and searches 22 to 788
(8 to 134), 24 hours 1,057 (148); one campaign of a million 1,032 (642), webhooks 14; from an event to the message's
page 97 ms, to the list 293, to the live stream 223 (worst 594); 661 statuses folded a second. Before the first vacuum
that count took 2.3 s, since each of its rows was looked up. Cells: 248,000, as many for ten million messages as for
one; by the hour alone 44,000. Of a fold's update the trigger takes 11 to 25 µs a message, 1 to 2 % of its time; the
whole fold took 680 to 1,240 µs of CPU a status, by the load, service and PostgreSQL. Cold pages have yet to be
measured.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import asyncpg
import httpx
import log_rows
import message_log
import psutil
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from log_rows import AUTOMATION, BIG_CAMPAIGN, HUGE, RARE, RUNNING_CAMPAIGN, SENDERS
from rich.console import Console
from rich.table import Table
from sendwhy.events import Origin, OriginKind, SendRequested, Status, StatusUpdated, To, event_id_of
from sendwhy.kafka import Producer, create_topics
from sendwhy.metrics import Metrics
from sendwhy.postgres import migrate
from sendwhy.reasons import ReasonCode, Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Topic, outgoing

PORT = 21200
URL = f"http://127.0.0.1:{PORT}"
TOKEN = "bench-admin-token"
FIRST_PAGE, OTHERS = 0.3, 1.0
INBOUND = 300_000
# Tables that are filled in the transaction that made them empty are then written once.
SETTINGS = {"wal_level": "minimal", "max_wal_senders": "0", "maintenance_work_mem": "512MB"}
console = Console(width=130)


@dataclass
class Asked:
    """A page with its aim in seconds, and what it took: `warm` in the order of the runs; `cpu` of each of those, of the
    service and PostgreSQL."""

    name: str
    path: str
    aim: float = OTHERS
    first_byte: bool = False
    cold: float | None = None
    warm: list[float] = field(default_factory=list)
    status: int = 0
    cpu: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.warm)

    @property
    def worst(self) -> float:
        return max(self.warm)


@dataclass(frozen=True, slots=True)
class Sample:
    """One message to search for and to look at."""

    message_id: str
    wamid: str
    phone: str
    contact_id: str
    webhook_id: str


def pages(sample: Sample) -> list[Asked]:
    now = datetime.now(UTC)
    times = f"from={quote((now - timedelta(days=20)).isoformat())}&to={quote((now - timedelta(days=5)).isoformat())}"
    filters = {
        "first page": "",
        "status failed": "status=failed",
        "status read": "status=read",
        "status sent": "status=sent",
        "status sending": "status=sending",
        "status waiting": "status=waiting",
        "reason": f"reason={ReasonCode.CUSTOMER_IS_NOT_OPTED_IN}",
        "reason, 30 days": f"reason={ReasonCode.CUSTOMER_IS_NOT_OPTED_IN}&range=30d",
        "rare reason": f"reason={RARE}&range=30d",
        "reason nobody has": f"reason={ReasonCode.MEDIA_FAILED}&range=30d",
        "not this reason": f"reason!={ReasonCode.CUSTOMER_IS_NOT_OPTED_IN}",
        "service": "service=consent",
        "sender": f"sender={SENDERS[1]}",
        "sender, 30 days": f"sender={SENDERS[1]}&range=30d",
        "origin": "origin=automation",
        "origin inbox, 30 days": "origin=inbox&range=30d",
        "campaign of a million": f"campaign={BIG_CAMPAIGN}&range=30d",
        "campaign nobody has": "campaign=nothing&range=30d",
        "automation, 30 days": f"automation={AUTOMATION}&range=30d",
        "template": "template=order_paid",
        "template nobody has, 30 days": "template=nothing&range=30d",
        "country": "country=MX",
        "rare country, 30 days": "country=US&range=30d",
        "country nobody has, 30 days": "country=JP&range=30d",
        "15 minutes": "range=15m",
        "24 hours": "range=24h",
        "30 days": "range=30d",
        "all": "range=all",
        "between two times": times,
        "five filters": f"status=failed&service=consent&sender={SENDERS[0]}&country=MX&origin=campaign&range=30d",
        "status and rare country": "status=sent&country=US&range=30d",
        "contact": f"contact={sample.contact_id}&range=all",
        "phone": f"phone=%2B{sample.phone}&range=all",
        "search: phone": f"q=%2B{sample.phone}&range=all",
        "search: part of a phone": f"q={sample.phone[-8:]}&range=all",
        "search: name": "q=guadalupe+her&range=all",
        "search: nobody's name": "q=zzzzz&range=all",
        "search: message id": f"q={sample.message_id}&range=all",
        "search: wamid": f"q={quote(sample.wamid)}&range=all",
    }
    list_path = f"/w/{HUGE}/messages"
    asked = [Asked(name, f"{list_path}?{query}" if query else list_path) for name, query in filters.items()]
    asked[0].aim = FIRST_PAGE
    api = f"/v1/workspaces/{HUGE}"
    return [
        *asked,
        Asked("another workspace", "/w/shop-1/messages"),
        Asked(
            "counts and charts, 30 days", f"{api}/message-counts?from={quote((now - timedelta(days=30)).isoformat())}"
        ),
        Asked("CSV, first byte", f"{list_path}.csv?range=30d", first_byte=True),
        Asked("one message", f"{list_path}/{sample.message_id}"),
        Asked("campaigns", f"/w/{HUGE}/campaigns"),
        Asked("one campaign of a million", f"/w/{HUGE}/campaigns/{BIG_CAMPAIGN}"),
        Asked("one that is running", f"/w/{HUGE}/campaigns/{RUNNING_CAMPAIGN}"),
        Asked("automations", f"/w/{HUGE}/automations"),
        Asked("one automation", f"/w/{HUGE}/automations/{AUTOMATION}"),
        Asked("inbox", f"/w/{HUGE}/inbox"),
        Asked("one thread", f"/w/{HUGE}/inbox/with/{sample.contact_id}"),
        Asked("contacts", f"/w/{HUGE}/contacts"),
        Asked("contacts, search", f"/w/{HUGE}/contacts?q=guadalupe"),
        Asked("contacts, nobody's name", f"/w/{HUGE}/contacts?q=zzzzz"),
        Asked("one contact", f"/w/{HUGE}/contacts/{sample.contact_id}"),
        Asked("credits", f"/w/{HUGE}/credits"),
        Asked("templates", f"/w/{HUGE}/templates"),
        Asked("senders", f"/w/{HUGE}/senders"),
        Asked("webhooks", f"/w/{HUGE}/webhooks"),
        Asked("webhooks by wamid", f"/w/{HUGE}/webhooks?wamid={quote(sample.wamid)}"),
        Asked("webhooks, refused", f"/w/{HUGE}/webhooks?refused=true"),
        Asked("one webhook", f"/w/{HUGE}/webhooks/{sample.webhook_id}"),
        Asked("dead letters", f"/w/{HUGE}/dead-letters"),
        Asked("audit", f"/w/{HUGE}/audit"),
    ]


class Bench:
    def __init__(self, kafka: Kafka, postgres: Postgres, database: str, state: Path) -> None:
        self.kafka, self.postgres, self.database, self.state = kafka, postgres, database, state
        self.service: psutil.Process
        self.settings = KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap)
        # The API takes the token, the pages the session.
        self.http = httpx.AsyncClient(base_url=URL, timeout=120, trust_env=False, headers=_AUTHORIZED)

    def environment(self) -> dict[str, str]:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DATABASE_URL": self.database,
            "HTTP_PORT": str(PORT),
            "API_TOKENS": f"{TOKEN}:admin:*",
            "PRIVACY_KEY": "bench-privacy-key-0123456789",
        }
        return os.environ | {f"SENDWHY_{name}": value for name, value in settings.items()}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        log = (self.state / "message_log.log").open("wb")
        command = (sys.executable, "-m", "message_log", "serve")
        process = await asyncio.create_subprocess_exec(*command, env=self.environment(), stderr=log, stdout=log)
        try:
            await self.ready()
            self.service = psutil.Process(process.pid)
            answer = await self.http.post("/login", data={"token": TOKEN}, headers={"sec-fetch-site": "same-origin"})
            assert answer.status_code == 303, answer.text
            yield
        finally:
            process.terminate()
            await process.wait()
            await self.http.aclose()

    async def ready(self) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await self.http.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.1)

    def cpu(self) -> float:
        servers = (self.service, psutil.Process(self.postgres.process.pid))
        everyone = [one for server in servers for one in (server, *server.children(recursive=True))]
        return sum(sum(one.cpu_times()[:2]) for one in everyone)

    # --- pages ---

    async def ask(self, page: Asked) -> float:
        started = time.monotonic()
        async with self.http.stream("GET", page.path) as answer:
            if page.first_byte:
                async for _ in answer.aiter_raw():
                    break
            else:
                await answer.aread()
            page.status = answer.status_code
            return time.monotonic() - started

    async def forget_pages(self) -> None:
        """PostgreSQL anew, and nothing of its files in memory (what is beneath this machine's disk may remember)."""
        await self.postgres.stop()
        for file in (self.state / "postgres" / "data").rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        await self.postgres.start()
        await self.ready()

    async def measure(self, asked: Sequence[Asked], runs: int, *, cold: bool) -> None:
        for page in asked:
            if cold:
                await self.forget_pages()
                page.cold = await self.ask(page)
            else:
                await self.ask(page)
            before = self.cpu()
            page.warm = [await self.ask(page) for _ in range(runs)]
            page.cpu = (self.cpu() - before) / runs
            told = f", cold {page.cold * 1000:,.0f} ms" if page.cold is not None else ""
            console.print(
                f"{page.name}: {page.median * 1000:,.0f} ms{told}, {page.cpu * 1000:,.0f} of CPU", highlight=False
            )

    async def second_page(self, runs: int) -> Asked:
        first = await self.http.get(f"/v1/workspaces/{HUGE}/messages")
        page = Asked("second page", f"/w/{HUGE}/messages?cursor={first.json()['next_cursor']}", FIRST_PAGE)
        await self.measure([page], runs, cold=False)
        return page

    # --- from the event to who looks ---

    @contextlib.asynccontextmanager
    async def publishing(self) -> AsyncIterator[Producer]:
        producer = Producer(self.settings, Metrics(Service.DISPATCHER))
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> float:
        started = time.monotonic()
        while not await holds():
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    async def soon(self, keys: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
        """Seconds from the publishing of an event to its message's page, to the list, and to the live stream."""
        took: dict[str, list[float]] = {"one message": [], "the list": [], "live stream": []}
        async with self.publishing() as producer, self.streaming() as told:
            for number, (message_id, wamid) in enumerate(keys):
                path = f"/v1/workspaces/{HUGE}/messages/{message_id}"

                async def shows(path: str = path) -> bool:
                    return bool((await self.http.get(path)).json()["status"] == "read")

                started = time.monotonic()
                await producer.publish([outgoing(read_of(message_id, wamid), source="bench")])
                await self.until(shows)
                page = await self.http.get(f"/w/{HUGE}/messages/{message_id}")
                assert page.status_code == 200
                took["one message"].append(time.monotonic() - started)
                await self.until(lambda message_id=message_id: _is_in(message_id, told))  # type: ignore[misc]
                took["live stream"].append(told[message_id] - started)
                took["the list"].append(await self.seen_in_list(producer, f"new-{time.time_ns()}-{number}"))
        return took

    async def seen_in_list(self, producer: Producer, message_id: str) -> float:
        started = time.monotonic()
        await producer.publish([outgoing(request(message_id), source="bench")])

        async def shows() -> bool:
            return message_id in (await self.http.get(f"/w/{HUGE}/messages")).text

        await self.until(shows)
        return time.monotonic() - started

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[dict[str, float]]:
        """When the live stream told of each message."""
        told: dict[str, float] = {}

        async def listen() -> None:
            async with self.http.stream("GET", f"/v1/workspaces/{HUGE}/events") as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        told.setdefault(json.loads(line[5:])["message_id"], time.monotonic())

        listening = asyncio.create_task(listen())
        await asyncio.sleep(2)
        try:
            yield told
        finally:
            listening.cancel()

    async def fold(self, keys: Sequence[tuple[str, str]]) -> float:
        """Messages per second: statuses that all lie on the topic before the log may read them."""
        connection = await asyncpg.connect(self.database)
        reached = "select coalesce(sum(next_offset), 0)::bigint from reached where topic = $1"
        before = await connection.fetchval(reached, Topic.STATUS_UPDATED)
        records = [outgoing(read_of(*key), source="bench") for key in keys]
        async with self.publishing() as producer:
            await producer.publish(records)
        async with self.running():
            started = None
            while (done := await connection.fetchval(reached, Topic.STATUS_UPDATED) - before) < len(keys):
                if done and started is None:
                    started, first = time.monotonic(), done
                await asyncio.sleep(0.02)
            ended = time.monotonic()
        await connection.close()
        return (len(keys) - first) / (ended - started) if started is not None else float("nan")


_AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


async def _is_in(message_id: str, told: dict[str, float]) -> bool:
    return message_id in told


def read_of(message_id: str, wamid: str) -> StatusUpdated:
    now = datetime.now(UTC)
    return StatusUpdated(
        event_id=event_id_of(message_id, "read by the benchmark"),
        occurred_at=now,
        observed_at=now,
        message_id=message_id,
        workspace_id=HUGE,
        sender_id=SENDERS[0],
        provider_message_id=wamid,
        service=Service.WEBHOOK_INGEST,
        status=Status.READ,
    )


def request(message_id: str) -> SendRequested:
    return SendRequested(
        message_id=message_id,
        workspace_id=HUGE,
        to=To(contact_id="c1", phone="+525500000001"),
        origin=Origin(kind=OriginKind.API),
        content={"type": "text", "text": {"body": "Hola"}},
        requested_at=datetime.now(UTC),
    )


# --- what is printed ---


def show(asked: Sequence[Asked], took: dict[str, list[float]], pace: float, count: int) -> None:
    table = Table("page", "aim", "cold", "median", "worst", "CPU", "", title=f"{count:,} messages, ms", highlight=False)
    for page in asked:
        slow = "" if page.median <= page.aim else "slower than the aim"
        figures = (page.aim, page.cold, page.median, page.worst, page.cpu)
        status = "" if page.status == 200 else f"answered {page.status} "
        table.add_row(page.name, *("" if each is None else f"{each * 1000:,.0f}" for each in figures), status + slow)
    console.print(table)
    soon = Table("from the event to", "median", "worst", title="aim: 1,000 ms", highlight=False)
    for name, seconds in took.items():
        soon.add_row(name, f"{statistics.median(seconds) * 1000:,.0f}", f"{max(seconds) * 1000:,.0f}")
    console.print(soon)
    console.print(f"fold: {pace:,.0f} statuses a second, of messages all over the log")


_SAMPLE = """
select m.message_id, m.wamid, m.phone, m.contact_id from message m
where m.workspace_id = $1 and m.outcome = 'delivered' and m.at < now() - interval '1 hour' order by m.at desc limit 1
"""
_WEBHOOK_OF = "select webhook_id::text from webhook_part where workspace_id = $1 and message_id = $2 limit 1"


async def choose(connection: asyncpg.Connection, count: int, of: int) -> tuple[Sample, list[tuple[str, str]]]:
    """A message to look at, and some that were delivered, from all over the log of `of` messages."""
    row = await connection.fetchrow(_SAMPLE, HUGE)
    assert row is not None
    webhook = await connection.fetchval(_WEBHOOK_OF, HUGE, row["message_id"])
    rows = await connection.fetch(
        "select message_id, wamid from message tablesample system ($3) where workspace_id = $1"
        " and outcome = 'delivered' and message_id <> $2",
        HUGE,
        row["message_id"],
        min(100.0, 600.0 * count / of),
    )
    keys = [(one["message_id"], one["wamid"]) for one in rows]
    random.Random(1).shuffle(keys)
    return Sample(**dict(row), webhook_id=webhook or "none"), keys[:count]


async def fill(postgres: Postgres, count: int) -> str:
    database = await postgres.ensure_database("message_log")
    await migrate(database, Path(message_log.__file__ or "").parent / "migrations")
    connection = await asyncpg.connect(database)
    if await connection.fetchval("select exists (select from message)"):
        console.print("the messages of the last time are taken")
    else:
        started = time.monotonic()
        await log_rows.fill(database, count, min(INBOUND, count))
        console.print(f"{count:,} messages were made in {time.monotonic() - started:,.0f} s")
    await connection.close()
    return database


async def main(given: argparse.Namespace) -> None:
    state = given.state or Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Postgres(state) as postgres:
        connection = await asyncpg.connect(postgres.url)
        for name, value in SETTINGS.items():
            await connection.execute(f"alter system set {name} = '{value}'")
        await connection.close()
    async with Kafka(state) as kafka, Postgres(state) as postgres:
        await create_topics(KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap))
        database = await fill(postgres, given.messages)
        connection = await asyncpg.connect(database)
        sample, keys = await choose(connection, given.events + given.fold, given.messages)
        await connection.close()
        asked = [page for page in pages(sample) if given.only is None or given.only in page.name]
        bench = Bench(kafka, postgres, database, state)
        async with bench.running():
            asked.append(await bench.second_page(given.runs))
            await bench.measure(asked[:-1], given.runs, cold=given.cold)
            took = await bench.soon(keys[: given.events])
        pace = await Bench(kafka, postgres, database, state).fold(keys[given.events :])
    show(asked, took, pace, given.messages)
    if given.json:
        figures = {"messages": given.messages, "pages": [asdict(page) for page in asked], "soon": took, "fold": pace}
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--state", type=Path, help="where the databases are, kept for the next time (a temporary one)")
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each page (5)")
    parser.add_argument("--cold", action="store_true", help="measure each page cold too: PostgreSQL is started anew")
    parser.add_argument("--only", help="only pages in whose name this stands")
    parser.add_argument("--events", type=int, default=20, help="events to follow to the pages (20)")
    parser.add_argument("--fold", type=int, default=5_000, help="statuses to fold (5,000)")
    parser.add_argument("--json", type=Path)
    asyncio.run(main(parser.parse_args()))
