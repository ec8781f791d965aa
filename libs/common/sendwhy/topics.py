"""The topics in one table: partitions, retention, keys, and which event travels where (contract.md, "Kafka")."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

from sendwhy.events import (
    AccountUpdated,
    ContactUpdated,
    CustomerUpdated,
    Event,
    MessageReceived,
    PersonErased,
    PersonErasing,
    SendCancelled,
    SendConsented,
    SenderReported,
    SenderUpdated,
    SendFunded,
    SendHeld,
    SendRecalled,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateReported,
    TemplateUpdated,
    Wire,
)
from sendwhy.values import value_class

DAY_MS = 24 * 60 * 60 * 1000
EVENT_RETENTION_DAYS = 14
COMPACTED_WITHIN = timedelta(days=7)
MAX_WEBHOOK_BYTES = 3 * 1024 * 1024
MAX_RECORD_BYTES = 4 * 1024 * 1024
MAX_DEAD_LETTER_BYTES = 5 * 1024 * 1024

Headers = tuple[tuple[str, bytes], ...]
_JSON = ("content-type", b"application/json")


class Topic(StrEnum):
    SEND_REQUESTED = "send.requested"
    SEND_CONSENTED = "send.consented"
    SEND_FUNDED = "send.funded"
    SEND_REJECTED = "send.rejected"
    SEND_HELD = "send.held"
    SEND_RECALLED = "send.recalled"
    SEND_CANCELLED = "send.cancelled"
    STATUS_UPDATED = "status.updated"
    WEBHOOK_RECEIVED = "webhook.received"
    WEBHOOK_REFUSED = "webhook.refused"
    MESSAGE_RECEIVED = "message.received"
    CUSTOMER_UPDATED = "customer.updated"
    TEMPLATE_REPORTED = "template.reported"
    SENDER_REPORTED = "sender.reported"
    CONTACT_UPDATED = "contact.updated"
    TEMPLATE_UPDATED = "template.updated"
    SENDER_UPDATED = "sender.updated"
    ACCOUNT_UPDATED = "account.updated"
    PERSON_ERASING = "person.erasing"
    PERSON_ERASED = "person.erased"
    DEAD_LETTERS = "dead.letters"


@value_class
class TopicSpec:
    """How a topic is made. `compacted`: whole state by key, kept for ever; `flushed`: on disk before the answer."""

    partitions: int
    compacted: bool = False
    flushed: bool = False
    max_bytes: int = MAX_RECORD_BYTES

    @property
    def gone_after(self) -> timedelta:
        """How long a record can be read at the latest; on a compacted topic, if its key has got a tombstone."""
        segment = timedelta(days=1)
        if self.compacted:
            return COMPACTED_WITHIN + segment + timedelta(days=EVENT_RETENTION_DAYS)
        return timedelta(days=EVENT_RETENTION_DAYS) + segment

    def config(self) -> dict[str, str]:
        """The topic's settings for Kafka. LogAppendTime, since a producer's clock ahead would be refused (KIP-1030)."""
        settings = {
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.max_bytes),
        }
        if self.compacted:
            settings |= {
                "cleanup.policy": "compact",
                "segment.ms": str(DAY_MS),
                "max.compaction.lag.ms": str(COMPACTED_WITHIN // timedelta(milliseconds=1)),
                "delete.retention.ms": str(EVENT_RETENTION_DAYS * DAY_MS),
            }
        else:
            # A segment goes as a whole, after its last record's time: with Kafka's 7 days it would be 21 days.
            settings |= {
                "cleanup.policy": "delete",
                "retention.ms": str(EVENT_RETENTION_DAYS * DAY_MS),
                "segment.ms": str(DAY_MS),
            }
        if self.flushed:
            settings["flush.messages"] = "1"
        return settings


TOPICS: Mapping[Topic, TopicSpec] = MappingProxyType(
    {
        Topic.SEND_REQUESTED: TopicSpec(6),
        Topic.SEND_CONSENTED: TopicSpec(6),
        Topic.SEND_FUNDED: TopicSpec(6),
        Topic.SEND_REJECTED: TopicSpec(6),
        Topic.SEND_HELD: TopicSpec(3),
        Topic.SEND_RECALLED: TopicSpec(3),
        Topic.SEND_CANCELLED: TopicSpec(3),
        Topic.STATUS_UPDATED: TopicSpec(6),
        Topic.WEBHOOK_RECEIVED: TopicSpec(6, flushed=True),
        Topic.WEBHOOK_REFUSED: TopicSpec(1),
        Topic.MESSAGE_RECEIVED: TopicSpec(6),
        Topic.CUSTOMER_UPDATED: TopicSpec(3),
        Topic.TEMPLATE_REPORTED: TopicSpec(1),
        Topic.SENDER_REPORTED: TopicSpec(1),
        Topic.CONTACT_UPDATED: TopicSpec(6, compacted=True),
        Topic.TEMPLATE_UPDATED: TopicSpec(1, compacted=True),
        Topic.SENDER_UPDATED: TopicSpec(1, compacted=True),
        Topic.ACCOUNT_UPDATED: TopicSpec(1, compacted=True),
        Topic.PERSON_ERASING: TopicSpec(1),
        Topic.PERSON_ERASED: TopicSpec(1),
        Topic.DEAD_LETTERS: TopicSpec(3, max_bytes=MAX_DEAD_LETTER_BYTES),
    }
)


def contact_key(workspace_id: str, contact_id: str) -> str:
    return f"{workspace_id}/{contact_id}"


def template_key(waba_id: str, name: str, language: str) -> str:
    return f"{waba_id}/{name}/{language}"


def _request_key(request: SendRequested) -> str:
    return request.to.contact_id or request.to.phone or request.message_id


_ROUTES: Mapping[type[Wire], tuple[Topic, Callable[[Any], str]]] = MappingProxyType(
    {
        SendRequested: (Topic.SEND_REQUESTED, _request_key),
        SendConsented: (Topic.SEND_CONSENTED, lambda e: e.message_id),
        SendFunded: (Topic.SEND_FUNDED, lambda e: e.message_id),
        SendRejected: (Topic.SEND_REJECTED, lambda e: e.message_id),
        SendHeld: (Topic.SEND_HELD, lambda e: e.message_id or e.scope.id),
        SendRecalled: (Topic.SEND_RECALLED, lambda e: e.message_id),
        SendCancelled: (Topic.SEND_CANCELLED, lambda e: e.message_id or e.campaign_id or e.sender_id or ""),
        StatusUpdated: (
            Topic.STATUS_UPDATED,
            lambda e: e.message_id or e.provider_message_id or str(e.event_id),
        ),
        MessageReceived: (Topic.MESSAGE_RECEIVED, lambda e: f"{e.sender_id}/{e.phone or e.user_id}"),
        CustomerUpdated: (
            Topic.CUSTOMER_UPDATED,
            lambda e: f"{e.workspace_id}/{e.contact_id or e.phone or e.user_id}",
        ),
        TemplateReported: (
            Topic.TEMPLATE_REPORTED,
            lambda e: template_key(e.waba_id, e.name or "", e.language or ""),
        ),
        SenderReported: (Topic.SENDER_REPORTED, lambda e: e.sender_id or e.waba_id),
        ContactUpdated: (Topic.CONTACT_UPDATED, lambda e: contact_key(e.workspace_id, e.contact_id)),
        TemplateUpdated: (Topic.TEMPLATE_UPDATED, lambda e: template_key(e.waba_id, e.name, e.language)),
        SenderUpdated: (Topic.SENDER_UPDATED, lambda e: e.sender_id),
        AccountUpdated: (Topic.ACCOUNT_UPDATED, lambda e: e.workspace_id),
        PersonErasing: (Topic.PERSON_ERASING, lambda e: f"{e.workspace_id}/{e.erasure_id}"),
        PersonErased: (Topic.PERSON_ERASED, lambda e: f"{e.workspace_id}/{e.erasure_id}"),
    }
)


@value_class
class Outgoing:
    """A record to publish. `value` None is a tombstone on a compacted topic. `anywhere`: nothing leans on its
    partition, and it stands in one batch with the others that are published with it."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    anywhere: bool = False


def topic_of(model: type[Wire]) -> Topic:
    return _ROUTES[model][0]


@cache
def source_header(service: str) -> bytes:
    """The value of the header `ce_source`."""
    return f"/sendwhy/{service}".encode()


def outgoing(event: Wire, *, source: str, trace: bytes | None = None) -> Outgoing:
    """The record that carries `event`, with CloudEvents 1.0 headers; `source` is the service, `trace` a traceparent."""
    topic, key_of = _ROUTES[type(event)]
    key, body = key_of(event).encode(), event.to_json()
    if isinstance(event, Event):
        return record_of_event(topic, key, body, str(event.event_id), event.occurred_at, source=source, trace=trace)
    headers: Headers = (_JSON,) if trace is None else (_JSON, ("traceparent", trace))
    return Outgoing(topic, key, body, headers)


def record_of_event(
    topic: Topic, key: bytes, body: bytes, event_id: str, occurred_at: datetime, *, source: str, trace: bytes | None
) -> Outgoing:
    """`outgoing` of an event that is written already."""
    headers: Headers = (
        _JSON,
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", source_header(source)),
        ("ce_type", _type_header(topic)),
        ("ce_time", _time_header(occurred_at)),
    )
    return Outgoing(topic, key, body, headers if trace is None else (*headers, ("traceparent", trace)))


@cache
def _type_header(topic: Topic) -> bytes:
    return f"sendwhy.{topic}.v1".encode()


@lru_cache(1024)
def _time_header(moment: datetime) -> bytes:
    return moment.isoformat().replace("+00:00", "Z").encode()


def tombstone(topic: Topic, key: str) -> Outgoing:
    return Outgoing(topic, key.encode(), None)


def utc_from_ms(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
