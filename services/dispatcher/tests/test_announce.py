"""When a wait is told: once a message and cause, and only above 10 s in all; and what we tell we don't read again."""

from dataclasses import replace
from datetime import timedelta

import pytest
from dispatcher import announce
from dispatcher.answers import Taken
from dispatcher.decide import Recall, Waiting, erased_contact, receipt_deadline
from dispatcher.stages import status_of_others
from dispatcher_cases import NOW, message
from pydantic import JsonValue
from sendwhy.events import Origin, OriginKind, SendHeld, Status, StatusUpdated, To, event_id_of, reason
from sendwhy.plain import Receipt
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic, outgoing

SECOND = timedelta(seconds=1)
CODE = ReasonCode.TEMPORARY_FAILURE
HELD = [
    ("short", message(), Waiting.RETRY, NOW + 10 * SECOND, False),
    ("long", message(), Waiting.RETRY, NOW + 11 * SECOND, True),
    ("until somebody repairs it", message(), Waiting.TIER, None, True),
    ("a longer retry after short ones", message(waiting_for=Waiting.RETRY), Waiting.RETRY, NOW + 16 * SECOND, True),
    (
        "short looks that add up",
        message(waiting_for=Waiting.SYNC, waiting_since=NOW - 15 * SECOND),
        Waiting.SYNC,
        NOW + SECOND,
        True,
    ),
    ("told before", message(told=frozenset({Waiting.RETRY})), Waiting.RETRY, NOW + 64 * SECOND, False),
    ("another was told before", message(told=frozenset({Waiting.PAIR})), Waiting.RETRY, NOW + 64 * SECOND, True),
]


@pytest.mark.parametrize(("name", "waiting", "cause", "until", "told"), HELD, ids=[case[0] for case in HELD])
def test_a_wait_is_told_once_it_is_long(name: str, waiting, cause, until, told: bool) -> None:  # type: ignore[no-untyped-def]
    assert (announce.held(waiting, CODE, cause, NOW, until) is not None) is told


def test_the_end_that_is_told_is_never_after_the_expiry() -> None:
    late = NOW + timedelta(days=9)
    for cause in (Waiting.RETRY, Waiting.TIER):
        told = announce.held(message(), CODE, cause, NOW, late)
        assert told is not None
        event = SendHeld.model_validate_json(told[1].value or b"")
        assert event.until == message().funded.expires_at


def test_what_is_told_of_a_message_carries_its_traceparent() -> None:
    one, trace = message(trace=b"00-1-1-01"), ("traceparent", b"00-1-1-01")
    gone = Recall(erased_contact("acme", "erased:1", NOW))
    for told in (
        announce.rejected(one, reason(CODE, "x"), NOW),
        announce.recalled(one, gone, NOW),
        announce.held(one, CODE, Waiting.RETRY, NOW, NOW + 11 * SECOND),
        announce.outcome_awaited(one, NOW, NOW + SECOND, NOW),
    ):
        assert told is not None
        assert trace in told[1].headers
    # It is of no one message.
    assert "traceparent" not in dict(announce.campaign_held("acme", "sale", NOW)[1].headers)


ODD = 'é"\\/\u2028\U0001f600<&'
NOTHING: dict[str, JsonValue] = {}
METADATA: dict[str, JsonValue] = {"order": ODD, "parts": [1, 1.5, 1e22, 1e-7, -0.0, True, None, {"deep": []}]}


@pytest.mark.parametrize("category", [None, "MARKETING", "AUTHENTICATION"])
@pytest.mark.parametrize("trace", [None, b"00-1-1-01"])
def test_that_meta_took_a_message_is_written_as_the_model_writes_it(category: str | None, trace: bytes | None) -> None:
    plain = message().funded
    for to in (To(contact_id=ODD), To(phone="+52 55"), To(contact_id="c", phone="1")):
        for metadata in (NOTHING, METADATA):
            origin = Origin(kind=OriginKind.AUTOMATION, id="a", name=ODD)
            request = plain.request.model_copy(update={"to": to, "metadata": metadata, "origin": origin})
            for phone in (plain.resolved.phone, None):
                resolved = plain.resolved.model_copy(update={"phone": phone})
                funded = plain.model_copy(update={"request": request, "resolved": resolved})
                one = replace(message(), funded=funded, trace=trace)
                at, now, ttl = NOW + timedelta(microseconds=1_234), NOW + SECOND, timedelta(days=30)
                event = StatusUpdated(
                    event_id=event_id_of("/".join(one.key), "dispatcher.accepted"),
                    occurred_at=at,
                    observed_at=now,
                    message_id=request.message_id,
                    workspace_id=request.workspace_id,
                    sender_id=one.sender_id,
                    provider_message_id=ODD,
                    service=Service.DISPATCHER,
                    status=Status.ACCEPTED,
                    to=To(contact_id=to.contact_id, phone=phone or to.phone),
                    origin=origin,
                    metadata=metadata,
                    receipt_deadline=receipt_deadline(at, category, ttl),
                    template_category=category,
                )
                deadline = receipt_deadline(at, category, ttl)
                told = announce.accepted(one, Taken(ODD), at=at, now=now, category=category, deadline=deadline)
                assert told == (event.event_id, outgoing(event, source=Service.DISPATCHER, trace=trace))


@pytest.mark.parametrize(
    ("status", "extra"), [("held_for_quality_assessment", True), ("accepted", False), (None, False)]
)
def test_what_meta_said_beside_the_id_is_told_on_if_it_is_news(status: str | None, *, extra: bool) -> None:
    _, told = announce.accepted(message(), Taken("wamid.1", status), at=NOW, now=NOW, category=None, deadline=NOW)
    event = StatusUpdated.model_validate_json(told.value or b"")
    assert event.extra == ({"message_status": status} if extra else None)
    # As its model writes it.
    assert told == outgoing(event, source=Service.DISPATCHER)


def test_of_statuses_only_those_of_others_are_read() -> None:
    def read(record: Outgoing) -> StatusUpdated | Receipt | None:
        return status_of_others(Record(None, Topic.STATUS_UPDATED, 0, 0, NOW, record.key, record.value, record.headers))

    _, ours = announce.accepted(message(), Taken("wamid.1"), at=NOW, now=NOW, category=None, deadline=NOW + SECOND)
    sent = StatusUpdated(
        event_id=event_id_of("1", "sent"),
        occurred_at=NOW,
        observed_at=NOW,
        service=Service.WEBHOOK_INGEST,
        status=Status.SENT,
    )
    assert read(ours) is None
    # What carries no header may come from anybody, and is read.
    for record in (outgoing(sent, source=Service.WEBHOOK_INGEST), Outgoing(Topic.STATUS_UPDATED, b"1", sent.to_json())):
        receipt = read(record)
        assert isinstance(receipt, Receipt)
        assert (receipt.status, receipt.occurred_at) == (sent.status, sent.occurred_at)
