"""The stages on a message's way, wired as each service's `make_app` wires them, on a real PostgreSQL, without Kafka:
what `costs.py` counts and `growth.py` measures. The calls to Meta are no stage, and not here.
"""

import contextlib
import importlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import lean_meta
from aiokafka import ConsumerRecord, TopicPartition
from billing.decide import top_up
from billing.stages import Funder, Settler, consented_of, status_of
from billing.store import add_entries, lock_or_open_accounts, save_accounts
from consent.settings import Settings as ConsentSettings
from consent.stages import Stages as Consent
from cryptography.fernet import Fernet
from dispatcher.app import SESSION as DISPATCHERS_SESSION
from dispatcher.settings import Settings as DispatcherSettings
from dispatcher.stages import Stages as Dispatcher
from dispatcher.stages import funded_of
from dispatcher.store import NewSender, put_sender
from message_log import projection
from message_log.erasures import People
from message_log.progress import Progress
from message_log.settings import MessageLogSettings
from pydantic import SecretStr
from sendwhy.events import (
    CustomerUpdated,
    SenderUpdated,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateUpdated,
    To,
    event_id_of,
)
from sendwhy.kafka import Producer
from sendwhy.metrics import Metrics
from sendwhy.postgres import KEYED_LOOKUPS, leave_as_it_is, migrate
from sendwhy.privacy import Tagger
from sendwhy.reasons import Service
from sendwhy.stage import Handle, Parse, Record, Stage, parse_json, parse_state
from sendwhy.topics import Outgoing, Topic, outgoing
from webhook_ingest import parsing
from webhook_ingest.accepted import accepted_of

APP, KEY = "400000000000001", "a key of benches only"
FIRST_SENDER = 100000000000700
CHUNK = 500


@dataclass(frozen=True)
class Crowd:
    """Over how many workspaces, numbers and campaigns messages are spread; a number belongs to one workspace."""

    workspaces: int = 1
    senders: int = 1
    campaigns: int = 1

    @property
    def numbers(self) -> int:
        return max(self.workspaces, self.senders)

    def sender(self, number: int) -> str:
        return str(FIRST_SENDER + number % self.numbers)

    def workspace(self, number: int) -> str:
        return f"bench-{number % self.numbers % self.workspaces}"

    def campaign(self, number: int) -> str:
        return f"campaign-{number % self.campaigns}"


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
        await self._handler(batch)
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
            Topic.SEND_CONSENTED: self.line(Service.BILLING, Topic.SEND_CONSENTED, consented_of, fund),
            Topic.STATUS_UPDATED: self.line(Service.BILLING, Topic.STATUS_UPDATED, status_of, settle),
        }

    def dispatcher(self) -> Line:
        settings = DispatcherSettings(
            **_common(), privacy_key=SecretStr(KEY), token_encryption_key=SecretStr(Fernet.generate_key().decode())
        )
        stages = Dispatcher(cast("Any", self), settings, cast("Any", self), lambda: datetime.now(UTC))
        return self.line(Service.DISPATCHER, Topic.SEND_FUNDED, funded_of, stages.on_funded)

    def webhook_ingest(self) -> dict[Topic, Line]:
        tagger = Tagger(KEY)

        async def on_webhooks(connection: Any, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
            return (await parsing.apply(connection, [record.event for record in records], frozenset({APP}))).publish

        async def on_statuses(connection: Any, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
            return (await parsing.accept(connection, records, tagger)).publish

        service = Service.WEBHOOK_INGEST
        return {
            Topic.WEBHOOK_RECEIVED: self.line(service, Topic.WEBHOOK_RECEIVED, parsing.delivery_of, on_webhooks),
            Topic.STATUS_UPDATED: self.line(service, Topic.STATUS_UPDATED, accepted_of, on_statuses),
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
    return {
        "kafka_bootstrap_servers": "nowhere:9092",
        "database_url": SecretStr("postgresql://nowhere/x"),
        "api_tokens": SecretStr(""),
    }


@dataclass
class Desk:
    """All stages; `around` is entered around each batch that counts, and told the stage's name."""

    crowd: Crowd
    pools: dict[Service, asyncpg.Pool]
    around: Callable[[str], AbstractContextManager[Any]]

    def __post_init__(self) -> None:
        way = Way(self.pools)
        self.consent, self.billing, self.dispatcher = way.consent(), way.billing(), way.dispatcher()
        self.ingest, self.log = way.webhook_ingest(), way.message_log()

    async def set_up(self, people: int) -> None:
        """Numbers with their template, credits, and so many people who want messages."""
        crowd = self.crowd
        senders = [outgoing(_sender(crowd, number), source="bench") for number in range(crowd.numbers)]
        for lines in (self.consent, self.ingest):
            await _feed_all(lines[Topic.SENDER_UPDATED], senders)
        await self.consent[Topic.TEMPLATE_UPDATED].feed([outgoing(_template(), source="bench")])
        customers = [outgoing(_customer(crowd, number), source="bench") for number in range(people)]
        await _feed_all(self.consent[Topic.CUSTOMER_UPDATED], customers)
        async with self.pools[Service.BILLING].acquire() as connection, connection.transaction():
            accounts = await lock_or_open_accounts(connection, [crowd.workspace(n) for n in range(crowd.workspaces)])
            given = [top_up(account, 10_000_000, reference="bench", actor="bench") for account in accounts.values()]
            await add_entries(connection, [entry for _, entry in given], at=datetime.now(UTC))
            await save_accounts(connection, [account for account, _ in given])
        async with self.pools[Service.DISPATCHER].acquire() as connection:
            for number in range(crowd.numbers):
                known = (crowd.sender(number), crowd.workspace(number), lean_meta.PORTFOLIO, lean_meta.WABA, APP)
                await put_sender(connection, NewSender(*known, number < crowd.workspaces, b"sealed"), datetime.now(UTC))

    async def go(self, numbers: range) -> None:
        """The whole way of these messages, a batch in each stage."""
        crowd = self.crowd

        async def feed(line: Line, records: Sequence[Outgoing]) -> list[Outgoing]:
            with self.around(line.name):
                return await line.feed(records)

        requested = [outgoing(request_of(crowd, number), source="bench") for number in numbers]
        consented = _only(await feed(self.consent[Topic.SEND_REQUESTED], requested), Topic.SEND_CONSENTED, numbers)
        funded = _only(await feed(self.billing[Topic.SEND_CONSENTED], consented), Topic.SEND_FUNDED, numbers)
        await feed(self.dispatcher, funded)
        accepted = [outgoing(_accepted(crowd, number), source="dispatcher") for number in numbers]
        await feed(self.ingest[Topic.STATUS_UPDATED], accepted)
        webhooks = [_webhook(crowd, number) for number in numbers]
        sent = _only(await feed(self.ingest[Topic.WEBHOOK_RECEIVED], webhooks), Topic.STATUS_UPDATED, numbers)
        await feed(self.billing[Topic.STATUS_UPDATED], sent)
        for records in (requested, consented, funded, accepted, webhooks):
            await feed(self.log[records[0].topic], records)


async def _feed_all(line: Line, records: Sequence[Outgoing]) -> None:
    for start in range(0, len(records), CHUNK):
        await line.feed(records[start : start + CHUNK])


def _only(records: Sequence[Outgoing], topic: Topic, numbers: range) -> list[Outgoing]:
    """What goes on: something went wrong before anything was counted if it isn't one of each message."""
    found = [record for record in records if record.topic is topic]
    assert len(found) == len(numbers), f"{len(found)} of {len(numbers)} messages on {topic}: {records[:1]}"
    return found


def _wamid(number: int) -> str:
    return f"wamid.bench{number:08}"


def request_of(crowd: Crowd, number: int) -> SendRequested:
    template = {
        "name": lean_meta.TEMPLATE,
        "language": {"code": lean_meta.LANGUAGE},
        "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
    }
    body = {
        "message_id": f"m{number:08}",
        "workspace_id": crowd.workspace(number),
        "sender_id": crowd.sender(number),
        "to": {"contact_id": f"c{number:08}"},
        "origin": {"kind": "campaign", "id": crowd.campaign(number), "name": "Bench"},
        "content": {"type": "template", "template": template},
        "requested_at": datetime.now(UTC).isoformat(),
        "metadata": {"order": "4711"},
    }
    return SendRequested.model_validate_json(json.dumps(body))


def _customer(crowd: Crowd, number: int) -> CustomerUpdated:
    told = {
        "event_id": str(uuid4()),
        "occurred_at": datetime.now(UTC).isoformat(),
        "source": "shopify",
        "action": "update",
        "workspace_id": crowd.workspace(number),
        "contact_id": f"c{number:08}",
        "phone": f"+5255{10_000_000 + number}",
        "marketing_state": "SUBSCRIBED",
    }
    return CustomerUpdated.model_validate_json(json.dumps(told))


def _sender(crowd: Crowd, number: int) -> SenderUpdated:
    return SenderUpdated(
        event_id=uuid4(),
        occurred_at=datetime.now(UTC),
        sender_id=crowd.sender(number),
        workspace_id=crowd.workspace(number),
        version=1,
        waba_id=lean_meta.WABA,
        app_id=APP,
        default=number < crowd.workspaces,
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


def _accepted(crowd: Crowd, number: int) -> StatusUpdated:
    now = datetime.now(UTC)
    return StatusUpdated(
        event_id=event_id_of(f"m{number}", "accepted"),
        occurred_at=now,
        observed_at=now,
        message_id=f"m{number:08}",
        workspace_id=crowd.workspace(number),
        sender_id=crowd.sender(number),
        provider_message_id=_wamid(number),
        service=Service.DISPATCHER,
        status=Status.ACCEPTED,
        to=To(contact_id=f"c{number:08}", phone=f"+5255{10_000_000 + number}"),
        receipt_deadline=now.replace(year=now.year + 1),
    )


def _webhook(crowd: Crowd, number: int) -> Outgoing:
    body = lean_meta.webhook(
        crowd.sender(number).encode(),
        _wamid(number).encode(),
        b"sent",
        b"525512345678",
        f"sw1:{crowd.workspace(number)}:m{number:08}".encode(),
    )
    headers = (("source", b"meta"), ("app_id", APP.encode()))
    return Outgoing(Topic.WEBHOOK_RECEIVED, None, lean_meta.body_of([body]), headers)


# As the services' own (app.py); the message log's is the usual one.
SESSIONS = {
    Service.CONSENT: KEYED_LOOKUPS,
    Service.BILLING: KEYED_LOOKUPS,
    Service.DISPATCHER: DISPATCHERS_SESSION,
    Service.WEBHOOK_INGEST: KEYED_LOOKUPS,
}


@contextlib.asynccontextmanager
async def desk(
    postgres: str,
    crowd: Crowd,
    around: Callable[[str], AbstractContextManager[Any]] = lambda _name: nullcontext(),
    on_query: Callable[[Any], None] | None = None,
) -> AsyncIterator[Desk]:
    """On databases of its own, in the server at this address (the superuser's), which are dropped in the end."""
    admin = await asyncpg.connect(postgres)
    pools: dict[Service, asyncpg.Pool] = {}

    async def init(connection: asyncpg.Connection) -> None:
        if on_query:
            connection.add_query_logger(on_query)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(admin.close)
        for service in Service:
            module = service.replace("-", "_")
            name = f"{module}_{uuid4().hex}"
            await admin.execute(f"create database {name}")
            stack.push_async_callback(admin.execute, f"drop database {name} with (force)")
            url = urlsplit(postgres)._replace(path=f"/{name}").geturl()
            await migrate(url, Path(importlib.import_module(module).__file__ or "").parent / "migrations")
            pool = asyncpg.create_pool(
                url, min_size=1, max_size=1, init=init, reset=leave_as_it_is, server_settings=SESSIONS.get(service, {})
            )
            pools[service] = await stack.enter_async_context(pool)
        yield Desk(crowd, pools, around)
