"""A receipt is read by a leaner parser: it reads what the event's model reads, and nothing that this would refuse."""

import json
from typing import Any
from uuid import uuid4

import pytest
from dispatcher.receipts import Accepted, receipt_of
from dispatcher_cases import NOW
from pydantic import ValidationError
from sendwhy.events import Status, StatusUpdated, To, reason
from sendwhy.plain import Receipt
from sendwhy.reasons import ReasonCode, Service

PRICING = {"billable": True, "pricing_model": "PMP", "type": "regular", "category": "marketing"}
PLAIN: dict[str, Any] = {
    "event_id": uuid4(),
    "occurred_at": NOW,
    "observed_at": NOW,
    "message_id": "m-1",
    "workspace_id": "acme",
    "sender_id": "100000000000001",
    "provider_message_id": "wamid.HBgM",
    "service": Service.WEBHOOK_INGEST,
    "status": Status.DELIVERED,
}
SHARED = ("event_id", "occurred_at", "observed_at", "service", "status", "message_id", "workspace_id", "sender_id")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pricing": PRICING},
        {"pricing": PRICING, "conversation": {"id": "c", "origin": {"type": "marketing"}}, "extra": {"new": [1, None]}},
        {"message_id": None, "workspace_id": None, "sender_id": None},
        {"provider_message_id": "wamid.é"},
        {"template_category": "MARKETING", "status": Status.READ},
    ],
)
def test_a_receipt_is_read_as_the_model_reads_it(more: dict[str, Any]) -> None:
    event = StatusUpdated(**(PLAIN | more))
    receipt = receipt_of(event.to_json())
    assert isinstance(receipt, Receipt)
    for name in (*SHARED, "provider_message_id"):
        assert getattr(receipt, name) == getattr(event, name), name


def test_what_tells_more_is_left_to_the_model() -> None:
    several: list[dict[str, Any]] = [
        {"status": Status.FAILED, "reason": reason(ReasonCode.MARKETING_CAP_REACHED, "so")},
        {"to": To(contact_id="c-1")},
        {"metadata": {}},
        {"receipt_deadline": NOW},
    ]
    for more in several:
        assert receipt_of(StatusUpdated(**(PLAIN | more)).to_json()) is None


REFUSED: list[tuple[str, Any]] = [
    ("event_id", "no uuid"),
    ("event_id", None),
    ("occurred_at", "2026-11-22T12:00:00"),
    ("occurred_at", "1999-12-31T23:59:59Z"),
    ("occurred_at", "2100-01-01T00:00:01Z"),
    ("observed_at", "2101-01-01T00:00:00Z"),
    ("observed_at", "soon"),
    ("service", "postman"),
    ("status", "lost"),
    ("message_id", "m 1"),
    ("message_id", "m-1\n"),
    ("message_id", 1),
    ("workspace_id", "a" * 65),
    ("sender_id", "12a"),
    ("sender_id", "1" * 21),
    ("provider_message_id", ""),
    ("provider_message_id", "a\x00b"),
    ("provider_message_id", "a" * 513),
    ("pricing", "free"),
    ("extra", [1]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_the_model_refuses_is_no_receipt(name: str, value: object) -> None:
    told = json.loads(StatusUpdated(**PLAIN).to_json()) | {name: value}
    body = json.dumps(told).encode()
    with pytest.raises(ValidationError):
        StatusUpdated.model_validate_json(body)
    assert receipt_of(body) is None


def test_what_is_no_object_is_no_receipt() -> None:
    for body in (b"", b"[]", b"null", b"{", b"\xff", b'{"provider_message_id": "\\ud800"}'):
        assert receipt_of(body) is None


def test_what_is_nested_too_deeply_is_no_receipt() -> None:
    plain = StatusUpdated(**PLAIN).to_json()
    assert receipt_of(plain[:-1] + b',"deep":' + b"[" * 5_000 + b"]" * 5_000 + b"}") is None


def test_of_accepted_messages_the_last_ones_are_known() -> None:
    known = Accepted(most=2)
    known.add([("acme", "m1"), ("acme", "m2")])
    known.add([("acme", "m2"), ("acme", "m3")])
    assert [("acme", name) in known for name in ("m1", "m2", "m3")] == [False, True, True]
    assert ("other", "m3") not in known
