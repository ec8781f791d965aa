"""An `accepted` is read by a leaner parser: what the model reads, and nothing that the model would refuse."""

import json
from datetime import timedelta
from typing import Any

import pytest
from ingest_webhooks import AT, NUMBER, WORKSPACE
from pydantic import ValidationError
from sendwhy.events import Origin, OriginKind, Status, StatusUpdated, To, event_id_of
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import Topic, outgoing
from webhook_ingest.accepted import accepted_of

EVENT = StatusUpdated(
    event_id=event_id_of("m-1", "accepted"),
    occurred_at=AT,
    observed_at=AT,
    message_id="m-1",
    workspace_id=WORKSPACE,
    sender_id=NUMBER,
    provider_message_id="wamid.A",
    service=Service.DISPATCHER,
    status=Status.ACCEPTED,
    to=To(contact_id="shopify:7712", phone="+525512345678"),
    origin=Origin(kind=OriginKind.API),
    metadata={"order": "4711"},
    receipt_deadline=AT + timedelta(days=30),
    template_category="MARKETING",
)
ASKED = ("occurred_at", "message_id", "workspace_id", "sender_id", "provider_message_id", "receipt_deadline")


def record(body: bytes, source: str = Service.DISPATCHER) -> Record[None]:
    headers = outgoing(EVENT, source=source).headers
    return Record(None, Topic.STATUS_UPDATED, 0, 0, AT, None, body, headers)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"to": To(phone="+525512345678")},
        {"to": To(contact_id="c é")},
        {"to": None, "receipt_deadline": None},
        {"provider_message_id": 'wamid."\\é'},
    ],
)
def test_an_accepted_is_read_as_the_model_reads_it(more: dict[str, Any]) -> None:
    event = EVENT.model_copy(update=more)
    told = accepted_of(record(event.to_json()))
    assert told is not None
    for name in ASKED:
        assert getattr(told, name) == getattr(event, name), name
    assert (told.to and told.to.contact_id, told.to and told.to.phone) == (
        event.to and event.to.contact_id,
        event.to and event.to.phone,
    )


def test_times_of_other_zones_and_fields_of_tomorrow_are_read() -> None:
    body = {**json.loads(EVENT.to_json()), "occurred_at": "2026-11-22T11:00:00+01:00", "news": {"a": 1}}
    told = accepted_of(record(json.dumps(body).encode()))
    assert told is not None
    assert told.occurred_at == AT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("occurred_at", "2026-11-22T10:00:00"),
        ("occurred_at", "1999-11-22T10:00:00Z"),
        ("receipt_deadline", "2200-11-22T10:00:00Z"),
        ("message_id", "a b"),
        ("message_id", "m-1\n"),
        ("workspace_id", ""),
        ("sender_id", "12a"),
        ("sender_id", "1" * 21),
        ("provider_message_id", "wamid\u0000"),
        ("to", {}),
        ("to", {"contact_id": ""}),
        ("to", {"phone": 5}),
        ("status", "eaten"),
        ("service", 7),
    ],
)
def test_what_the_model_refuses_is_refused_here(name: str, value: Any) -> None:
    body = json.dumps(json.loads(EVENT.to_json()) | {name: value}).encode()
    with pytest.raises(ValidationError):
        StatusUpdated.model_validate_json(body)
    with pytest.raises(ValidationError):
        accepted_of(record(body))


@pytest.mark.parametrize(
    "more",
    [{"status": Status.DELIVERED}, {"service": Service.WEBHOOK_INGEST}, {"status": Status.FAILED, "sender_id": None}],
)
def test_other_statuses_are_nothing_to_it(more: dict[str, Any]) -> None:
    assert accepted_of(record(EVENT.model_copy(update=more).to_json())) is None


def test_what_is_ours_is_not_read() -> None:
    assert accepted_of(record(b"whatever", Service.WEBHOOK_INGEST)) is None


def test_an_accepted_without_its_keys_is_unreadable() -> None:
    body = EVENT.model_copy(update={"sender_id": None, "provider_message_id": None}).to_json()
    with pytest.raises(ValueError, match="accepted without sender_id, provider_message_id"):
        accepted_of(record(body))
