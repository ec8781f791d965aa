"""Feeds batches to consent's stages on a real database, without Kafka, and reads what they would publish."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
from consent import store
from consent.contacts import Book, Change, Origin
from consent.fields import Fields
from consent.settings import Settings
from consent.stages import Stages
from pydantic import SecretStr
from sendwhy.events import (
    ContactUpdated,
    CustomerUpdated,
    Inbound,
    MessageReceived,
    SenderUpdated,
    SendRequested,
    TemplateUpdated,
    Wire,
)
from sendwhy.metrics import Metrics
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic, topic_of

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SENDER, WABA = "415566778899001", "301122334455667"
PHONE = "+525512345678"
PRIVACY_KEY = "a key of tests only"
TAGGER = store.Tagger(PRIVACY_KEY)
_offsets = itertools.count()


def settings(database_url: str = "postgresql://nowhere/x", kafka: str = "nowhere:9092", **more: Any) -> Settings:
    return Settings(
        database_url=SecretStr(database_url),
        kafka_bootstrap_servers=kafka,
        privacy_key=SecretStr(PRIVACY_KEY),
        api_tokens=SecretStr("admin-token-1:admin:*,viewer-token-1:viewer:acme,operator-token-1:operator:acme"),
        **more,
    )


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def record(event: Any, topic: Topic | None = None, value: bytes | None = None, key: bytes | None = None) -> Record[Any]:
    if isinstance(event, Wire):
        topic, value = topic or topic_of(type(event)), value or event.to_json()
    return Record(event, topic or Topic.SEND_REQUESTED, 0, next(_offsets), NOON, key, value, ())


def request(message_id: str = "m-1", **more: Any) -> SendRequested:
    body: dict[str, Any] = {
        "message_id": message_id,
        "workspace_id": "acme",
        "sender_id": SENDER,
        "to": {"contact_id": "shopify:7712", "phone": PHONE},
        "origin": {"kind": "campaign", "id": "black-friday"},
        "content": {"type": "template", "template": {"name": "autumn_sale", "language": {"code": "es_MX"}}},
        "requested_at": NOON,
        "metadata": {"order": "4711"},
    }
    return SendRequested.model_validate(body | more, strict=False)


def customer(minutes: float = 0, **more: Any) -> CustomerUpdated:
    told: dict[str, Any] = {
        "event_id": uuid4(),
        "occurred_at": at(minutes),
        "source": "shopify",
        "action": "update",
        "workspace_id": "acme",
        "contact_id": "shopify:7712",
        "phone": PHONE,
        "marketing_state": "SUBSCRIBED",
    }
    return CustomerUpdated.model_validate(told | more, strict=False)


def message(text: str, minutes: float, **more: Any) -> MessageReceived:
    said: dict[str, Any] = {
        "event_id": uuid4(),
        "occurred_at": at(minutes),
        "workspace_id": "acme",
        "sender_id": SENDER,
        "wamid": f"wamid.{text}.{minutes}",
        "phone": "5215512345678",
        "kind": Inbound.TEXT,
        "text": text,
        "raw": {},
    }
    return MessageReceived.model_validate(said | more)


def sender(version: int = 1, **more: Any) -> SenderUpdated:
    state: dict[str, Any] = {
        "event_id": uuid4(),
        "occurred_at": NOON,
        "sender_id": SENDER,
        "workspace_id": "acme",
        "version": version,
        "waba_id": WABA,
        "default": True,
    }
    return SenderUpdated.model_validate(state | more)


def template(category: str, version: int = 1) -> TemplateUpdated:
    return TemplateUpdated(
        event_id=uuid4(),
        occurred_at=NOON,
        waba_id=WABA,
        name="autumn_sale",
        language="es_MX",
        version=version,
        status="APPROVED",
        category=category,
        parameter_format="POSITIONAL",
        components=[],
        said_by="sync",
        said_at=NOON,
    )


class Desk:
    def __init__(self, pool: asyncpg.Pool, **more: Any) -> None:
        self.pool = pool
        self.metrics = Metrics(Service.CONSENT)
        self.stages = Stages(settings(**more), self.metrics)

    async def handle(
        self, act: Callable[[Any, Sequence[Any]], Awaitable[Sequence[Outgoing]]], *events: Any
    ) -> list[Outgoing]:
        records = [event if isinstance(event, Record) else record(event) for event in events]
        async with self.pool.acquire() as connection, connection.transaction():
            return list(await act(connection, records))

    async def tell(self, *events: Any) -> list[Outgoing]:
        """Customer updates, messages, senders, templates: to whichever stage they belong."""
        acts: dict[type, Any] = {
            CustomerUpdated: self.stages.on_customer,
            MessageReceived: self.stages.on_message,
            SenderUpdated: self.stages.on_sender,
            TemplateUpdated: self.stages.on_template,
        }
        return [one for event in events for one in await self.handle(acts[type(event)], event)]

    async def put(self, contact_id: str, **fields: Any) -> Book:
        """A PUT of these fields, as the HTTP API would make it."""
        change = Change("acme", f"put/{uuid4()}", datetime.now(UTC), "alice", Origin.PUT, contact_id, Fields(**fields))
        async with self.pool.acquire() as connection, connection.transaction():
            book = await store.open_book(connection, TAGGER, [change], change.at)
            book.apply(change)
            await store.save_book(connection, TAGGER, book)
        return book

    async def request(self, *requests: SendRequested) -> list[Outgoing]:
        return await self.handle(self.stages.on_requested, *requests)


def contact_in(published: Sequence[Outgoing]) -> ContactUpdated:
    values = [one.value for one in published if one.topic == Topic.CONTACT_UPDATED and one.value]
    return ContactUpdated.model_validate_json(values[-1])
