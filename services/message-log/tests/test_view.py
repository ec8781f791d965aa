from datetime import timedelta
from typing import Any

import pytest
from message_log import words
from message_log.view import mask, masked, timeline_order
from message_log_builders import after


@pytest.mark.parametrize(
    ("phone", "shown"),
    [
        ("+525512345678", "+5255••••5678"),
        ("447700900142", "4477••••0142"),
        ("5512345678", "55••••5678"),
        ("12345", "••••"),
        (None, None),
    ],
)
def test_a_masked_phone_can_be_recognised_and_not_called(phone: str | None, shown: str | None) -> None:
    assert mask(phone) == shown


def test_phones_are_masked_wherever_they_stand_in_an_event() -> None:
    event = {"to": {"phone": "+525512345678", "contact_id": "c"}, "raw": [{"wa_id": "525512345678", "from": "shop"}]}
    assert masked(event) == {
        "to": {"phone": "+5255••••5678", "contact_id": "c"},
        "raw": [{"wa_id": "5255••••5678", "from": "shop"}],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("+52 55 1234 5678", "+5255••••5678"),
        ("(55) 1234-5678", "55••••5678"),
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("2026-11-22", "2026-11-22"),
        ("123456", "123456"),
    ],
)
def test_a_phone_is_masked_however_it_is_written_and_a_time_is_not(value: str, shown: str) -> None:
    assert masked({"to": value}) == {"to": shown}


def test_metas_whole_seconds_stand_after_our_own_times_of_that_second_in_the_order_of_the_ladder() -> None:
    def event(kind: str, service: str, seconds: float) -> dict[str, Any]:
        return {"kind": kind, "service": service, "occurred_at": after(0) + timedelta(seconds=seconds)}

    told = [
        event("delivered", "webhook-ingest", 0),
        event("accepted", "dispatcher", 0.8),
        event("sent", "webhook-ingest", 0),
        event("requested", "upstream", 0.1),
        event("read", "webhook-ingest", 1),
    ]
    kinds = [each["kind"] for each in sorted(told, key=timeline_order)]
    assert kinds == ["requested", "accepted", "sent", "delivered", "read"]


@pytest.mark.parametrize(
    ("cause", "ends"),
    [
        ("EXPIRED_BEFORE_SENDING", "somebody resumes it"),
        ("TEMPORARY_FAILURE", "it passes; Sendwhy tries now and then"),
        ("RATE_LIMIT_EXCEEDED", "it passes; Sendwhy tries now and then"),
        ("META_PAYMENT_ISSUE", "the cause is repaired; Sendwhy tries now and then"),
        ("A_CAUSE_OF_TOMORROW", "the cause is repaired; Sendwhy tries now and then"),
    ],
)
def test_a_wait_without_an_end_says_what_ends_it(cause: str, ends: str) -> None:
    assert words.open_end(cause) == ends
