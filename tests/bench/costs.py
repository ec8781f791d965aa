"""What a message costs in our own code, counted instead of timed: a guard that no busy machine can trip.

    .venv/bin/python tests/bench/costs.py            prints the costs beside the baseline
    .venv/bin/python tests/bench/costs.py --renew    writes the baseline, tests/bench/costs.json

Each stage on the way of a message gets two batches of 100, on a real PostgreSQL and without Kafka. Of the second are
counted: Python instructions (opcodes) executed in our packages, per message, and SQL statements, per batch. Both depend
on nothing but the code and Python's version. What libraries and servers do for it isn't seen here: `make bench` is.
"""

import argparse
import asyncio
import contextlib
import importlib
import itertools
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast
from uuid import uuid4

import asyncpg
import lean_meta
from aiokafka import ConsumerRecord, TopicPartition
from billing.decide import top_up
from billing.stages import Funder, Settler
from billing.store import add_entries, lock_or_open_accounts, save_accounts
from consent.settings import Settings as ConsentSettings
from consent.stages import Stages as Consent
from cryptography.fernet import Fernet
from dispatcher.settings import Settings as DispatcherSettings
from dispatcher.stages import Stages as Dispatcher
from dispatcher.store import NewSender, put_sender
from local_stack.postgres import Postgres
from message_log import projection
from message_log.erasures import People
from message_log.progress import Progress
from message_log.settings import MessageLogSettings
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sendwhy.events import (
    CustomerUpdated,
    SendConsented,
    SenderUpdated,
    SendFunded,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateUpdated,
    To,
    event_id_of,
)
from sendwhy.kafka import Producer
from sendwhy.metrics import Metrics
from sendwhy.postgres import migrate
from sendwhy.privacy import Tagger
from sendwhy.reasons import Service
from sendwhy.stage import Handle, Parse, Record, Stage, parse_json, parse_state
from sendwhy.topics import Outgoing, Topic, outgoing
from webhook_ingest import parsing

BASELINE = Path(__file__).with_suffix(".json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TOLERANCE = 0.05
BATCH = 100
PACKAGES = ("sendwhy", "consent", "billing", "dispatcher", "webhook_ingest", "message_log")
FOLDERS = tuple(str(Path(importlib.import_module(name).__file__ or "").parent) + "/" for name in PACKAGES)
WORKSPACE, SENDER, APP, KEY = "bench", "100000000000700", "400000000000001", "a key of benches only"
Costs = dict[str, dict[str, float]]
console = Console(width=120)


class Counter:
    """Opcodes executed in our packages, and statements sent, while it counts."""

    def __init__(self) -> None:
        self.instructions = self.statements = 0
        self._counts = False

    @contextlib.contextmanager
    def counting(self) -> Any:
        self.instructions = self.statements = 0
        self._counts, before = True, sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
            self._counts = False

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDERS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._inside

    def _inside(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.instructions += event == "opcode"
        return self._inside

    def on_query(self, _query: Any) -> None:
        self.statements += self._counts


class Line:
    """One stage without Kafka: what goes in are records as Kafka has them; what it would publish comes out."""

    def __init__(self, name: str, stage: Callable[["Line"], Stage[Any]]) -> None:
        self.name, self.out = name, []  # type: tuple[str, list[Outgoing]]
        self._handler: Callable[[Any], Awaitable[None]]
        self._offsets = itertools.count()
        stage(self).subscribe(cast("Any", self))

    # --- as a broker, its subscriber, its consumer and the producer ---

    def subscriber(self, *_topics: str, **_options: Any) -> "Line":
        return self

    def __call__(self, handler: Callable[[Any], Awaitable[None]]) -> None:
        self._handler = handler

    @property
    def consumer(self) -> "Line":
        return self

    def assignment(self) -> set[TopicPartition]:
        return set()

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self.out += records

    # ---

    async def feed(self, records: Sequence[Outgoing]) -> list[Outgoing]:
        self.out = []
        batch = tuple(self._record(one) for one in records)
        await self._handler(cast("Any", type("Message", (), {"raw_message": batch})))
        return self.out

    def _record(self, one: Outgoing) -> ConsumerRecord[Any, Any]:
        now = int(datetime.now(UTC).timestamp() * 1000)
        size = len(one.value or b"")
        place = (str(one.topic), 0, next(self._offsets), now, 1)
        return ConsumerRecord(*place, one.key, one.value, None, len(one.key or b""), size, one.headers)


class Way:
    """The stages of a message's way, wired as each service's `make_app` wires them."""

    def __init__(self, pools: dict[Service, asyncpg.Pool]) -> None:
        self._pools = pools
        self.metrics = {service: Metrics(service) for service in Service}

    def line(self, service: Service, topic: Topic, parse: Parse[Any], handle: Handle[Any]) -> Line:
        def stage(line: Line) -> Stage[Any]:
            return Stage(
                topic,
                parse,
                handle,
                service=service,
                pool=lambda: self._pools[service],
                producer=cast("Producer", line),
                metrics=self.metrics[service],
            )

        return Line(f"{service}: {topic}", stage)

    # --- as the dispatcher's runtime and fleet ---

    def publish_soon(self) -> None: ...

    def wake(self, sender_id: str) -> None: ...

    def consent(self) -> dict[Topic, Line]:
        settings = ConsentSettings(**_common(), privacy_key=SecretStr(KEY))
        stages = Consent(settings, self.metrics[Service.CONSENT])
        return {
            Topic.SEND_REQUESTED: self.line(
                Service.CONSENT, Topic.SEND_REQUESTED, parse_json(SendRequested), stages.on_requested
            ),
            Topic.CUSTOMER_UPDATED: self.line(
                Service.CONSENT, Topic.CUSTOMER_UPDATED, parse_json(CustomerUpdated), stages.on_customer
            ),
            Topic.SENDER_UPDATED: self.line(
                Service.CONSENT, Topic.SENDER_UPDATED, parse_state(SenderUpdated), stages.on_sender
            ),
            Topic.TEMPLATE_UPDATED: self.line(
                Service.CONSENT, Topic.TEMPLATE_UPDATED, parse_state(TemplateUpdated), stages.on_template
            ),
        }

    def billing(self) -> dict[Topic, Line]:
        metrics = self.metrics[Service.BILLING]
        fund, settle = Funder(metrics).on_consented, Settler(metrics).on_status
        return {
            Topic.SEND_CONSENTED: self.line(Service.BILLING, Topic.SEND_CONSENTED, parse_json(SendConsented), fund),
            Topic.STATUS_UPDATED: self.line(Service.BILLING, Topic.STATUS_UPDATED, parse_json(StatusUpdated), settle),
        }

    def dispatcher(self) -> Line:
        settings = DispatcherSettings(
            **_common(), privacy_key=SecretStr(KEY), token_encryption_key=SecretStr(Fernet.generate_key().decode())
        )
        stages = Dispatcher(cast("Any", self), settings, cast("Any", self), lambda: datetime.now(UTC))
        return self.line(Service.DISPATCHER, Topic.SEND_FUNDED, parse_json(SendFunded), stages.on_funded)

    def webhook_ingest(self) -> dict[Topic, Line]:
        tagger = Tagger(KEY)

        async def on_webhooks(connection: Any, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
            return (await parsing.apply(connection, [record.event for record in records], frozenset({APP}))).publish

        async def on_statuses(connection: Any, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
            return (await parsing.accept(connection, records, tagger)).publish

        service = Service.WEBHOOK_INGEST
        return {
            Topic.WEBHOOK_RECEIVED: self.line(service, Topic.WEBHOOK_RECEIVED, parsing.delivery_of, on_webhooks),
            Topic.STATUS_UPDATED: self.line(service, Topic.STATUS_UPDATED, parsing.accepted_of, on_statuses),
            Topic.SENDER_UPDATED: self.line(
                service, Topic.SENDER_UPDATED, parse_state(SenderUpdated), parsing.keep_senders
            ),
        }

    def message_log(self) -> dict[Topic, Line]:
        settings = MessageLogSettings(**_common(), privacy_key=SecretStr(KEY))
        people, progress = People(settings), Progress(self.metrics[Service.MESSAGE_LOG])

        def line(topic: Topic) -> Line:
            write = projection.write_of(topic, people, progress)

            async def handle(connection: Any, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
                await write(connection, records)
                return ()

            return self.line(Service.MESSAGE_LOG, topic, projection.parser_of(topic), handle)

        topics = (Topic.SEND_REQUESTED, Topic.SEND_CONSENTED, Topic.SEND_FUNDED, Topic.STATUS_UPDATED)
        return {topic: line(topic) for topic in (*topics, Topic.WEBHOOK_RECEIVED)}


def _common() -> dict[str, Any]:
    return {"kafka_bootstrap_servers": "nowhere:9092", "database_url": SecretStr("postgresql://nowhere/x")}


@dataclass
class Desk:
    """Runs the whole way for some messages, and keeps what each stage cost."""

    way: Way
    counter: Counter
    pools: dict[Service, asyncpg.Pool]

    def __post_init__(self) -> None:
        self.consent, self.billing, self.dispatcher = self.way.consent(), self.way.billing(), self.way.dispatcher()
        self.ingest, self.log = self.way.webhook_ingest(), self.way.message_log()

    async def set_up(self) -> None:
        """A number with its template, credits, and people who want messages."""
        sender = outgoing(_sender(), source="bench")
        for lines in (self.consent, self.ingest):
            await lines[Topic.SENDER_UPDATED].feed([sender])
        await self.consent[Topic.TEMPLATE_UPDATED].feed([outgoing(_template(), source="bench")])
        people = [outgoing(_customer(number), source="bench") for number in range(2 * BATCH)]
        await self.consent[Topic.CUSTOMER_UPDATED].feed(people)
        async with self.pools[Service.BILLING].acquire() as connection, connection.transaction():
            accounts = await lock_or_open_accounts(connection, [WORKSPACE])
            account, entry = top_up(accounts[WORKSPACE], 100_000, reference="bench", actor="bench")
            await add_entries(connection, [entry], at=datetime.now(UTC))
            await save_accounts(connection, [account])
        async with self.pools[Service.DISPATCHER].acquire() as connection, connection.transaction():
            new = NewSender(SENDER, WORKSPACE, lean_meta.PORTFOLIO, lean_meta.WABA, APP, True, b"sealed")
            await put_sender(connection, new, datetime.now(UTC))

    async def go(self, numbers: range) -> Costs:
        costs: Costs = {}

        async def feed(line: Line, records: Sequence[Outgoing], name: str = "") -> list[Outgoing]:
            with self.counter.counting():
                out = await line.feed(records)
            each = round(self.counter.instructions / len(numbers), 1)
            costs[line.name + name] = {"instructions": each, "statements": self.counter.statements}
            return out

        requested = [outgoing(_request(number), source="bench") for number in numbers]
        consented = _only(await feed(self.consent[Topic.SEND_REQUESTED], requested), Topic.SEND_CONSENTED, numbers)
        funded = _only(await feed(self.billing[Topic.SEND_CONSENTED], consented), Topic.SEND_FUNDED, numbers)
        await feed(self.dispatcher, funded)
        accepted = [outgoing(_accepted(number), source="dispatcher") for number in numbers]
        await feed(self.ingest[Topic.STATUS_UPDATED], accepted)
        webhooks = [_webhook(number) for number in numbers]
        sent = _only(await feed(self.ingest[Topic.WEBHOOK_RECEIVED], webhooks), Topic.STATUS_UPDATED, numbers)
        await feed(self.billing[Topic.STATUS_UPDATED], sent)
        for records in (requested, consented, funded, accepted, webhooks):
            await feed(self.log[records[0].topic], records)
        return costs


def _only(records: Sequence[Outgoing], topic: Topic, numbers: range) -> list[Outgoing]:
    """What goes on: something went wrong before anything was counted if it isn't one of each message."""
    found = [record for record in records if record.topic is topic]
    assert len(found) == len(numbers), f"{len(found)} of {len(numbers)} messages on {topic}: {records[:1]}"
    return found


def _wamid(number: int) -> str:
    return f"wamid.bench{number:08}"


def _request(number: int) -> SendRequested:
    template = {
        "name": lean_meta.TEMPLATE,
        "language": {"code": lean_meta.LANGUAGE},
        "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
    }
    body = {
        "message_id": f"m{number:08}",
        "workspace_id": WORKSPACE,
        "sender_id": SENDER,
        "to": {"contact_id": f"c{number:08}"},
        "origin": {"kind": "campaign", "id": "bench", "name": "Bench"},
        "content": {"type": "template", "template": template},
        "requested_at": datetime.now(UTC).isoformat(),
        "metadata": {"order": "4711"},
    }
    return SendRequested.model_validate_json(json.dumps(body))


def _customer(number: int) -> CustomerUpdated:
    told = {
        "event_id": str(uuid4()),
        "occurred_at": datetime.now(UTC).isoformat(),
        "source": "shopify",
        "action": "update",
        "workspace_id": WORKSPACE,
        "contact_id": f"c{number:08}",
        "phone": f"+5255{10_000_000 + number}",
        "marketing_state": "SUBSCRIBED",
    }
    return CustomerUpdated.model_validate_json(json.dumps(told))


def _sender() -> SenderUpdated:
    return SenderUpdated(
        event_id=uuid4(),
        occurred_at=datetime.now(UTC),
        sender_id=SENDER,
        workspace_id=WORKSPACE,
        version=1,
        waba_id=lean_meta.WABA,
        app_id=APP,
        default=True,
    )


def _template() -> TemplateUpdated:
    return TemplateUpdated(
        event_id=uuid4(),
        occurred_at=datetime.now(UTC),
        waba_id=lean_meta.WABA,
        name=lean_meta.TEMPLATE,
        language=lean_meta.LANGUAGE,
        version=1,
        status="APPROVED",
        category="MARKETING",
        parameter_format="POSITIONAL",
        components=[],
        said_by="sync",
        said_at=datetime.now(UTC),
    )


def _accepted(number: int) -> StatusUpdated:
    now = datetime.now(UTC)
    return StatusUpdated(
        event_id=event_id_of(f"m{number}", "accepted"),
        occurred_at=now,
        observed_at=now,
        message_id=f"m{number:08}",
        workspace_id=WORKSPACE,
        sender_id=SENDER,
        provider_message_id=_wamid(number),
        service=Service.DISPATCHER,
        status=Status.ACCEPTED,
        to=To(contact_id=f"c{number:08}", phone=f"+5255{10_000_000 + number}"),
        receipt_deadline=now.replace(year=now.year + 1),
    )


def _webhook(number: int) -> Outgoing:
    body = lean_meta.webhook(
        SENDER.encode(), _wamid(number).encode(), b"sent", b"525512345678", b"sw1:bench:m%08d" % number
    )
    headers = (("source", b"meta"), ("app_id", APP.encode()))
    return Outgoing(Topic.WEBHOOK_RECEIVED, None, lean_meta.body_of([body]), headers)


@contextlib.asynccontextmanager
async def desk(postgres: Postgres) -> AsyncIterator[Desk]:
    """On databases of its own."""
    counter, pools = Counter(), {}

    async def init(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(counter.on_query)

    async with contextlib.AsyncExitStack() as stack:
        for service in Service:
            module = service.replace("-", "_")
            url = await postgres.ensure_database(module)
            await migrate(url, Path(importlib.import_module(module).__file__ or "").parent / "migrations")
            pool = asyncpg.create_pool(url, min_size=1, max_size=1, init=init)
            pools[service] = await stack.enter_async_context(pool)
        yield Desk(Way(pools), counter, pools)


async def measure() -> Costs:
    async with Postgres(Path(tempfile.mkdtemp(prefix="sendwhy-costs-"))) as postgres, desk(postgres) as bench:
        await bench.set_up()
        await bench.go(range(BATCH))
        return await bench.go(range(BATCH, 2 * BATCH))


def baseline() -> Costs | None:
    """Of this Python; None where nobody has counted with it yet: other versions have other instructions."""
    known: dict[str, Costs] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return known.get(VERSION)


def renew(costs: Costs) -> None:
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    BASELINE.write_text(json.dumps(known | {VERSION: costs}, indent=1, sort_keys=True) + "\n")


def dearer(costs: Costs, before: Costs) -> list[str]:
    """What costs more than the baseline has it, in words."""
    found = [f"{name}: is not in the baseline" for name in costs.keys() - before.keys()]
    for name in costs.keys() & before.keys():
        for what, cost in costs[name].items():
            allowed = before[name][what] * (1 + TOLERANCE if what == "instructions" else 1)
            if cost > allowed:
                found.append(f"{name}: {cost:,.0f} {what}, {before[name][what]:,.0f} in the baseline")
    return sorted(found)


def show(costs: Costs, before: Costs | None) -> None:
    table = Table("stage", "instructions/message", "before", "statements/batch", "before", title=f"Python {VERSION}")
    for name, cost in costs.items():
        was = (before or {}).get(name, {})
        cells = [f"{numbers.get(what, 0):,.0f}" for what in ("instructions", "statements") for numbers in (cost, was)]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("all", f"{sum(cost['instructions'] for cost in costs.values()):,.0f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="write the baseline of this Python")
    parser.add_argument("--json", action="store_true", help="what is dearer than the baseline; null without one")
    options = parser.parse_args()
    counted, before = asyncio.run(measure()), baseline()
    if options.json:
        print(json.dumps({"costs": counted, "dearer": None if before is None else dearer(counted, before)}))
    else:
        show(counted, before)
    if options.renew:
        renew(counted)
