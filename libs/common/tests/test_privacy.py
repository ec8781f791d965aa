"""What knows an erased person again, and what is left of their requests."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sendwhy.erasure import report
from sendwhy.events import (
    ErasedRows,
    Origin,
    OriginKind,
    PersonErasing,
    Price,
    Purpose,
    Resolved,
    SendFunded,
    SendRejected,
    SendRequested,
    To,
    reason,
)
from sendwhy.privacy import Tagger, alias_of, is_alias, redacted, redacted_rejection, spellings
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import TOPICS, Topic

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CANARIES = ("5512345678", "shopify:7712", "Inés", "4711", "thread-7", "enrolled-7")
ALIAS = alias_of(uuid4())
CONTENTS: list[dict[str, Any]] = [
    {"type": "text", "text": {"body": "Hola Inés"}},
    {"type": "contacts", "contacts": [{"name": {"formatted_name": "Inés"}}]},
    {"type": "image", "image": {"link": "https://example.com/Inés"}},
    {
        "type": "template",
        "template": {
            "name": "sale",
            "language": {"code": "es_MX"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
        },
    },
]


def funded(content: dict[str, Any]) -> SendFunded:
    request = {
        "message_id": "m-1",
        "workspace_id": "acme",
        "to": {"contact_id": "shopify:7712", "phone": "+525512345678"},
        "origin": {"kind": "inbox", "thread_id": "thread-7", "enrollment_id": "enrolled-7", "id": "black-friday"},
        "content": content,
        "requested_at": NOON.isoformat(),
        "metadata": {"order": "4711"},
    }
    return SendFunded(
        event_id=uuid4(),
        occurred_at=NOON,
        request=SendRequested.model_validate_json(json.dumps(request)),
        resolved=Resolved(
            contact_id="shopify:7712", phone="+525512345678", country="MX", calling_code="52", purpose=Purpose.MARKETING
        ),
        needs_subscription=True,
        send_at=NOON,
        expires_at=NOON + timedelta(days=1),
        price=Price(credits=1, category="marketing"),
    )


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: str(content["type"]))
def test_a_request_without_its_person_can_still_be_read_and_names_nobody(content: dict[str, Any]) -> None:
    event = funded(content)
    left = SendFunded.model_validate_json(redacted(event, ALIAS).to_json())
    assert not [one for one in CANARIES if one in left.model_dump_json()]
    assert (left.event_id, left.message_id, left.price) == (event.event_id, "m-1", event.price)
    assert left.resolved.calling_code == "52"
    assert left.request.origin.id == "black-friday"
    assert (left.request.template is None) == (event.request.template is None)
    assert is_alias(left.resolved.contact_id)
    assert redacted(left, ALIAS) == left


def test_a_rejection_keeps_its_reason_and_names_nobody() -> None:
    why = reason(ReasonCode.INSUFFICIENT_CREDITS, "the balance is 0", {"balance": 0})
    event = SendRejected(
        event_id=uuid4(),
        occurred_at=NOON,
        message_id="m-1",
        workspace_id="acme",
        to=To(contact_id="shopify:7712"),
        origin=Origin(kind=OriginKind.INBOX, id="black-friday", thread_id="thread-7"),
        service=Service.BILLING,
        reason=why,
        metadata={"order": "4711"},
    )
    left = redacted_rejection(event, ALIAS)
    assert not [one for one in CANARIES if one in left.model_dump_json()]
    assert left.reason == why


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("+525512345678", "5215512345678"),
        ("+52 1 55 1234 5678", "525512345678"),
        ("+541112345678", "5491112345678"),
        ("+5511987654321", "551187654321"),
        ("+447700900142", "447700900142"),
    ],
)
def test_all_forms_of_a_number_lead_to_the_same_tags(one: str, other: str) -> None:
    assert spellings(one) == spellings(other)
    tagger = Tagger("a key of tests only")
    tags = [tag for form in spellings(one) for tag in tagger.of_person("acme", phone=form)]
    assert tagger.of_person("acme", phone=f"+{other}")[0] in tags
    assert tagger.of_person("globex", phone=other)[0] not in tags
    assert Tagger("another key of tests").of_person("acme", phone=other)[0] not in tags


def test_a_landline_in_brazil_is_nobodys_mobile() -> None:
    assert spellings("+551134567890") == ["551134567890"]
    assert spellings("+5511934567890") == ["5511934567890"]


def test_a_report_adds_up_and_keeps_its_grounds() -> None:
    order = PersonErasing(
        event_id=uuid4(),
        occurred_at=NOON,
        workspace_id="acme",
        erasure_id=uuid4(),
        erased_at=NOON,
        tags=[],
        message_ids=[],
    )
    tables = [
        ErasedRows(table="message", act="blurred", rows=1),
        ErasedRows(table="message", act="blurred", rows=2),
        ErasedRows(table="window", act="erased", rows=0),
        ErasedRows(table="raw", act="kept", rows=0, ground="14 days"),
    ]
    told = report(order, Service.BILLING, tables, NOON)
    assert [(one.table, one.rows) for one in told.tables] == [("message", 3), ("raw", 0)]
    assert told == report(order, Service.BILLING, tables, NOON)


def test_how_long_topics_hold_what_they_hold() -> None:
    assert TOPICS[Topic.SEND_REQUESTED].gone_after == timedelta(days=15)
    assert TOPICS[Topic.CONTACT_UPDATED].gone_after == timedelta(days=22)
    assert TOPICS[Topic.SEND_REQUESTED].config()["segment.ms"] == "86400000"
